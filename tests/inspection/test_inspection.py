import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

import prompt_jax
from directions import MODEL, PIECES, TABLE, TOKENS
from prompt_jax import inspection
from prompt_jax.inspection import (
    Neighbor,
    inspect,
    inspect_tokens,
    label_pieces,
    label_share,
    nearest,
    norm_range,
    prompt_similarity,
    row_norms,
    task_similarity,
    token_similarity,
)
from prompt_jax.models.prompt import Prefix, Prompt, VirtualTokens


@pytest.mark.parametrize("block", [1, 2, 100])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_nearest_by_hand(monkeypatch, block, dtype):
    monkeypatch.setattr(inspection, "_BLOCK", block)
    # the third token has the cosines 0, 3, 1, 4 / sqrt(2), -3 over sqrt(10); ties go to the lower row
    assert nearest(TOKENS, jnp.asarray(TABLE, dtype), 5, 3).tolist() == [[3, 1, 2], [0, 1, 4], [1, 3, 2]]
    # squared distances: of the first 200, 164, 149, 162, 296; the second 1, 5, 16, 5, 17; the third 0.1, 2.9, 8.5, 1.3
    by_distance = nearest(TOKENS, jnp.asarray(TABLE, dtype), 5, 3, "distance")
    assert by_distance.tolist() == [[2, 3, 1], [0, 1, 3], [0, 3, 1]]


@pytest.mark.parametrize("scale", [0.1, 30.0])
def test_nearest_of_many(monkeypatch, scale):
    """As found by comparing all with all, of tokens much shorter and much longer than the vocabulary's."""
    random = np.random.default_rng(0)
    table, tokens = random.normal(size=(500, 16)).astype(np.float32), random.normal(size=(20, 16)) * scale
    monkeypatch.setattr(inspection, "_BLOCK", 64)
    tokens = tokens.astype(np.float32)
    found = inspect_tokens(tokens, table, str, 450, 7)
    distances = np.linalg.norm(tokens[:, None] - table[None, :450].astype(np.float64), axis=2)
    cosines = (tokens @ table[:450].T) / np.outer(np.linalg.norm(tokens, axis=1), np.linalg.norm(table[:450], axis=1))
    for number, token in enumerate(found.tokens):
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


def test_norms():
    assert row_norms(TABLE, 5).tolist() == pytest.approx([0, 2, 3, 2**0.5, 4])
    found = norm_range(np.arange(101.0))
    assert (found.mean, found.low, found.high) == (50, 5, 95)


def test_inspection():
    found = inspect_tokens(TOKENS, TABLE, PIECES.__getitem__, 5, 2)
    assert [[near.piece for near in token.by_cosine] for token in found.tokens] == [
        ["▁both", "▁right"],
        ["<pad>", "▁right"],
        ["▁right", "▁both"],
    ]
    half, tenth = 0.5**0.5, 0.1**0.5
    cosines = [[near.cosine for near in token.by_cosine] for token in found.tokens]
    np.testing.assert_allclose(cosines, [[1, half], [0, 0], [3 * tenth, 4 * tenth * half]], atol=1e-7)
    distances = [[near.distance for near in token.by_distance] for token in found.tokens]
    np.testing.assert_allclose(np.square(distances), [[149, 162], [1, 5], [0.1, 1.3]], rtol=1e-6)
    assert [token.norm for token in found.tokens] == pytest.approx([200**0.5, 1, 0.1**0.5])
    assert found.vocabulary.mean == pytest.approx((2 + 3 + 2**0.5 + 4) / 5)


def test_masked_slots_are_left_out():
    prompt = Prompt(VirtualTokens(TOKENS, np.array([False, True, True])))
    assert inspect(prompt, MODEL, 1).tokens == inspect_tokens(TOKENS[1:], TABLE, PIECES.__getitem__, 5, 1).tokens


def test_without_a_tokenizer_pieces_are_numbers():
    found = inspect(Prompt(VirtualTokens(TOKENS)), dataclasses.replace(MODEL, tokenizer=None), 1)
    assert found.tokens[0].by_cosine[0].piece in ("#3", "#5")  # parallel, so their cosines differ by rounding


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
    (found,) = label_pieces(["film, dull"], tiny.tokenizer).values()
    assert "," in map(tiny.tokenizer.piece, tiny.tokenizer.encode("film, dull"))
    assert {tiny.tokenizer.piece(index) for index in found} >= {"▁film", "d"}
    assert not {"▁", ","} & {tiny.tokenizer.piece(index) for index in found}
    assert label_pieces(["☃"], tiny.tokenizer) == {"☃": frozenset()}, "unknown pieces are of no label"
    pairs = prompt_jax.load_model(str(tiny_folders["gpt2"])).tokenizer
    (found,) = label_pieces(["good"], pairs).values()
    inner, spaced = pairs.encode("good"), pairs.encode(" good")
    assert set(inner) | set(spaced) >= found and {inner[-1], spaced[-1]} <= found


def _prompt(*rows: list[float], mask: list[bool] | None = None) -> Prompt:
    return Prompt(VirtualTokens(np.array(rows, np.float32), None if mask is None else np.array(mask)))


def test_similarity_of_one_length_is_of_whole_prompts():
    """Token by token: the same tokens in another order are another prompt."""
    found = prompt_similarity(
        [_prompt([3, 0], [0, 4]), _prompt([0, 4], [3, 0]), _prompt([6, 0], [0, 8]), _prompt([-3, 0], [0, 0])]
    )
    np.testing.assert_allclose(found[0], [1, 0, 1, -0.6], atol=1e-12)
    np.testing.assert_array_equal(found, found.T)


def test_similarity_of_different_lengths_is_of_mean_tokens():
    unused = _prompt([100, 0], [0, 2], mask=[False, True])  # its length is 1
    found = prompt_similarity([_prompt([1, 0], [0, 1]), _prompt([1, 1], [1, 1], [4, 4]), unused])
    half = 0.5**0.5
    np.testing.assert_allclose(found, [[1, 1, half], [1, 1, half], [half, half, 1]], atol=1e-12)


def test_similarity_of_extreme_values():
    """Near the largest float32, and nothing at all."""
    found = prompt_similarity([_prompt([3e38, 3e38]), _prompt([0, 0]), _prompt([1, 1])])
    np.testing.assert_allclose(found, [[1, 0, 1], [0, 0, 0], [1, 0, 1]], atol=1e-12)


def test_similarity_of_what_cannot_be_compared():
    with pytest.raises(ValueError, match=r"different widths: \[2, 3\]"):
        prompt_similarity([_prompt([1, 2]), _prompt([1, 2, 3])])
    with pytest.raises(ValueError, match="the prompt is empty"):
        prompt_similarity([Prompt()])
    with pytest.raises(ValueError, match="prompts of different parts: encoder_tokens, and others"):
        task_similarity([_prompt([1, 2]), _with_prefix(0)])


def _with_prefix(seed: int, slots: int = 3) -> Prompt:
    """Two virtual tokens and a prefix of another length, one of whose slots is not used."""
    random = np.random.default_rng(seed)
    keys, values = random.normal(size=(2, 2, slots + 1, 2, 4)).astype(np.float32)
    tokens = random.normal(size=(2, 6)).astype(np.float32)
    return Prompt(VirtualTokens(tokens), decoder_self=Prefix(keys, values, np.arange(slots + 1) > 0))


def test_similarity_of_several_parts():
    prompts = [_with_prefix(0), _with_prefix(1)]
    flat = [
        np.concatenate([p.encoder_tokens.embeddings.ravel(), *(p.decoder_self.keys[:, s].ravel() for s in (1, 2, 3))])
        for p in prompts
    ]
    with_values = [
        np.concatenate([own, *(p.decoder_self.values[:, s].ravel() for s in (1, 2, 3))])
        for own, p in zip(flat, prompts, strict=True)
    ]
    found = prompt_similarity(prompts)
    assert found[0, 1] == pytest.approx(_cosine(*with_values), abs=1e-6) and found[0, 0] == pytest.approx(1)
    means = [
        np.concatenate(
            [p.encoder_tokens.embeddings.mean(axis=0)]
            + [getattr(p.decoder_self, name)[:, 1:].mean(axis=1).ravel() for name in ("keys", "values")]
        )
        for p in (_with_prefix(0), _with_prefix(1, slots=4))
    ]
    assert prompt_similarity([_with_prefix(0), _with_prefix(1, slots=4)])[0, 1] == pytest.approx(
        _cosine(*means), abs=1e-6
    )


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def test_similarity_of_tokens():
    prompt = _with_prefix(3)
    found = token_similarity(prompt)
    assert {name: cosines.shape for name, cosines in found.items()} == {
        "encoder_tokens": (2, 2),
        "decoder_self": (3, 3),
    }
    tokens = prompt.encoder_tokens.embeddings
    assert found["encoder_tokens"][0, 1] == pytest.approx(_cosine(tokens[0], tokens[1]), abs=1e-6)
    slots = [
        np.concatenate([prompt.decoder_self.keys[:, s].ravel(), prompt.decoder_self.values[:, s].ravel()])
        for s in (1, 3)
    ]
    assert found["decoder_self"][0, 2] == pytest.approx(_cosine(*slots), abs=1e-6)


def test_similarity_of_tasks():
    """By SPoT's definitions, of prompts of 4, 3 and 4 tokens; the order of tokens plays no part."""
    random = np.random.default_rng(0)
    rows = [random.normal(size=(count, 5)) * 10 ** random.normal(size=(count, 1)) for count in (4, 3, 4)]
    means, pairs = task_similarity([_prompt(*own.tolist()) for own in rows])
    for i, a in enumerate(rows):
        for j, b in enumerate(rows):
            assert means[i, j] == pytest.approx(_cosine(a.mean(axis=0), b.mean(axis=0)), abs=1e-6)
            assert pairs[i, j] == pytest.approx(np.mean([_cosine(x, y) for x in a for y in b]), abs=1e-6)
    turned, _ = task_similarity([_prompt(*rows[0].tolist()), _prompt(*rows[0][::-1].tolist())])
    assert turned[0, 1] == pytest.approx(1)
