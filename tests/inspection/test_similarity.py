"""Similarity of virtual tokens, prompts and tasks, against plain cosines."""

import numpy as np
import pytest

from prompt_jax.inspection.similarity import prompt_similarity, task_similarity, token_similarity
from prompt_jax.models.prompt import Prefix, Prompt, VirtualTokens


def _prompt(*rows: list[float], mask: list[bool] | None = None) -> Prompt:
    return Prompt(VirtualTokens(np.array(rows, np.float32), None if mask is None else np.array(mask)))


def test_similarity_of_one_length_is_of_whole_prompts():
    """The same tokens in another order are another prompt."""
    actual = prompt_similarity(
        [_prompt([3, 0], [0, 4]), _prompt([0, 4], [3, 0]), _prompt([6, 0], [0, 8]), _prompt([-3, 0], [0, 0])]
    )
    np.testing.assert_allclose(actual[0], [1, 0, 1, -0.6], atol=1e-12)
    np.testing.assert_array_equal(actual, actual.T)


def test_similarity_of_different_lengths_is_of_mean_tokens():
    unused = _prompt([100, 0], [0, 2], mask=[False, True])  # its length is 1
    actual = prompt_similarity([_prompt([1, 0], [0, 1]), _prompt([1, 1], [1, 1], [4, 4]), unused])
    half = 0.5**0.5
    np.testing.assert_allclose(actual, [[1, 1, half], [1, 1, half], [half, half, 1]], atol=1e-12)


def test_similarity_of_extreme_values():
    """Values near the largest float32, and zeros."""
    actual = prompt_similarity([_prompt([3e38, 3e38]), _prompt([0, 0]), _prompt([1, 1])])
    np.testing.assert_allclose(actual, [[1, 0, 1], [0, 0, 0], [1, 0, 1]], atol=1e-12)


def test_incomparable_prompts_have_no_similarity():
    with pytest.raises(ValueError, match=r"different widths: \[2, 3\]"):
        prompt_similarity([_prompt([1, 2]), _prompt([1, 2, 3])])
    with pytest.raises(ValueError, match="the prompt is empty"):
        prompt_similarity([Prompt()])
    with pytest.raises(ValueError, match="prompts of different parts: encoder_tokens, and others"):
        task_similarity([_prompt([1, 2]), _with_prefix(0)])


def _with_prefix(seed: int, slots: int = 3) -> Prompt:
    """Two virtual tokens and a prefix of another length with one masked slot."""
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
    actual = prompt_similarity(prompts)
    assert actual[0, 1] == pytest.approx(_cosine(*with_values), abs=1e-6) and actual[0, 0] == pytest.approx(1)
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
    actual = token_similarity(prompt)
    assert {name: cosines.shape for name, cosines in actual.items()} == {
        "encoder_tokens": (2, 2),
        "decoder_self": (3, 3),
    }
    tokens = prompt.encoder_tokens.embeddings
    assert actual["encoder_tokens"][0, 1] == pytest.approx(_cosine(tokens[0], tokens[1]), abs=1e-6)
    slots = [
        np.concatenate([prompt.decoder_self.keys[:, s].ravel(), prompt.decoder_self.values[:, s].ravel()])
        for s in (1, 3)
    ]
    assert actual["decoder_self"][0, 2] == pytest.approx(_cosine(*slots), abs=1e-6)


def test_similarity_of_tasks():
    """SPoT's definitions, with prompts of 4, 3 and 4 tokens. The order of tokens does not matter."""
    random = np.random.default_rng(0)
    rows = [random.normal(size=(count, 5)) * 10 ** random.normal(size=(count, 1)) for count in (4, 3, 4)]
    means, pairs = task_similarity([_prompt(*own.tolist()) for own in rows])
    for i, a in enumerate(rows):
        for j, b in enumerate(rows):
            assert means[i, j] == pytest.approx(_cosine(a.mean(axis=0), b.mean(axis=0)), abs=1e-6)
            assert pairs[i, j] == pytest.approx(np.mean([_cosine(x, y) for x in a for y in b]), abs=1e-6)
    turned, _ = task_similarity([_prompt(*rows[0].tolist()), _prompt(*rows[0][::-1].tolist())])
    assert turned[0, 1] == pytest.approx(1)
