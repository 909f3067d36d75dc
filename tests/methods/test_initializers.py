"""Initializers against their definitions."""

import jax.numpy as jnp
import numpy as np
import pytest

from initial_tokens import KEY, init
from prompt_jax.methods import initializers


def rows_of(table, tokens) -> list[int]:
    """Return the row of the table that each token equals."""
    return [int(np.flatnonzero((np.asarray(table) == token).all(axis=1))[0]) for token in tokens]


def test_uniform_covers_its_range(tiny):
    tokens = init(tiny, length=300, init="uniform")
    assert tokens.shape == (300, 64) and -0.5 <= tokens.min() < -0.49 and 0.49 < tokens.max() < 0.5
    assert abs(tokens.mean()) < 0.01
    code = init(tiny, length=300, init="uniform", init_range=(0.0, 0.5))
    assert 0 <= code.min() < 0.01 and 0.49 < code.max() < 0.5


def test_vocabulary_is_sampled_without_replacement(tiny):
    rows = rows_of(tiny.params["embedding"], init(tiny, length=50, init="vocab", init_vocab=50))
    assert sorted(rows) == list(range(50)) != rows
    assert set(rows_of(tiny.params["embedding"], init(tiny, length=9, init="vocab", init_vocab=3))) <= {0, 1, 2}
    with pytest.warns(UserWarning, match="has 256 rows, fewer than 5000"):
        init(tiny, length=5, init="vocab")


def test_labels_are_means_of_their_pieces(tiny):
    tokens = init(tiny, ("positive", "a bad film"), length=5, init="labels", init_vocab=200)
    for row, label in enumerate(("positive", "a bad film")):
        pieces = tiny.tokenizer.encode(label)
        assert len(pieces) > 1
        np.testing.assert_allclose(tokens[row], np.asarray(tiny.params["embedding"])[pieces].mean(axis=0), rtol=1e-5)
    assert len(set(rows_of(tiny.params["embedding"], tokens[2:]))) == 3


def test_words_may_take_the_place_of_labels(tiny):
    """Each word gives one row, the mean of its pieces, whether or not the task has labels."""
    words = ("good acting", "film", "great fun")
    expected = [np.asarray(tiny.params["embedding"])[tiny.tokenizer.encode(word)].mean(axis=0) for word in words]
    assert len(tiny.tokenizer.encode(words[0])) > 1
    for labels in ((), ("positive", "negative")):
        tokens = init(tiny, labels, length=4, init="labels", init_labels=words, init_vocab=200)
        np.testing.assert_allclose(tokens[:3], expected, rtol=1e-5)
        assert len(rows_of(tiny.params["embedding"], tokens[3:])) == 1


def test_the_sentinel_before_labels_is_no_part_of_their_rows(tiny):
    options = {"length": 2, "init": "labels"}
    plain = init(tiny, ("positive", "negative"), **options)
    np.testing.assert_array_equal(init(tiny, ("<extra_id_0> positive", "<extra_id_0> negative"), **options), plain)


def test_surplus_labels_are_reported(tiny):
    with pytest.warns(UserWarning, match="3 labels for a prompt of 2: the last 1 have no row"):
        assert init(tiny, ("a", "the", "film"), length=2, init="labels").shape == (2, 64)


def test_text_is_a_piece_a_row(tiny):
    pieces = tiny.tokenizer.encode("great fun")
    tokens = init(tiny, length=len(pieces) + 2, init="text", init_text="great fun", init_vocab=200)
    assert rows_of(tiny.params["embedding"], tokens[: len(pieces)]) == pieces
    short = init(tiny, length=1, init="text", init_text="great fun")
    assert rows_of(tiny.params["embedding"], short) == pieces[:1]


def test_bfloat16_bases_give_float32_prompts():
    table = jnp.ones((9, 4), jnp.bfloat16)
    assert initializers.sampled_vocabulary(KEY, 3, table, 9).dtype == jnp.float32
    assert initializers.class_labels(KEY, 3, table, [[1, 2]], 9).dtype == jnp.float32
