"""The skeleton of encoder-decoders: padding, placement and masks of prompts, stacks of layers, dropout."""

import dataclasses

import jax
import numpy as np
import pytest

import prompt_jax
from adapters import (
    assert_close,
    forward_batch,
    random_prefix,
    random_text,
    random_tokens,
    whole,
)
from prompt_jax import Prompt, VirtualTokens
from prompt_jax.models.prompt import PromptPartError

PADDINGS = {"right": [0, 1, 2, 3, 4], "left": [3, 4, 5, 6, 7], "scattered": [0, 2, 3, 6, 7]}


@pytest.fixture(scope="module")
def model(fixtures):
    return prompt_jax.load_model(str(fixtures / "t5_v11" / "base"))


@pytest.fixture(scope="module")
def reference(fixtures):
    return np.load(fixtures / "t5_v11" / "reference.npz")


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("placement", ("before", "after"))
def test_results_do_not_depend_on_padding_and_other_rows(model, padding, placement):
    """A row of five tokens gives the same result with any padding, and next to another row."""
    rng = np.random.default_rng(1)
    row, decoder_inputs = rng.integers(3, 256, 5).astype(np.int32), np.array([[0, 7, 9]], np.int32)
    prompt = random_tokens(model, 4, placement=placement)
    alone = {"inputs": row[None], "inputs_mask": np.ones((1, 5), bool), "decoder_inputs": decoder_inputs}
    expected = prompt_jax.forward(model.params, model.config, alone, prompt)[0]

    inputs, mask = rng.integers(3, 256, (2, 8)).astype(np.int32), np.ones((2, 8), bool)
    mask[0] = np.isin(np.arange(8), PADDINGS[padding])
    inputs[0, mask[0]] = row
    batch = {"inputs": inputs, "inputs_mask": mask, "decoder_inputs": np.repeat(decoder_inputs, 2, axis=0)}
    assert_close(prompt_jax.forward(model.params, model.config, batch, prompt)[0], expected)
    np.testing.assert_array_equal(
        prompt_jax.generate(model.params, model.config, batch, prompt, max_new_tokens=6)[0],
        prompt_jax.generate(model.params, model.config, alone, prompt, max_new_tokens=6)[0],
    )


def test_decoder_padding_does_not_matter(model):
    """With a decoder_mask, the target may be padded on any side; logits are at the positions of their tokens."""
    inputs = np.array([[5, 6, 7, 1]], np.int32)
    batch = {"inputs": inputs, "inputs_mask": np.ones((1, 4), bool), "decoder_inputs": np.array([[0, 8, 9]], np.int32)}
    expected = prompt_jax.forward(model.params, model.config, batch)[0]
    padded = {**batch, "decoder_inputs": np.array([[4, 0, 4, 8, 9]], np.int32)}
    padded["decoder_mask"] = np.array([[False, True, False, True, True]])
    assert_close(prompt_jax.forward(model.params, model.config, padded)[0][np.array([1, 3, 4])], expected)


@pytest.mark.parametrize("placement", ("before", "after"))
def test_prompt_of_real_embeddings_is_those_tokens(model, placement):
    """Embeddings of tokens, used as virtual tokens, give the same result as the tokens."""
    tokens, text = np.array([11, 12, 13], np.int32), np.array([21, 22, 23, 24, 1], np.int32)
    prompt = Prompt(VirtualTokens(model.params["embedding"][tokens], placement=placement))
    batch = {
        "inputs": np.array([[*text, 0, 0]], np.int32),
        "inputs_mask": np.array([[True] * 5 + [False] * 2]),
        "decoder_inputs": np.array([[0, 30]], np.int32),
    }
    whole = np.concatenate([tokens, text] if placement == "before" else [text, tokens])[None]
    spelled = {**batch, "inputs": whole, "inputs_mask": np.ones((1, 8), bool)}
    with_prompt = prompt_jax.forward(model.params, model.config, batch, prompt)
    assert_close(with_prompt, prompt_jax.forward(model.params, model.config, spelled))
    other = dataclasses.replace(prompt.encoder_tokens, placement="after" if placement == "before" else "before")
    elsewhere = prompt_jax.forward(model.params, model.config, batch, Prompt(other))
    assert np.abs(elsewhere - with_prompt).max() > 0.1


@pytest.mark.parametrize("placement", ("before", "after"))
def test_masked_slots_have_no_effect(model, reference, placement):
    """A prompt with unused slots away from the text equals the shorter prompt."""
    short = random_tokens(model, 4, placement=placement).encoder_tokens
    unused = np.full((3, model.config.d_model), 7.0, np.float32)
    parts = [unused, short.embeddings] if placement == "before" else [short.embeddings, unused]
    mask = np.concatenate(parts)[:, 0] != 7.0
    padded = VirtualTokens(np.concatenate(parts), mask, placement)
    batch = forward_batch(reference)
    expected = prompt_jax.forward(model.params, model.config, batch, Prompt(short))
    assert_close(prompt_jax.forward(model.params, model.config, batch, Prompt(padded)), expected)


@pytest.mark.parametrize("placement", ("before", "after"))
def test_unused_slots_between_used_ones_take_no_position(model, reference, placement):
    whole = random_tokens(model, 5, placement=placement).encoder_tokens
    mask = np.array([True, False, True, False, True])
    batch = forward_batch(reference)
    short = VirtualTokens(whole.embeddings[mask], placement=placement)
    expected = prompt_jax.forward(model.params, model.config, batch, Prompt(short))
    gaps = Prompt(VirtualTokens(whole.embeddings, mask, placement))
    assert_close(prompt_jax.forward(model.params, model.config, batch, gaps), expected)


def test_a_row_of_padding_is_finite(model, reference):
    batch = forward_batch(reference)
    batch["inputs_mask"][0] = False
    assert np.isfinite(prompt_jax.forward(model.params, model.config, batch)).all()


def test_stacks_may_be_split(model, reference):
    """Splitting `layers` into two stacks changes neither logits nor generation."""
    params = jax.tree.map(lambda x: x, model.params)
    for side in ("encoder", "decoder"):
        (stack,) = params[side]["layers"]
        params[side]["layers"] = tuple(jax.tree.map(lambda x, i=i: x[i : i + 1], stack) for i in range(2))
    batch = forward_batch(reference)
    expected = prompt_jax.forward(model.params, model.config, batch)
    np.testing.assert_array_equal(prompt_jax.forward(params, model.config, batch), expected)
    np.testing.assert_array_equal(
        prompt_jax.generate(params, model.config, batch, max_new_tokens=5),
        prompt_jax.generate(model.params, model.config, batch, max_new_tokens=5),
    )


def test_dropout_needs_a_key(model, reference):
    batch = forward_batch(reference)
    without = prompt_jax.forward(model.params, model.config, batch)
    first = prompt_jax.forward(model.params, model.config, batch, key=jax.random.key(1))
    again = prompt_jax.forward(model.params, model.config, batch, key=jax.random.key(1))
    other = prompt_jax.forward(model.params, model.config, batch, key=jax.random.key(2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - without).max() > 0.1 and np.abs(first - other).max() > 0.1
    still = dataclasses.replace(model.config, dropout_rate=0.0)
    assert_close(prompt_jax.forward(model.params, still, batch, key=jax.random.key(1)), without)


@pytest.mark.parametrize("name", ("t5_v11", "bart"))
def test_an_infix_has_no_place(fixtures, name):
    model = prompt_jax.load_model(str(fixtures / name / "base"))
    batch = whole(random_text(model, 1, 4)) | {"decoder_inputs": random_text(model, 1, 2)}
    with pytest.raises(PromptPartError, match="no place for a prefix of encoder_self after the input"):
        prompt_jax.forward(model.params, model.config, batch, random_prefix(model, 2, placement="after"))
