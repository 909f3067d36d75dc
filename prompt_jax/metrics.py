"""Metrics on answers as strings. All values are fractions in [0, 1]; nothing but the standard library is needed.

An answer is compared as it is, without stripping or lower-casing (exact_match apart): a prompt that makes the model
say "Positive" has not learnt to say "positive".
"""

import functools
import re
import string
from collections.abc import Callable, Sequence

from prompt_jax.task_format import TaskFormat

MetricFn = Callable[[Sequence[str], Sequence[str]], dict[str, float]]

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def accuracy(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """The share of predictions that equal their target."""
    _check(targets, predictions)
    return {"accuracy": _mean([t == p for t, p in zip(targets, predictions, strict=True)])}


def exact_match(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """The share of predictions that equal their target once both are normalised as SQuAD's evaluation does.

    Lower case, without punctuation, the articles a, an, the, or repeated white space (Rajpurkar et al. 2016).
    """
    _check(targets, predictions)
    same = [normalise_answer(t) == normalise_answer(p) for t, p in zip(targets, predictions, strict=True)]
    return {"exact_match": _mean(same)}


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


def metric_fns(task_format: TaskFormat) -> list[MetricFn]:
    """The functions of a task's metrics in their order, and `invalid` after them if it has labels.

    Each takes `(targets, predictions)`, which is the signature seqio asks of a task's metrics.
    """
    labels = task_format.labels
    functions: dict[str, MetricFn] = {
        "accuracy": accuracy,
        "exact_match": exact_match,
        "f1": functools.partial(f1, labels=labels),
        "mean_class_f1": functools.partial(mean_class_f1, labels=labels),
    }
    chosen = [functions[name] for name in task_format.metrics]
    return [*chosen, functools.partial(invalid, labels=labels)] if labels else chosen


def normalise_answer(text: str) -> str:
    """An answer as SQuAD's evaluation compares it."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def _class_f1(targets: Sequence[str], predictions: Sequence[str], label: str) -> float:
    hits = sum(t == p == label for t, p in zip(targets, predictions, strict=True))
    mentions = sum(t == label for t in targets) + sum(p == label for p in predictions)
    return 2 * hits / mentions if mentions else 0.0


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _check(targets: Sequence[str], predictions: Sequence[str]) -> None:
    if len(targets) != len(predictions):
        raise ValueError(f"there are {len(targets)} targets and {len(predictions)} predictions")
    if not targets:
        raise ValueError("there are no answers to score")
