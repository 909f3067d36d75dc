"""Initializers against their definitions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adapters import random_prefix
from prompt_jax import Prompt, PromptMetadata, VirtualTokens, save_ensemble, save_prompt
from prompt_jax.errors import ConfigError
from prompt_jax.methods import initializers
from prompt_jax.methods.soft_prompt import PromptTuning
from prompt_jax.models.delta import Delta
from prompt_jax.prompt_files.io import ModelId

KEY = jax.random.key(0)


def init(model, labels=(), **options) -> np.ndarray:
    tokens = PromptTuning(**options).initialize(KEY, model, labels)["encoder_tokens"]
    assert tokens.dtype == jnp.float32
    return np.asarray(tokens)


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


def test_bfloat16_bases_give_float32_prompts():
    table = jnp.ones((9, 4), jnp.bfloat16)
    assert initializers.sampled_vocabulary(KEY, 3, table, 9).dtype == jnp.float32
    assert initializers.class_labels(KEY, 3, table, [[1, 2]], 9).dtype == jnp.float32
