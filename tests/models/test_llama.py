"""Llama, Mistral, Qwen, SmolLM3, Phi and Gemma: compare tiny models with Transformers, and check invariants."""

import jax
import numpy as np
import pytest

import prompt_jax
from adapters import assert_close, assert_rows_are_each_alone, random_prefix, random_text, random_tokens, whole
from prompt_jax import Prompt, VirtualTokens
from prompt_jax.checkpoints.save import save_model
from prompt_jax.config.decoding import Decoding
from prompt_jax.models import embedding_table, family
from prompt_jax.models.llama import MODEL_TYPES
from prompt_jax.models.prompt import Prefix


# Rotation in all layers; in some; and two kinds, with sliding windows.
@pytest.fixture(scope="module", params=("llama", "smollm3", "gemma3_text"))
def model(request, fixtures):
    return prompt_jax.load_model(str(fixtures / request.param / "base"))


@pytest.mark.parametrize("name", MODEL_TYPES)
def test_logits_and_tokens_equal_transformers(fixtures, name):
    """Rows with left padding; greedy and beam search. bfloat16 and int8 round activations; int8 also matrices."""
    folder, reference = str(fixtures / name / "base"), np.load(fixtures / name / "reference.npz")
    model, real = prompt_jax.load_model(folder), reference["inputs/attention_mask"].astype(bool)
    batch = {"inputs": reference["inputs/input_ids"].astype(np.int32), "inputs_mask": real}
    logits = np.asarray(prompt_jax.forward(model.params, model.config, batch))
    expected = reference["logits"][real]
    assert_close(logits[real], expected)
    for decoding, kind in ((Decoding(), "greedy"), (Decoding(beams=3), "beams")):
        tokens = prompt_jax.generate(model.params, model.config, batch, max_new_tokens=10, decoding=decoding)
        np.testing.assert_array_equal(tokens, reference[kind])
    for dtype, tolerance in (("bfloat16", 0.05), ("int8", 0.1)):
        rounded = prompt_jax.load_model(folder, dtype)
        logits = prompt_jax.forward(rounded.params, rounded.config, batch)
        assert rounded.params["embedding"].dtype == "bfloat16" and logits.dtype == "float32"
        difference = np.asarray(logits)[real] - expected
        assert np.sqrt(np.square(difference).mean() / np.square(expected).mean()) < tolerance


def test_a_text_before_a_text_is_its_prefix_and_its_virtual_tokens(model):
    """Keys after rotation and norms, at positions 0 to P - 1; sliding windows and padding included."""
    text = random_text(model, 2, 14)
    expected = np.asarray(prompt_jax.forward(model.params, model.config, whole(text)))
    kept = family(model.config).activations(model.params, model.config, whole(text[:, :8]))["decoder_self"]
    padded = {"inputs": np.pad(text[:, 8:], ((0, 0), (3, 1))), "inputs_mask": np.pad(text[:, 8:], ((0, 0), (3, 1))) > 0}
    for row in range(2):
        one = {key: value[row : row + 1] for key, value in padded.items()}
        prefix = Prompt(decoder_self=Prefix(*(leaf[:, row] for leaf in kept)))
        tokens = Prompt(VirtualTokens(np.asarray(embedding_table(model.params, model.config))[text[row, :8]]))
        for prompt in (prefix, tokens):
            assert_close(prompt_jax.forward(model.params, model.config, one, prompt)[0, 3:-1], expected[row, 8:])
        both = tokens.replace(decoder_self=Prefix(*(leaf[:, :3] for leaf in jax.tree.leaves(prefix))))
        both = both.replace(encoder_tokens=VirtualTokens(tokens.encoder_tokens.embeddings[3:]))
        assert_close(prompt_jax.forward(model.params, model.config, one, both)[0, 3:-1], expected[row, 8:])


def test_the_cache_continues_the_forward_pass(model):
    """Greedy tokens after a prefix or virtual tokens are those of the plain loop. They leave sliding windows."""
    text = random_text(model, 2, 6)
    for prompt in (random_prefix(model, 3), random_tokens(model, 3)):
        tokens = np.asarray(
            prompt_jax.generate(
                model.params, model.config, whole(text), prompt, max_new_tokens=8, decoding=Decoding(min_new_tokens=8)
            )
        )
        read = np.concatenate([text, tokens[:, :-1]], axis=1)
        logits = np.array(prompt_jax.forward(model.params, model.config, whole(read), prompt))[:, -8:]
        logits[..., model.config.eos_id] = -np.inf
        np.testing.assert_array_equal(logits.argmax(axis=-1), tokens)


@pytest.mark.parametrize("make", (random_tokens, random_prefix), ids=("tokens", "prefix"))
def test_mixed_prompts_are_each_alone(model, make):
    prompts = [make(model, 3), make(model, 5, seed=1), make(model, 4, seed=2, mask=np.array([True, False, True, True]))]
    assert_rows_are_each_alone(model, prompts, 3)


def test_an_infix_of_real_tokens_is_these_tokens(model):
    text = random_text(model, 1, 12)
    source = whole(text[:, :5]) | {"decoder_inputs": text[:, 8:]}
    kept = family(model.config).activations(model.params, model.config, whole(text[:, :8]))["decoder_self"]
    infix = Prompt(decoder_self=Prefix(*(leaf[:, 0, 5:] for leaf in kept), placement="after"))
    expected = np.asarray(prompt_jax.forward(model.params, model.config, whole(text)))[:, 8:]
    assert_close(prompt_jax.forward(model.params, model.config, source, infix), expected)


@pytest.mark.parametrize("name", MODEL_TYPES)
def test_a_saved_model_is_the_same(fixtures, name, tmp_path):
    """Also under the same fingerprint: config.json is written as it was read."""
    model = prompt_jax.load_model(str(fixtures / name / "base"))
    save_model(tmp_path / "model", model)
    again = prompt_jax.load_model(str(tmp_path / "model"))
    assert again.fingerprint == model.fingerprint and again.config == model.config
    jax.tree.map(np.testing.assert_array_equal, again.params, model.params)
