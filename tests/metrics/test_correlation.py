"""Correlations of numbers, against NumPy's."""

import random

import numpy as np
import pytest

from prompt_jax import metrics


def mean_ranks(values):
    return [sum(y < x for y in values) + (sum(y == x for y in values) + 1) / 2 for x in values]


def test_correlations_with_ties():
    draw = random.Random(0)
    numbers = [round(draw.uniform(0, 5) * 5) / 5 for _ in range(60)]
    others = [round((x + draw.uniform(0, 3)) * 5) / 5 for x in numbers]
    targets, predictions = ([f"{x:.1f}" for x in values] for values in (numbers, others))
    expected = np.corrcoef(numbers, others)[0, 1]
    assert metrics.pearson(targets, predictions)["pearson"] == pytest.approx(expected)
    expected = np.corrcoef(mean_ranks(numbers), mean_ranks(others))[0, 1]
    assert metrics.spearman(targets, predictions)["spearman"] == pytest.approx(expected)


def test_an_answer_that_is_not_a_number_counts_as_minus_one():
    targets = ["1.0", "2.0", "3.0"]
    for answer in ("", "two", "nan", "inf"):
        expected = np.corrcoef([1, 2, 3], [1, -1, 3])[0, 1]
        assert metrics.pearson(targets, ["1.0", answer, " 3"]) == {"pearson": pytest.approx(expected)}
        assert metrics.spearman(targets, ["1.0", answer, "3.0"]) == {"spearman": pytest.approx(0.5)}  # ranks 2 1 3
    assert metrics.pearson(targets, ["x"] * 3) == {"pearson": 0.0}
    assert metrics.spearman(["2.0"] * 3, targets) == {"spearman": 0.0}
