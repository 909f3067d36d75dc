"""Metrics on answers as strings: those of single answers are here, those of texts in `generation_metrics`.

An answer is compared as it is, without stripping or lower-casing (exact_match apart): a prompt that makes the model
say "Positive" has not learnt to say "positive". Values are fractions in [0, 1], but for `UNITS_OF_THEIR_OWN`.
"""

import functools
import re
import string
from collections.abc import Callable, Sequence
from typing import Any

from prompt_jax import generation_metrics
from prompt_jax.generation_metrics import CorpusMetric, mean_of
from prompt_jax.task_format import REFERENCE_METRICS, TaskFormat

# A text, or several of which each would be right.
Target = str | Sequence[str]
MetricFn = Callable[[Sequence[Target], Sequence[str]], dict[str, float]]

UNITS_OF_THEIR_OWN = ("nist", "cider")

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def accuracy(targets: Sequence[Target], predictions: Sequence[str]) -> dict[str, float]:
    """The share of predictions that equal their target, or one of several."""
    return corpus_score(targets, predictions, name="accuracy")


def exact_match(targets: Sequence[Target], predictions: Sequence[str]) -> dict[str, float]:
    """The share of predictions that equal their target, or one of several, normalised as SQuAD's evaluation does.

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
    return name.removeprefix("rank/") not in UNITS_OF_THEIR_OWN


def metric_fns(task_format: TaskFormat) -> list[MetricFn]:
    """The functions of a task's metrics in their order, and `invalid` after them if it has labels.

    Each takes `(targets, predictions)`, which is the signature seqio asks of a task's metrics.
    """
    labels = task_format.labels
    functions: dict[str, Any] = {
        "accuracy": accuracy,
        "exact_match": exact_match,
        "f1": functools.partial(f1, labels=labels),
        "mean_class_f1": functools.partial(mean_class_f1, labels=labels),
        **{name: functools.partial(corpus_score, name=name) for name in REFERENCE_METRICS},
    }
    chosen = [functions[name] for name in task_format.metrics]
    return [*chosen, functools.partial(invalid, labels=labels)] if labels else chosen


def normalise_answer(text: str) -> str:
    """An answer as SQuAD's evaluation compares it."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def _matches(same: Callable[[str], str]) -> CorpusMetric:
    """The share of predictions that are one of their references by what `same` makes of them."""

    def values(references: Sequence[Sequence[str]], predictions: Sequence[str]) -> list[float]:
        return [same(p) in map(same, own) for own, p in zip(references, predictions, strict=True)]

    return mean_of(values)


# Metrics that are functions of a sum over examples. F1 needs the task's labels, and is not among them.
CORPUS_METRICS: dict[str, CorpusMetric] = {
    "accuracy": _matches(str),
    "exact_match": _matches(normalise_answer),
    **generation_metrics.METRICS,
}


def _class_f1(targets: Sequence[str], predictions: Sequence[str], label: str) -> float:
    hits = sum(t == p == label for t, p in zip(targets, predictions, strict=True))
    mentions = sum(t == label for t in targets) + sum(p == label for p in predictions)
    return 2 * hits / mentions if mentions else 0.0


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _check(targets: Sequence[Target], predictions: Sequence[str]) -> None:
    if len(targets) != len(predictions):
        raise ValueError(f"there are {len(targets)} targets and {len(predictions)} predictions")
    if not targets:
        raise ValueError("there are no answers to score")
