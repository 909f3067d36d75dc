"""BART: compare outputs with Transformers and PEFT, and check invariants."""

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
from prompt_jax.models import ContextError, family
from prompt_jax.models.prompt import Prefix

VARIANTS = ("base", *PROMPTS, "prompt_one_submodule", *PREFIXES)


@pytest.fixture(scope="module")
def model(fixtures):
    return prompt_jax.load_model(str(fixtures / "bart" / "base"))


@pytest.fixture(scope="module")
def reference(fixtures):
    return np.load(fixtures / "bart" / "reference.npz")


def adapter(fixtures, variant: str) -> Prompt | None:
    return None if variant == "base" else peft_prompt(fixtures / "bart" / variant)


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_peft(model, fixtures, reference, variant):
    logits = prompt_jax.forward(model.params, model.config, forward_batch(reference), adapter(fixtures, variant))
    assert_close(logits, reference[f"{variant}/logits"])


@pytest.mark.parametrize("variant", VARIANTS)
def test_greedy_tokens_equal_peft(model, fixtures, reference, variant):
    arguments = model.params, model.config, generate_batch(reference), adapter(fixtures, variant)
    tokens = prompt_jax.generate(*arguments, max_new_tokens=12)
    np.testing.assert_array_equal(tokens, reference[f"{variant}/greedy"][:, 1:])


def test_positions_shift_only_if_they_are_to(model, fixtures, reference):
    """PEFT's prefix without shifted positions (as in Li and Liang's code) gives different logits."""
    prompt, batch = peft_prompt(fixtures / "bart" / "prefix"), forward_batch(reference)
    unshifted = Prompt(decoder_self=prompt.decoder_self.replace(shift_positions=False))
    logits = np.asarray(prompt_jax.forward(model.params, model.config, batch, unshifted))
    assert np.abs(logits - reference["prefix/logits"]).max() > 0.1 * np.abs(logits).max()
    # Without shifted positions, a fully masked prefix has no effect.
    away = Prompt(decoder_self=unshifted.decoder_self.replace(mask=np.zeros(unshifted.decoder_self.slots, bool)))
    assert_close(
        prompt_jax.forward(model.params, model.config, batch, away),
        prompt_jax.forward(model.params, model.config, batch),
    )


def test_a_prefix_of_real_tokens_is_these_tokens(model):
    """decoder_self takes keys and values of the tokens alone; encoder_self and decoder_cross together take those of a
    run on [tokens; text]."""
    text, target = random_text(model, 1, 9), random_text(model, 1, 7, seed=1)
    config, params = model.config, model.params
    expected = np.asarray(prompt_jax.forward(params, config, whole(text) | {"decoder_inputs": target}))
    kept = family(config).activations(params, config, whole(text) | {"decoder_inputs": target})

    def prefix(site, slots):
        return Prefix(*(leaf[:, 0, :slots] for leaf in kept[site]))

    own = Prompt(decoder_self=prefix("decoder_self", 3))
    logits = prompt_jax.forward(params, config, whole(text) | {"decoder_inputs": target[:, 3:]}, own)
    assert_close(logits, expected[:, 3:])
    both = Prompt(encoder_self=prefix("encoder_self", 4), decoder_cross=prefix("decoder_cross", 4))
    logits = prompt_jax.forward(params, config, whole(text[:, 4:]) | {"decoder_inputs": target}, both)
    assert_close(logits, expected)


@pytest.mark.parametrize("padding", ("left", "both"))
@pytest.mark.parametrize("placement", ("before", "after"))
def test_padding_changes_nothing(model, padding, placement):
    text, target = random_text(model, 2, 6), random_text(model, 2, 4, seed=1)
    tokens = random_tokens(model, 3, mask=np.array([True, False, True]), placement=placement)
    prompt = Prompt(**random_prefix(model, 2).parts, encoder_tokens=tokens.encoder_tokens)
    before, after = (3, 0) if padding == "left" else (1, 2)
    inputs, mask = np.zeros((2, 9), np.int32), np.zeros((2, 9), bool)
    inputs[0, before + 2 : before + 6], mask[0, before + 2 : before + 6] = text[0, :4], True
    inputs[1, before : before + 6], mask[1, before : before + 6] = text[1], True
    batch = {"inputs": inputs, "inputs_mask": mask, "decoder_inputs": np.pad(target, [(0, 0), (before, after)])}
    batch["decoder_mask"] = np.pad(np.ones((2, 4), bool), [(0, 0), (before, after)])
    logits = np.asarray(prompt_jax.forward(model.params, model.config, batch, prompt))
    for row, own in enumerate((text[:1, :4], text[1:])):
        alone = whole(own) | {"decoder_inputs": target[row : row + 1]}
        expected = prompt_jax.forward(model.params, model.config, alone, prompt)
        assert_close(logits[row, before : before + 4], np.asarray(expected)[0])


@pytest.mark.slow
def test_mixed_prompts_are_each_alone(model):
    """Prompts at all sites, one with an unused slot, and rows without a prompt."""
    mask = np.array([True, False, True, True])
    prompts = [
        Prompt(**random_prefix(model, 4, seed, mask=m).parts, **random_tokens(model, 4, seed + 9, mask=m).parts)
        for seed, m in enumerate((None, None, mask))
    ]
    assert_rows_are_each_alone(model, prompts, 3)


def test_the_context_is_checked(model):
    """Encoder and decoder have 64 positions each; a prefix uses some of them if it shifts positions."""
    prefix = random_prefix(model, 10, sites=("decoder_self",))
    batch = whole(random_text(model, 1, 60))
    prompt_jax.forward(model.params, model.config, batch | {"decoder_inputs": random_text(model, 1, 54)}, prefix)
    for prompt, source, target, message in (
        (prefix, 60, 55, "prompt and target together have 65 tokens, and the model has 64 positions"),
        (random_tokens(model, 5), 60, 4, "prompt and source together have 65 tokens"),
        (None, 60, 65, "prompt and target together have 65"),
    ):
        batch = whole(random_text(model, 1, source)) | {"decoder_inputs": random_text(model, 1, target)}
        with pytest.raises(ContextError, match=message):
            prompt_jax.forward(model.params, model.config, batch, prompt)
    unshifted = Prompt(decoder_self=prefix.decoder_self.replace(shift_positions=False))
    batch = whole(random_text(model, 1, 60)) | {"decoder_inputs": random_text(model, 1, 64)}
    prompt_jax.forward(model.params, model.config, batch, unshifted)
