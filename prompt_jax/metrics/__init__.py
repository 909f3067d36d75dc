"""Metrics on answers as strings: those of single answers are here, those of texts in `generation_metrics`.

An answer is compared as it is, without stripping or lower-casing (exact_match apart): a prompt that makes the model
say "Positive" has not learned to say "positive". Values are fractions in [0, 1], or in [-1, 1] for correlations, but
for `UNITS_OF_THEIR_OWN`. `log_likelihood` is of the targets' tokens, and of no answer.
"""

import functools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from prompt_jax.metrics import generation
from prompt_jax.metrics.generation import CorpusMetric, mean_of, normalize_answer
from prompt_jax.task_format import LOG_LIKELIHOOD, NOTE_METRICS, REFERENCE_METRICS, TaskFormat

# A text, or several of which each would be right.
Target = str | Sequence[str]
MetricFn = Callable[[Sequence[Target], Sequence[str]], dict[str, float]]

UNITS_OF_THEIR_OWN = ("nist", "nist_perl", "cider", LOG_LIKELIHOOD)

NO_NUMBER = -1.0  # what an answer that is no number counts as where numbers are expected (T5's)

# Words that say nothing of who is meant (T5's list).
_DETERMINERS = frozenset(
    (
        *("a", "an", "few", "her", "his", "each", "every", "many", "much", "my", "our", "some"),
        *("that", "the", "their", "these", "this", "those", "which", "whose", "your"),
    )
)


def accuracy(targets: Sequence[Target], predictions: Sequence[str]) -> dict[str, float]:
    """The share of predictions that equal their target, or one of several."""
    return corpus_score(targets, predictions, name="accuracy")


def exact_match(targets: Sequence[Target], predictions: Sequence[str]) -> dict[str, float]:
    """The share of predictions that equal their target, or one of several, normalized as SQuAD's evaluation does.

    Lower case, without punctuation, the articles a, an, the, or repeated white space (Rajpurkar et al. 2016).
    """
    return corpus_score(targets, predictions, name="exact_match")


def f1(targets: Sequence[str], predictions: Sequence[str], *, labels: Sequence[str]) -> dict[str, float]:
    """F1 of the second of two labels. 0 where it is neither expected nor predicted, as scikit-learn has it.

    An answer that is no label is wrong whatever was expected: a miss of the positive class where that was the
    target, a false positive elsewhere, as in T5's `f1_score_with_invalid`. Otherwise a model could raise its F1
    by answering nonsense.
    """
    if len(labels) != 2:
        raise ValueError(f"f1 needs two labels, of which the second is the positive class, not {list(labels)}")
    _check(targets, predictions)
    negative, positive = labels
    settled = [
        p if p in labels else (negative if t == positive else positive)
        for t, p in zip(targets, predictions, strict=True)
    ]
    return {"f1": _class_f1(targets, settled, positive)}


def mean_class_f1(targets: Sequence[str], predictions: Sequence[str], *, labels: Sequence[str]) -> dict[str, float]:
    """The unweighted mean of the F1 of each label (T5's `mean_multiclass_f1`, scikit-learn's macro average).

    All labels count, those that are neither expected nor predicted with 0. An answer that is no label is a miss of
    its target's class and a false positive of none.
    """
    _check(targets, predictions)
    return {"mean_class_f1": _mean([_class_f1(targets, predictions, label) for label in labels])}


def matthews(targets: Sequence[str], predictions: Sequence[str], *, labels: Sequence[str]) -> dict[str, float]:
    """Matthews' correlation of targets and predictions, for any number of classes (Gorodkin 2004, as scikit-learn).

    Answers that are no label are one more class. 0 where all targets or all predictions are the same.
    """
    _check(targets, predictions)
    classes = [p if p in labels else None for p in predictions]
    expected, given = Counter(targets), Counter(classes)
    count, hits = len(targets), sum(t == p for t, p in zip(targets, classes, strict=True))
    chance = sum(expected[label] * given[label] for label in labels)
    spreads = [count**2 - sum(times**2 for times in own.values()) for own in (expected, given)]
    return {"matthews": (hits * count - chance) / math.sqrt(math.prod(spreads)) if all(spreads) else 0.0}


def pearson(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """Pearson's correlation of the numbers that the texts are; an answer that is none counts as NO_NUMBER.

    0 where all targets or all predictions are the same, of which it is not defined.
    """
    _check(targets, predictions)
    return {"pearson": _correlation(_numbers(targets), _numbers(predictions))}


def spearman(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """`pearson` of the numbers' ranks; equal numbers share the mean of theirs."""
    _check(targets, predictions)
    return {"spearman": _correlation(_ranks(_numbers(targets)), _ranks(_numbers(predictions)))}


def group_exact_match(
    targets: Sequence[Target], predictions: Sequence[str], *, notes: Sequence[str]
) -> dict[str, float]:
    """The share of groups of examples, those of one note, in which all predictions are right (MultiRC's EM)."""
    _check(targets, predictions)
    right: dict[str, bool] = {}
    for target, prediction, note in zip(targets, predictions, notes, strict=True):
        right[note] = right.get(note, True) and prediction in references_of(target)
    return {"group_exact_match": _mean(list(right.values()))}


def referent_accuracy(targets: Sequence[str], predictions: Sequence[str], *, notes: Sequence[str]) -> dict[str, float]:
    """The share of examples where naming the target's referent is what the note, "True" or "False", says is right.

    WSC as T5 has it (`wsc_simple`): the model names what a pronoun stands for, and the question is whether it stands
    for the target. It is named where one text's words are among the other's, but for case and determiners; not where
    only one of them has an apostrophe ("Bob", "Bob's hat"). An answer of determiners alone, or of nothing, is wrong.
    """
    _check(targets, predictions)

    def words(text: str) -> set[str]:
        return set(text.lower().split()) - _DETERMINERS

    def right(target: str, prediction: str, note: str) -> bool:
        own, other = words(target), words(prediction)
        alike = bool(own) and ("'" in " ".join(own)) == ("'" in " ".join(other))
        return bool(other) and str(alike and (own <= other or other <= own)) == note

    return {"referent_accuracy": _mean([right(*each) for each in zip(targets, predictions, notes, strict=True)])}


def log_likelihood(targets: Sequence[np.ndarray], scores: Sequence[float] | np.ndarray) -> dict[str, float]:
    """The mean log-probability of the targets' tokens, in nats a token: minus the loss in training.

    Args:
      targets: token ids of each, the end token included; of several references the first.
      scores: the log-probability of each target, in nats (`prompt_jax.inference.answers.score_targets`).
    """
    total = np.asarray(scores, np.float64).sum()
    return {LOG_LIKELIHOOD: float(total / sum(map(len, targets)))}


def benchmark_average(scores: Mapping[str, Mapping[str, float]]) -> float:
    """A benchmark's score, as SuperGLUE and GLUE have it: the mean over tasks of the mean of a task's metrics.

    Args:
      scores: by task and metric. `invalid`, and what is under `rank/`, are no metrics of a benchmark and left out.

    Raises:
      ValueError: no task, or one without a metric.
    """
    means = []
    for task, own in scores.items():
        values = [value for name, value in own.items() if name != "invalid" and not name.startswith("rank/")]
        if not values:
            raise ValueError(f"the task {task!r} has no metric; expected at least one")
        means.append(_mean(values))
    if not means:
        raise ValueError("there are no tasks; expected the scores of at least one")
    return _mean(means)


def invalid(targets: Sequence[str], predictions: Sequence[str], *, labels: Sequence[str]) -> dict[str, float]:
    """The share of predictions that are none of the labels."""
    _check(targets, predictions)
    return {"invalid": _mean([p not in labels for p in predictions])}


def corpus_score(targets: Sequence[Target], predictions: Sequence[str], *, name: str) -> dict[str, float]:
    """The value of one of `CORPUS_METRICS`, under its name."""
    _check(targets, predictions)
    return {name: CORPUS_METRICS[name](list(map(references_of, targets)), predictions)}


def references_of(target: Target) -> Sequence[str]:
    """The texts of which each would be right."""
    return (target,) if isinstance(target, str) else target


def is_share(name: str) -> bool:
    """Whether a metric's values are fractions, which people read in percent; all others have units of their own."""
    return name.rpartition("/")[2] not in UNITS_OF_THEIR_OWN


def metric_fns(task_format: TaskFormat, notes: Sequence[str] = ()) -> list[MetricFn]:
    """The functions of a task's metrics in their order, and `invalid` after them if it has labels.

    Each takes `(targets, predictions)`, which is the signature seqio asks of a task's metrics, but for
    `log_likelihood`.

    Args:
      task_format: the task's.
      notes: of the examples that are to be scored, in their order; without them NOTE_METRICS are left out.
    """
    labels = task_format.labels
    functions: dict[str, Any] = {
        "accuracy": accuracy,
        "exact_match": exact_match,
        "f1": functools.partial(f1, labels=labels),
        "mean_class_f1": functools.partial(mean_class_f1, labels=labels),
        "matthews": functools.partial(matthews, labels=labels),
        "pearson": pearson,
        "spearman": spearman,
        "group_exact_match": functools.partial(group_exact_match, notes=notes),
        "referent_accuracy": functools.partial(referent_accuracy, notes=notes),
        **{name: functools.partial(corpus_score, name=name) for name in REFERENCE_METRICS},
        LOG_LIKELIHOOD: log_likelihood,
    }
    chosen = [functions[name] for name in task_format.metrics if notes or name not in NOTE_METRICS]
    return [*chosen, functools.partial(invalid, labels=labels)] if labels else chosen


def _matches(same: Callable[[str], str]) -> CorpusMetric:
    """The share of predictions that are one of their references by what `same` makes of them."""

    def values(references: Sequence[Sequence[str]], predictions: Sequence[str]) -> list[float]:
        return [same(p) in map(same, own) for own, p in zip(references, predictions, strict=True)]

    return mean_of(values)


# Metrics that are functions of a sum over examples. F1 needs the task's labels, and is not among them.
CORPUS_METRICS: dict[str, CorpusMetric] = {
    "accuracy": _matches(str),
    "exact_match": _matches(normalize_answer),
    **generation.METRICS,
}


def _class_f1(targets: Sequence[str], predictions: Sequence[str], label: str) -> float:
    hits = sum(t == p == label for t, p in zip(targets, predictions, strict=True))
    mentions = sum(t == label for t in targets) + sum(p == label for p in predictions)
    return 2 * hits / mentions if mentions else 0.0


def _numbers(texts: Sequence[str]) -> Float[np.ndarray, " N"]:
    def number(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            return NO_NUMBER
        return value if math.isfinite(value) else NO_NUMBER

    return np.array([number(text) for text in texts])


def _ranks(values: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    """The place of each in ascending order; of equal ones the mean of theirs."""
    _, number, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[number]


def _correlation(a: Float[np.ndarray, " N"], b: Float[np.ndarray, " N"]) -> float:
    if (a == a[0]).all() or (b == b[0]).all():
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _check(targets: Sequence[Target], predictions: Sequence[str]) -> None:
    if len(targets) != len(predictions):
        raise ValueError(f"there are {len(targets)} targets and {len(predictions)} predictions")
    if not targets:
        raise ValueError("there are no answers to score")
