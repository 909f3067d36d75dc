"""Metrics of tasks with labels."""

import math
from collections import Counter
from collections.abc import Sequence

from prompt_jax.metrics.answers import check_lengths, mean


def f1(targets: Sequence[str], predictions: Sequence[str], *, labels: Sequence[str]) -> dict[str, float]:
    """Return the F1 of the second of two labels. As in scikit-learn, it is 0 if the label never occurs.

    An answer that is not a label is always wrong: a false negative if the target is the positive class, otherwise a
    false positive, as in T5's `f1_score_with_invalid`. Otherwise nonsense answers could raise F1.
    """
    if len(labels) != 2:
        raise ValueError(f"f1 needs two labels, of which the second is the positive class, not {list(labels)}")
    check_lengths(targets, predictions)
    negative, positive = labels
    valid = [
        p if p in labels else (negative if t == positive else positive)
        for t, p in zip(targets, predictions, strict=True)
    ]
    return {"f1": _class_f1(targets, valid, positive)}


def mean_class_f1(targets: Sequence[str], predictions: Sequence[str], *, labels: Sequence[str]) -> dict[str, float]:
    """Return the unweighted mean of the labels' F1 (T5's `mean_multiclass_f1`, scikit-learn's macro average).

    A label that is neither expected nor predicted counts as 0. An answer that is not a label is a false negative of its
    target's class, and not a false positive.
    """
    check_lengths(targets, predictions)
    return {"mean_class_f1": mean([_class_f1(targets, predictions, label) for label in labels])}


def matthews(targets: Sequence[str], predictions: Sequence[str], *, labels: Sequence[str]) -> dict[str, float]:
    """Return Matthews' correlation of targets and predictions for any number of classes (Gorodkin 2004).

    The value equals scikit-learn's. Answers that are not labels form one more class. The value is 0 if targets or
    predictions are constant.
    """
    check_lengths(targets, predictions)
    classes = [p if p in labels else None for p in predictions]
    expected, given = Counter(targets), Counter(classes)
    count, hits = len(targets), sum(t == p for t, p in zip(targets, classes, strict=True))
    chance = sum(expected[label] * given[label] for label in labels)
    spreads = [count**2 - sum(n**2 for n in counts.values()) for counts in (expected, given)]
    return {"matthews": (hits * count - chance) / math.sqrt(math.prod(spreads)) if all(spreads) else 0.0}


def invalid(targets: Sequence[str], predictions: Sequence[str], *, labels: Sequence[str]) -> dict[str, float]:
    """Return the share of predictions that are not labels."""
    check_lengths(targets, predictions)
    return {"invalid": mean([p not in labels for p in predictions])}


def _class_f1(targets: Sequence[str], predictions: Sequence[str], label: str) -> float:
    hits = sum(t == p == label for t, p in zip(targets, predictions, strict=True))
    mentions = sum(t == label for t in targets) + sum(p == label for p in predictions)
    return 2 * hits / mentions if mentions else 0.0
