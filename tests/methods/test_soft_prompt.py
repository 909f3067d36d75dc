"""Prompt tuning's options: initialization from a file, and the merged MLP."""

import dataclasses

import jax
import numpy as np
import pytest

from adapters import random_prefix
from initial_tokens import KEY, init
from prompt_jax import Prompt, PromptMetadata, VirtualTokens, save_ensemble, save_prompt
from prompt_jax.errors import ConfigError
from prompt_jax.methods.soft_prompt import PromptTuning
from prompt_jax.models.delta import Delta
from prompt_jax.prompt_files.io import ModelId


@pytest.mark.parametrize("name", ("p.npz", "p.npy"))
@pytest.mark.filterwarnings("ignore:.*does not say which base")
def test_file_is_exact(tiny, tmp_path, name):
    tokens = np.random.default_rng(0).normal(size=(4, 64)).astype(np.float32)
    save_prompt(tmp_path / name, Prompt(VirtualTokens(tokens)), PromptMetadata())
    np.testing.assert_array_equal(init(tiny, length=4, init="file", init_file=tmp_path / name), tokens)
    with pytest.raises(ConfigError, match=r"has 4 virtual tokens, but prompt.length is 6"):
        init(tiny, length=6, init="file", init_file=tmp_path / name)


def test_a_member_of_a_file(tiny, tmp_path):
    """The member has its length before stacking: unused slots do not count."""
    random = np.random.default_rng(0)
    prompts = [Prompt(VirtualTokens(random.normal(size=(n, 64)).astype(np.float32))) for n in (4, 3)]
    base = ModelId(tiny.name, None, tiny.fingerprint)
    save_ensemble(tmp_path / "e.npz", prompts, [PromptMetadata(base=base)] * 2)
    options = {"init": "file", "init_file": tmp_path / "e.npz"}
    for number, prompt in enumerate(prompts):
        tokens = prompt.encoder_tokens.embeddings
        actual = init(tiny, length=len(tokens), init_member=number, **options)
        np.testing.assert_array_equal(actual, tokens)
    masked = VirtualTokens(prompts[0].encoder_tokens.embeddings, np.array([True, False, True, True]))
    save_prompt(tmp_path / "m.npz", Prompt(masked), PromptMetadata(base=base))
    actual = init(tiny, length=3, init="file", init_file=tmp_path / "m.npz")
    np.testing.assert_array_equal(actual, masked.embeddings[[0, 2, 3]])
    for changes, message in (
        ({}, r"e.npz has 2 prompts: choose one with prompt.init_member, or .* from 0 to 1"),
        ({"init_member": 2}, r"prompt.init_member is 2, and .*e.npz has 2 prompts, numbered from 0"),
        ({"init_member": 1}, r"has 3 virtual tokens, but prompt.length is 4"),
    ):
        with pytest.raises(ConfigError, match=message):
            init(tiny, length=4, **options, **changes)


def test_a_file_of_another_base_or_kind(tiny, tmp_path):
    tokens = np.ones((2, 64), np.float32)
    other = PromptMetadata(base=ModelId("elsewhere", None, "sha256:1"))
    save_prompt(tmp_path / "p.npz", Prompt(VirtualTokens(tokens)), other)
    with pytest.raises(ConfigError, match=r"p.npz was trained on elsewhere \(sha256:1\), but the base is"):
        init(tiny, length=2, init="file", init_file=tmp_path / "p.npz")
    own = PromptMetadata(base=ModelId(tiny.name, None, tiny.fingerprint))
    prefix = random_prefix(tiny, 2)
    for prompt, has in (
        (prefix, "encoder_self and decoder_self and decoder_cross"),
        (dataclasses.replace(prefix, encoder_tokens=VirtualTokens(tokens)), "encoder_tokens and encoder_self"),
    ):
        save_prompt(tmp_path / "x.npz", prompt, own)
        with pytest.raises(ConfigError, match=f"x.npz has {has}.*; expected virtual tokens only"):
            init(tiny, length=2, init="file", init_file=tmp_path / "x.npz")


def test_a_file_of_another_placement_or_of_a_base(tiny, tmp_path):
    own = PromptMetadata(base=ModelId(tiny.name, None, tiny.fingerprint))
    save_prompt(tmp_path / "p.npz", Prompt(VirtualTokens(np.ones((2, 64), np.float32), placement="after")), own)
    with pytest.raises(ConfigError, match="p.npz has placement 'after', but prompt.placement is 'before'"):
        init(tiny, length=2, init="file", init_file=tmp_path / "p.npz")
    save_prompt(tmp_path / "b.npz", Delta({"embedding": np.asarray(tiny.params["embedding"])}), own)
    with pytest.raises(ConfigError, match="b.npz changes weights of the base"):
        init(tiny, length=2, init="file", init_file=tmp_path / "b.npz")


def test_a_seed_is_an_initialization(tiny):
    first, again = (init(tiny, length=5, init="vocab", init_vocab=200) for _ in range(2))
    other = PromptTuning(length=5, init="vocab", init_vocab=200).initialize(jax.random.key(1), tiny)
    np.testing.assert_array_equal(first, again)
    assert (first != np.asarray(other["encoder_tokens"])).any()


def test_missing_options_are_named(tiny):
    with pytest.raises(ConfigError, match="'labels' needs a task with labels, or prompt.init_labels"):
        init(tiny, length=5, init="labels")
    with pytest.raises(ConfigError, match="has no tokens to initialize a prompt from"):
        init(tiny, length=5, init="text", init_text="  ")


def test_the_mlp_makes_the_virtual_tokens(tiny):
    """By hand; its input table is initialized as the tokens would be."""
    config = PromptTuning(length=3, init="normal", mlp_width=5, placement="after")
    variables = config.initialize(KEY, tiny)["encoder_tokens"]
    first, second = jax.tree.map(np.asarray, variables["layers"])
    assert variables["table"].shape == (3, 64) and first["weights"].shape == (64, 5)
    hidden = np.tanh(np.asarray(variables["table"]) @ first["weights"] + first["bias"])
    tokens = config.apply({"encoder_tokens": variables}).encoder_tokens
    np.testing.assert_allclose(tokens.embeddings, hidden @ second["weights"] + second["bias"], rtol=1e-4, atol=1e-5)
    assert tokens.placement == "after"
