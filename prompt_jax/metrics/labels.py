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


def precision_recall(counts: Sequence[Sequence[int]]) -> list[tuple[float | None, float | None, int]]:
    """Return the precision, the recall and the number of examples of each label.

    An answer that is not a label lowers its target's recall, and no label's precision. The precision of a label that
    was never answered, and the recall of a label without examples, are None.

    Args:
      counts: [C, C + 1] how often each label (rows) was answered with each label, or with something else (last column).
    """
    hits = [row[number] for number, row in enumerate(counts)]
    expected, answered = list(map(sum, counts)), [sum(column) for column in list(zip(*counts, strict=True))[:-1]]
    return [
        (int(hit) / int(given) if given else None, int(hit) / int(count) if count else None, int(count))
        for hit, given, count in zip(hits, answered, expected, strict=True)
    ]


def _class_f1(targets: Sequence[str], predictions: Sequence[str], label: str) -> float:
    hits = sum(t == p == label for t, p in zip(targets, predictions, strict=True))
    mentions = sum(t == label for t in targets) + sum(p == label for p in predictions)
    return 2 * hits / mentions if mentions else 0.0
