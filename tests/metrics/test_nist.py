"""NIST against values computed by hand."""

import math

import pytest

from prompt_jax.metrics.generation import METRICS


def test_nist_by_hand():
    # All references have 8 words: a 3 times, b twice, c, d and e once. Pairs: a b twice, others once.
    references, predictions = [["a b c", "a b"], ["a d e"]], ["a b d", "a"]
    word = {"a": math.log2(8 / 3), "b": math.log2(8 / 2), "d": math.log2(8 / 1)}
    one = (word["a"] + word["b"] + word["a"]) / 4  # of 4 words d is not in the first example's references
    two = math.log2(3 / 2) / 2  # a b, of a b and b d
    # 4 words given, and 2.5 + 3 expected.
    brevity = math.exp(math.log(0.5) / math.log(1.5) ** 2 * math.log(4 / 5.5) ** 2)
    assert METRICS["nist"](references, predictions) == pytest.approx((one + two) * brevity)


def test_nist_clips_counts_by_the_best_reference():
    once, twice = [["a b", "b a"]], [["a a", "b a"]]
    assert METRICS["nist"](once, ["a a"]) == pytest.approx(1 / 2)  # log2(4 / 2), of two words
    assert METRICS["nist"](twice, ["a a"]) == pytest.approx(2 * math.log2(4 / 3) / 2 + math.log2(3 / 1))


def test_perls_nist_uses_the_mean_length_of_all_references():
    """As above. The references have 3, 2 and 3 words, so the expected length of two answers is 2 * 8 / 3."""
    references, predictions = [["a b c", "a b"], ["a d e"]], ["a b d", "a"]
    beta = math.log(0.5) / math.log(1.5) ** 2
    ratio = math.exp(beta * math.log(4 / (2 * 8 / 3)) ** 2) / math.exp(beta * math.log(4 / 5.5) ** 2)
    assert METRICS["nist_perl"](references, predictions) == pytest.approx(
        ratio * METRICS["nist"](references, predictions)
    )
    # An empty reference has no place in the mean: 8 words in three references again.
    references[1].append("")
    assert METRICS["nist_perl"](references, predictions) == pytest.approx(
        ratio * METRICS["nist"](references[:1] + [["a d e"]], predictions)
    )


def test_nist_of_an_empty_answer_is_zero():
    assert METRICS["nist"]([["a b"]], [""]) == 0
