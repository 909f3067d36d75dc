"""The nearest pieces of virtual tokens, by hand and against brute force."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

import prompt_jax
from directions import MODEL, PIECES, TABLE, TOKENS
from prompt_jax.inspection import vectors
from prompt_jax.inspection.neighbors import Neighbor, inspect, inspect_tokens, label_pieces, label_share, nearest
from prompt_jax.models.prompt import Prompt, VirtualTokens


@pytest.mark.parametrize("block", [1, 2, 100])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_nearest_by_hand(monkeypatch, block, dtype):
    monkeypatch.setattr(vectors, "_BLOCK", block)
    # the third token has the cosines 0, 3, 1, 4 / sqrt(2), -3 over sqrt(10); ties go to the lower row
    assert nearest(TOKENS, jnp.asarray(TABLE, dtype), 5, 3).tolist() == [[3, 1, 2], [0, 1, 4], [1, 3, 2]]
    # squared distances: of the first 200, 164, 149, 162, 296; the second 1, 5, 16, 5, 17; the third 0.1, 2.9, 8.5, 1.3
    by_distance = nearest(TOKENS, jnp.asarray(TABLE, dtype), 5, 3, "distance")
    assert by_distance.tolist() == [[2, 3, 1], [0, 1, 3], [0, 3, 1]]


@pytest.mark.parametrize("scale", [0.1, 30.0])
def test_nearest_of_many(monkeypatch, scale):
    """Equal to brute force, for tokens with norms far below and far above the vocabulary's."""
    random = np.random.default_rng(0)
    table, tokens = random.normal(size=(500, 16)).astype(np.float32), random.normal(size=(20, 16)) * scale
    monkeypatch.setattr(vectors, "_BLOCK", 64)
    tokens = tokens.astype(np.float32)
    actual = inspect_tokens(tokens, table, str, 450, 7)
    distances = np.linalg.norm(tokens[:, None] - table[None, :450].astype(np.float64), axis=2)
    cosines = (tokens @ table[:450].T) / np.outer(np.linalg.norm(tokens, axis=1), np.linalg.norm(table[:450], axis=1))
    for number, token in enumerate(actual.tokens):
        order = np.argsort(distances[number])[:7]
        assert [near.index for near in token.by_distance] == order.tolist()
        assert [near.piece for near in token.by_distance] == list(map(str, order))
        assert [near.distance for near in token.by_distance] == pytest.approx(distances[number, order], rel=1e-6)
        order = np.argsort(-cosines[number])[:7]
        assert [near.index for near in token.by_cosine] == order.tolist()
        assert [near.cosine for near in token.by_cosine] == pytest.approx(cosines[number, order], rel=1e-5)
        assert [near.distance for near in token.by_cosine] == pytest.approx(distances[number, order], rel=1e-6)


def test_nearest_finds_at_most_the_vocabulary():
    assert nearest(TOKENS, TABLE, 2, 5).shape == nearest(TOKENS, TABLE, 2, 5, "distance").shape == (3, 2)


def test_nearest_of_values_near_overflow():
    (token,) = inspect_tokens(np.float32([[3e38, 3e38]]), TABLE, PIECES.__getitem__, 5, 1).tokens
    assert token.by_cosine[0].piece == "▁both" and token.by_cosine[0].cosine == pytest.approx(1)
    assert token.by_distance[0].piece == "▁up", "the longest of those in its direction"
    assert token.norm == pytest.approx(3e38 * 2**0.5)


def test_widths_that_differ():
    with pytest.raises(ValueError, match="have width 3; tiny has 2"):
        inspect(Prompt(VirtualTokens(np.zeros((1, 3), np.float32))), MODEL)


def test_inspection():
    actual = inspect_tokens(TOKENS, TABLE, PIECES.__getitem__, 5, 2)
    assert [[near.piece for near in token.by_cosine] for token in actual.tokens] == [
        ["▁both", "▁right"],
        ["<pad>", "▁right"],
        ["▁right", "▁both"],
    ]
    half, tenth = 0.5**0.5, 0.1**0.5
    cosines = [[near.cosine for near in token.by_cosine] for token in actual.tokens]
    np.testing.assert_allclose(cosines, [[1, half], [0, 0], [3 * tenth, 4 * tenth * half]], atol=1e-7)
    distances = [[near.distance for near in token.by_distance] for token in actual.tokens]
    np.testing.assert_allclose(np.square(distances), [[149, 162], [1, 5], [0.1, 1.3]], rtol=1e-6)
    assert [token.norm for token in actual.tokens] == pytest.approx([200**0.5, 1, 0.1**0.5])
    assert actual.vocabulary.mean == pytest.approx((2 + 3 + 2**0.5 + 4) / 5)


def test_masked_slots_are_left_out():
    prompt = Prompt(VirtualTokens(TOKENS, np.array([False, True, True])))
    assert inspect(prompt, MODEL, 1).tokens == inspect_tokens(TOKENS[1:], TABLE, PIECES.__getitem__, 5, 1).tokens


def test_without_a_tokenizer_pieces_are_numbers():
    actual = inspect(Prompt(VirtualTokens(TOKENS)), dataclasses.replace(MODEL, tokenizer=None), 1)
    assert actual.tokens[0].by_cosine[0].piece in ("#3", "#5")  # parallel, so their cosines differ by rounding


def test_a_prompt_without_virtual_tokens():
    with pytest.raises(ValueError, match="the prompt has no virtual tokens"):
        inspect(Prompt(), MODEL)


def test_labels_among_neighbors():
    def near(*indices: int) -> tuple[Neighbor, ...]:
        return tuple(Neighbor(index, f"#{index}", 1.0, 1.0) for index in indices)

    pieces = {"up": frozenset({1, 2}), "down": frozenset({3}), "left": frozenset()}
    share = label_share([near(1, 5, 2, 9), near(7, 8, 9, 5), near(3, 2, 8, 9)], pieces)
    assert share.tokens == {"up": (0, 2), "down": (2,), "left": ()}
    assert share.share == 4 / 12
    assert label_share([near(1)], {}).share == 0


def test_pieces_of_labels(tiny, tiny_folders):
    (actual,) = label_pieces(["film, dull"], tiny.tokenizer).values()
    assert "," in map(tiny.tokenizer.piece, tiny.tokenizer.encode("film, dull"))
    assert {tiny.tokenizer.piece(index) for index in actual} >= {"▁film", "d"}
    assert not {"▁", ","} & {tiny.tokenizer.piece(index) for index in actual}
    assert label_pieces(["☃"], tiny.tokenizer) == {"☃": frozenset()}, "unknown pieces are of no label"
    pairs = prompt_jax.load_model(str(tiny_folders["gpt2"])).tokenizer
    (actual,) = label_pieces(["good"], pairs).values()
    inner, spaced = pairs.encode("good"), pairs.encode(" good")
    assert set(inner) | set(spaced) >= actual and {inner[-1], spaced[-1]} <= actual
