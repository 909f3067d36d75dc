"""Metrics of tasks with labels, against values computed by hand."""

import random

import numpy as np
import pytest

from prompt_jax import metrics
from prompt_jax.metrics.labels import precision_recall

YES_NO = ("no", "yes")
ABC = ("a", "b", "c")


def test_f1_of_the_second_label():
    # yes: 2 hits, 1 miss, 1 false alarm: precision 2/3, recall 2/3.
    targets = ["yes", "yes", "yes", "no", "no"]
    predictions = ["yes", "yes", "no", "yes", "no"]
    assert metrics.f1(targets, predictions, labels=YES_NO) == {"f1": pytest.approx(2 / 3)}


def test_f1_counts_invalid_answers_as_errors():
    assert metrics.f1(["yes", "yes"], ["yes", "maybe"], labels=YES_NO) == {"f1": pytest.approx(2 / 3)}
    assert metrics.f1(["yes", "no"], ["yes", "maybe"], labels=YES_NO) == {"f1": pytest.approx(2 / 3)}
    assert metrics.f1(["yes", "no"], ["yes", "no"], labels=YES_NO) == {"f1": 1.0}


def test_f1_without_the_positive_class_is_zero():
    assert metrics.f1(["no"], ["no"], labels=YES_NO) == {"f1": 0.0}


def test_mean_class_f1():
    # a: 1 hit of 2 targets and 1 prediction, 2/3. b: 1 hit, 1 target, 2 predictions, 2/3. c: never, 0.
    targets, predictions = ["a", "a", "b"], ["a", "b", "b"]
    assert metrics.mean_class_f1(targets, predictions, labels=ABC) == {"mean_class_f1": pytest.approx(4 / 9)}


def test_mean_class_f1_counts_an_invalid_answer_as_a_false_negative_only():
    # a: 1 hit, 2 targets, 1 prediction, 2/3; b: 1; c: 1.
    targets, predictions = ["a", "a", "b", "c"], ["a", "d", "b", "c"]
    assert metrics.mean_class_f1(targets, predictions, labels=ABC) == {"mean_class_f1": pytest.approx(8 / 9)}


def test_invalid_is_the_share_outside_the_labels():
    assert metrics.invalid(["a"] * 4, ["a", "b", "A", ""], labels=ABC) == {"invalid": 0.5}


@pytest.mark.parametrize("seed", range(3))
def test_matthews_is_the_correlation_of_two_classes(seed):
    """For two classes, it is Pearson's correlation of 0 and 1, whichever class is the positive one."""
    draw = random.Random(seed)
    targets = [draw.choice(YES_NO) for _ in range(50)]
    predictions = [t if draw.random() < 0.7 else draw.choice(YES_NO) for t in targets]
    expected = np.corrcoef([t == "yes" for t in targets], [p == "yes" for p in predictions])[0, 1]
    for labels in (YES_NO, YES_NO[::-1]):
        assert metrics.matthews(targets, predictions, labels=labels) == {"matthews": pytest.approx(expected)}


def test_matthews_of_three_classes_and_invalid_answers():
    # Covariance over the root of the variances, in counts: 6 examples, 4 hits, targets 2, 2, 2.
    targets = ["a", "a", "b", "b", "c", "c"]
    predictions = ["a", "x", "b", "b", "c", "a"]
    # Predictions: a 2, b 2, c 1, none 1.
    expected = (4 * 6 - (2 * 2 + 2 * 2 + 2 * 1)) / ((36 - 12) * (36 - 10)) ** 0.5
    assert metrics.matthews(targets, predictions, labels=ABC) == {"matthews": pytest.approx(expected)}
    assert metrics.matthews(targets, targets, labels=ABC) == {"matthews": pytest.approx(1.0)}
    assert metrics.matthews(targets, ["x", "y"] * 3, labels=ABC) == {"matthews": 0.0}
    assert metrics.matthews(["a", "a"], ["a", "b"], labels=ABC) == {"matthews": 0.0}


def test_precision_and_recall_by_label():
    """By hand; and equal to the F1 of each label."""
    counts = [[6, 2, 2], [3, 9, 0], [0, 0, 0]]
    square = [[6, 2, 0, 2], [3, 9, 0, 0], [0, 0, 0, 0]]
    assert precision_recall(square) == [(6 / 9, 6 / 10, 10), (9 / 11, 9 / 12, 12), (None, None, 0)]
    assert precision_recall([row[:3] for row in counts[:2]]) == [(6 / 9, 6 / 10, 10), (9 / 11, 9 / 12, 12)]
    targets = ["a"] * 10 + ["b"] * 12
    answers = ["a"] * 6 + ["b"] * 2 + ["?"] * 2 + ["a"] * 3 + ["b"] * 9
    means = [2 * p * r / (p + r) for p, r, _ in precision_recall([row[:3] for row in counts[:2]])]
    assert metrics.mean_class_f1(targets, answers, labels=["a", "b"])["mean_class_f1"] == pytest.approx(sum(means) / 2)
