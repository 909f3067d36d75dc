"""Metrics of a sum over examples."""

import numpy as np
import pytest

from prompt_jax.metrics.corpus_metric import CorpusMetric, mean_of, on_normalized_text


def shared_words(references, predictions):
    """Return for each example the words of the prediction that are in a reference, and all its words."""
    counts = []
    for texts, prediction in zip(references, predictions, strict=True):
        words = prediction.split()
        counts.append([sum(any(word in text.split() for text in texts) for word in words), len(words)])
    return np.array(counts, float)


PRECISION = CorpusMetric(shared_words, lambda total: float(total[0] / total[1]))


def test_a_corpus_score_is_no_mean_of_scores():
    """Words are pooled: 1 of 1 and 1 of 4 are 2 of 5."""
    assert PRECISION([["a"], ["b"]], ["a", "b x y z"]) == 2 / 5

    def precisions(references, predictions):
        return np.divide(*shared_words(references, predictions).T)

    assert mean_of(precisions)([["a"], ["b"]], ["a", "b x y z"]) == pytest.approx((1 + 1 / 4) / 2)


def test_a_resample_is_a_weighted_sum():
    """The second example twice, and the first not at all."""
    statistics = PRECISION.statistics([["a"], ["b"]], ["a", "b x y z"])
    assert PRECISION.score(np.array([0, 2]) @ statistics) == 1 / 4


def test_normalized_texts_and_the_first_references():
    references = [["A", "B", "C"]]
    assert PRECISION(references, ["c"]) == 0
    assert on_normalized_text(PRECISION, str.lower)(references, ["C"]) == 1
    assert on_normalized_text(PRECISION, str.lower, max_references=2)(references, ["C"]) == 0
