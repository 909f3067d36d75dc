"""T5: compare outputs with Transformers and PEFT, and check invariants."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import prompt_jax
from adapters import (
    PREFIXES,
    PROMPTS,
    assert_close,
    assert_rows_are_each_alone,
    forward_batch,
    generate_batch,
    peft_prompt,
    random_prefix,
    random_text,
    random_tokens,
    whole,
)
from prompt_jax import Prompt
from prompt_jax.models import family
from prompt_jax.models.prompt import Prefix

OWN_MODELS = ("t5_v10", "t5_deep")


@pytest.fixture(scope="module")
def model(fixtures):
    return prompt_jax.load_model(str(fixtures / "t5_v11" / "base"))


@pytest.fixture(scope="module")
def reference(fixtures):
    return np.load(fixtures / "t5_v11" / "reference.npz")


@pytest.mark.parametrize("name", ("base", *PROMPTS, "prompt_one_submodule", *PREFIXES))
def test_logits_equal_peft(model, reference, fixtures, name):
    prompt = None if name == "base" else peft_prompt(fixtures / "t5_v11" / name)
    logits = prompt_jax.forward(model.params, model.config, forward_batch(reference), prompt)
    assert logits.dtype == jnp.float32
    assert_close(logits, reference[f"{name}/logits"])


@pytest.mark.parametrize("name", ("base", *PROMPTS, "prompt_one_submodule", *PREFIXES))
def test_greedy_tokens_equal_peft(model, reference, fixtures, name):
    prompt = None if name == "base" else peft_prompt(fixtures / "t5_v11" / name)
    expected = reference[f"{name}/greedy"][:, 1:]  # without the start token
    tokens = prompt_jax.generate(
        model.params, model.config, generate_batch(reference), prompt, max_new_tokens=expected.shape[1]
    )
    np.testing.assert_array_equal(tokens, expected)


@pytest.mark.parametrize("name", ("prompt", "prompt_one_submodule", "ensemble_0"))
def test_gradient_equals_peft(model, reference, fixtures, name):
    prompt = peft_prompt(fixtures / "t5_v11" / name)
    labels = reference["inputs/forward/labels"]

    def loss(prompt):
        logits = prompt_jax.forward(model.params, model.config, forward_batch(reference), prompt)
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), np.maximum(labels, 0)[..., None], axis=-1)[..., 0]
        return -jnp.where(labels >= 0, chosen, 0.0).sum() / (labels >= 0).sum()

    value, gradient = jax.value_and_grad(loss)(prompt)
    np.testing.assert_allclose(value, reference[f"{name}/loss"], rtol=1e-5)
    length = gradient.encoder_tokens.embeddings.shape[0]
    assert_close(gradient.encoder_tokens.embeddings, reference[f"{name}/grad"][:length], 1e-4)


@pytest.mark.parametrize("name", OWN_MODELS)
def test_fixtures_equal_hugging_face(fixtures, name):
    """T5 1.0 (relu, tied, scaled output), and a model of unequal depths with d_kv * heads != d_model."""
    model = prompt_jax.load_model(str(fixtures / name / "base"))
    reference = np.load(fixtures / name / "reference.npz")
    logits = prompt_jax.forward(model.params, model.config, forward_batch(reference))
    assert_close(logits, reference["base/logits"])
    expected = reference["base/greedy"][:, 1:]
    batch = {name: value for name, value in forward_batch(reference).items() if name != "decoder_inputs"}
    tokens = prompt_jax.generate(model.params, model.config, batch, max_new_tokens=expected.shape[1])
    np.testing.assert_array_equal(tokens, expected)


def test_a_prefix_of_real_tokens_is_these_tokens(model):
    """decoder_self takes keys and values of the tokens alone; encoder_self and decoder_cross together take those of a
    run on [tokens; text]."""
    text, target = random_text(model, 1, 40), random_text(model, 1, 25, seed=1)
    config, params = model.config, model.params
    expected = np.asarray(prompt_jax.forward(params, config, whole(text) | {"decoder_inputs": target}))
    kept = family(config).activations(params, config, whole(text) | {"decoder_inputs": target})

    def prefix(site, slots):
        return Prefix(*(leaf[:, 0, :slots] for leaf in kept[site]))

    own = Prompt(decoder_self=prefix("decoder_self", 7))
    logits = prompt_jax.forward(params, config, whole(text) | {"decoder_inputs": target[:, 7:]}, own)
    assert_close(logits, expected[:, 7:])
    both = Prompt(encoder_self=prefix("encoder_self", 12), decoder_cross=prefix("decoder_cross", 12))
    logits = prompt_jax.forward(params, config, whole(text[:, 12:]) | {"decoder_inputs": target}, both)
    assert_close(logits, expected)


# Below and above the head width, where cross-attention takes another path.
@pytest.mark.parametrize("length", (pytest.param(3, marks=pytest.mark.slow), 20))
def test_prefixes_of_rows_are_each_alone(model, length):
    """Virtual tokens and prefixes at all sites, one with an unused slot, and rows without."""
    mask = np.array([True, False, True, True])
    prompts = [
        Prompt(**random_prefix(model, 4, seed, mask=m).parts, **random_tokens(model, 4, seed + 9, mask=m).parts)
        for seed, m in enumerate((None, None, mask))
    ]
    assert_rows_are_each_alone(model, prompts, length)


def test_short_and_long_targets_agree(model, reference):
    """Cross-attention takes another path for targets shorter than the head width (16)."""
    batch, prompt = forward_batch(reference), random_tokens(model, 3)
    long = np.concatenate([batch["decoder_inputs"], np.full((3, 14), 5, np.int32)], axis=1)
    assert batch["decoder_inputs"].shape[1] < model.config.d_kv < long.shape[1]
    expected = prompt_jax.forward(model.params, model.config, {**batch, "decoder_inputs": long}, prompt)[:, :6]
    assert_close(prompt_jax.forward(model.params, model.config, batch, prompt), expected)


def test_bfloat16_is_near(fixtures, model, reference):
    half = prompt_jax.load_model(str(fixtures / "t5_v11" / "base"), dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(half.params)} == {jnp.dtype("bfloat16")}
    logits = prompt_jax.forward(half.params, half.config, forward_batch(reference), random_tokens(model, 5))
    exact = prompt_jax.forward(model.params, model.config, forward_batch(reference), random_tokens(model, 5))
    assert logits.dtype == jnp.float32
    assert_close(logits, exact, 0.05)
    assert half.fingerprint == model.fingerprint
