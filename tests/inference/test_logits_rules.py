"""Rules of generation: settings that do not fit the model, and single rules by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import prompt_jax
import prompt_jax.inference.decoding
from adapters import random_text, whole
from prompt_jax.config.decoding import Decoding
from prompt_jax.errors import ConfigError
from prompt_jax.inference.decoding import generate
from prompt_jax.inference.logits_rules import NO_TOKEN, Given, apply_rules, is_forced, log_softmax, merged_settings
from prompt_jax.models import ContextError
from prompt_jax.models.generation_settings import GenerationSettings
from small_model import SmallConfig


def test_options_that_do_not_fit_the_model(model, fixtures):
    batch = whole(random_text(model, 1, 4))
    for options, message in (
        ({"decoding": Decoding(temperature=1.0)}, "decoding.temperature is 1.0, and sampling needs a `key`"),
        ({"decoding": Decoding(min_new_tokens=9)}, "decoding.min_new_tokens is 9, and an answer has at most 8 tokens"),
        ({"decoding": Decoding(banned_tokens=(256,))}, "banned_tokens has 256; ids go from 0 to 255"),
        ({"decoding": Decoding(beams=2, banned_tokens=(-1,))}, "banned_tokens has -1"),
        ({"max_new_tokens": 0}, "max_new_tokens must be positive"),
        ({"decoding": Decoding(length_penalty=0.6)}, "need beam search: set decoding.beams above 1"),
        ({"decoding": Decoding(early_stopping="never")}, "need beam search: set decoding.beams above 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            generate(model.params, model.config, batch, **{"max_new_tokens": 8, **options})
    bart = prompt_jax.load_model(str(fixtures / "bart" / "base"))
    forced = dataclasses.replace(bart.config, generation=GenerationSettings(forced_first=5))
    with pytest.raises(ConfigError, match="5 is banned, and the checkpoint's settings put it first"):
        generate(bart.params, forced, batch, decoding=Decoding(banned_tokens=(5,)))
    with pytest.raises(ContextError, match="and the model has 64 positions"):
        generate(bart.params, bart.config, batch, max_new_tokens=65)


# --------------------------------------------------------------------------------------------------------------
# By hand: a vocabulary of six tokens. The input is 2 3 2, the start token 0, and 4 2 have been generated.

SCORES = np.array([[[1.0, -1.0, 2.0, -2.0, 4.0, 0.5]]], np.float32)
GENERATED = np.array([[[4, 2, 5, 5]]], np.int32)  # of four; later positions do not count


def given(causal: bool) -> Given:
    before = [NO_TOKEN, 2, 3, 2, 0] if causal else [0]
    length = sum(token != NO_TOKEN for token in before)
    tokens, source = np.array([before], np.int32), np.array([[2, 3, 2, NO_TOKEN]], np.int32)
    return Given(jnp.asarray(tokens), jnp.array([length]), jnp.asarray(source), jnp.array([4]))


def scored(*, causal: bool = False, position: int = 2, **rules) -> list[float]:
    settings = GenerationSettings(end_ids=(1,), **rules)
    return np.asarray(apply_rules(jnp.asarray(SCORES), position, jnp.asarray(GENERATED), given(causal), settings))[0, 0]


def hidden(scores) -> list[int]:
    """Return the tokens that are not allowed."""
    return np.flatnonzero(np.isneginf(scores)).tolist()


def test_the_repetition_penalty_divides_positive_and_multiplies_negative_scores():
    np.testing.assert_array_equal(scored(repetition_penalty=2.0), [0.5, -1, 1, -2, 2, 0.5])
    np.testing.assert_array_equal(scored(repetition_penalty=2.0, causal=True), [0.5, -1, 1, -4, 2, 0.5])


def test_no_ngram_is_repeated():
    """A causal model's text is 2 3 2 0 4 2; the 2-gram 2 3 comes before."""
    assert hidden(scored(no_repeat_ngram=1)) == [0, 2, 4]
    assert hidden(scored(no_repeat_ngram=2)) == []
    assert hidden(scored(no_repeat_ngram=2, causal=True)) == [0, 3]
    assert hidden(scored(encoder_no_repeat_ngram=2)) == [3]
    assert hidden(scored(encoder_no_repeat_ngram=1)) == [2, 3]


def test_the_end_token_waits_for_the_minimum():
    """`min_length` counts the tokens that generation starts from."""
    assert [hidden(scored(min_new_tokens=count)) for count in (2, 3)] == [[], [1]]
    assert [hidden(scored(min_length=count)) for count in (3, 4)] == [[], [1]]
    assert [hidden(scored(min_length=count, causal=True)) for count in (6, 7)] == [[], [1]]


def test_forced_and_banned_tokens():
    assert hidden(scored(forced_first=3, position=0)) == [0, 1, 2, 4, 5] and scored(forced_first=3, position=0)[3] == 0
    assert hidden(scored(forced_first=3, position=1)) == []
    assert hidden(scored(forced_last=(1, 5), position=3)) == [0, 2, 3, 4]
    assert hidden(scored(banned=(4,), banned_first=(2,))) == [4]
    assert hidden(scored(banned=(4,), banned_first=(2,), position=0)) == [2, 4]
    assert hidden(scored(forced_first=3, banned_first=(2,), position=1)) == [2]
    rules = GenerationSettings(forced_first=3, forced_last=(1,))
    limits = jnp.array([2, 4])
    assert [is_forced(position, limits, rules).tolist() for position in (0, 1, 2, 3)] == [
        [True, True],
        [True, False],
        [True, False],
        [True, True],
    ]


def test_settings_of_decoding_override_the_checkpoints():
    config = SmallConfig(generation=GenerationSettings(min_length=5, beams=4, no_repeat_ngram=3, banned=(2,)))
    merged = merged_settings(config, Decoding(min_new_tokens=2, banned_tokens=(4,), no_repeat_ngram=0), 8)
    assert (merged.end_ids, merged.banned, merged.beams) == ((1,), (2, 4), 4)
    assert (merged.min_length, merged.min_new_tokens, merged.no_repeat_ngram) == (0, 2, 0)
    assert merged_settings(config, Decoding(temperature=1.0), 8).beams == 1
    unsupported = SmallConfig(generation=GenerationSettings(not_applied=("num_beam_groups=2",)))
    with pytest.raises(ConfigError, match="settings have num_beam_groups=2, which cannot be applied: remove them"):
        merged_settings(unsupported, Decoding(), 8)


def test_one_logit_that_is_not_finite_makes_its_position_nan():
    logits = np.array([[0.0, 1.0], [0.0, -np.inf], [np.nan, 0.0]], np.float32)
    result = np.asarray(log_softmax(jnp.asarray(logits)))
    np.testing.assert_allclose(result[0], [-np.log1p(np.e), 1 - np.log1p(np.e)], rtol=1e-6)
    assert np.isnan(result[1:]).all()


# --------------------------------------------------------------------------------------------------------------
# On a model


def test_settings_beyond_the_length_of_an_answer(tiny):
    """An n-gram longer than the text never repeats; a minimum that is too long bans the end token."""
    batch = whole(random_text(tiny, 2, 4))

    def tokens(**changes):
        config = dataclasses.replace(tiny.config, generation=GenerationSettings(**changes))
        return prompt_jax.generate(tiny.params, config, batch, max_new_tokens=3)

    for changes in ({"no_repeat_ngram": 10**9}, {"encoder_no_repeat_ngram": 10**9}):
        np.testing.assert_array_equal(tokens(**changes), tokens())
    assert tiny.config.eos_id not in np.asarray(tokens(min_new_tokens=9))


@pytest.fixture
def with_settings(tiny):
    def make(**settings):
        return dataclasses.replace(tiny.config, generation=GenerationSettings(**settings))

    return make


def test_the_checkpoints_settings_are_defaults_and_decoding_overrides_them(tiny, with_settings):
    batch = whole(random_text(tiny, 4, 6))

    def run(config, **decoding):
        return np.asarray(
            prompt_jax.generate(tiny.params, config, batch, max_new_tokens=8, decoding=Decoding(**decoding))
        ).tolist()

    config = with_settings(beams=3, length_penalty=0.0, no_repeat_ngram=2, repetition_penalty=1.4, min_new_tokens=3)
    plain = with_settings()
    own = {"beams": 3, "length_penalty": 0.0, "no_repeat_ngram": 2, "repetition_penalty": 1.4, "min_new_tokens": 3}
    assert run(config) == run(plain, **own) != run(plain)
    off = {"beams": 1, "no_repeat_ngram": 0, "repetition_penalty": 1.0, "min_new_tokens": 0}
    assert run(config, **off) == run(plain)
    assert run(with_settings(min_length=6), min_new_tokens=0) == run(plain), "both are overridden"
    assert run(with_settings(banned=(5,)), banned_tokens=(6,)) == run(plain, banned_tokens=(5, 6)), "both are banned"


def test_sampling_has_no_beams(tiny, with_settings):
    batch, options = whole(random_text(tiny, 2, 6)), {"max_new_tokens": 5, "key": jax.random.key(0)}
    decoding = Decoding(temperature=1.0)
    actual = prompt_jax.generate(tiny.params, with_settings(beams=4), batch, decoding=decoding, **options)
    np.testing.assert_array_equal(
        actual, prompt_jax.generate(tiny.params, tiny.config, batch, decoding=decoding, **options)
    )


@pytest.mark.parametrize(
    ("settings", "most"), [({}, 32), ({"max_new_tokens": 4}, 4), ({"max_length": 6}, 5), ({"max_length": 1}, 1)]
)
def test_the_greatest_length_is_the_checkpoints(tiny, with_settings, settings, most):
    batch = whole(random_text(tiny, 2, 5))
    assert prompt_jax.generate(tiny.params, with_settings(**settings), batch).shape == (2, most)
    assert prompt_jax.generate(tiny.params, with_settings(**settings), batch, max_new_tokens=3).shape == (2, 3)


def test_a_causal_models_lengths_count_its_text(fixtures):
    """Lengths count the real tokens of each row, without padding."""
    model = prompt_jax.load_model(str(fixtures / "gpt2" / "base"))
    batch = whole(random_text(model, 2, 6))
    batch["inputs_mask"][1, :4] = False
    config = dataclasses.replace(model.config, generation=GenerationSettings(max_length=10, min_length=9))
    tokens = np.asarray(prompt_jax.generate(model.params, config, batch))
    assert tokens.shape == (2, 8)  # 10, less two of text
    assert (tokens[0, 4:] == config.pad_id).all() and not (tokens[0, :3] == config.eos_id).any()
    assert not (tokens[1, :7] == config.eos_id).any()


def test_rules_do_not_depend_on_padding(fixtures):
    """In a causal model, whose input counts for n-grams and penalties, a row's answer does not depend on others."""
    model = prompt_jax.load_model(str(fixtures / "gpt2" / "base"))
    rng = np.random.default_rng(0)
    texts = [rng.integers(10, 14, length).astype(np.int32) for length in (4, 9, 4)]
    inputs, mask = np.zeros((3, 9), np.int32), np.zeros((3, 9), bool)
    for row, text in enumerate(texts):  # padded on the left, not at all, and on the right
        place = slice(9 - len(text), None) if row == 0 else slice(0, len(text))
        inputs[row, place], mask[row, place] = text, True
    settings = GenerationSettings(no_repeat_ngram=2, encoder_no_repeat_ngram=1, repetition_penalty=1.5, beams=2)
    config = dataclasses.replace(model.config, generation=settings)
    mixed = prompt_jax.generate(model.params, config, {"inputs": inputs, "inputs_mask": mask}, max_new_tokens=6)
    for row, text in enumerate(texts):
        alone = prompt_jax.generate(model.params, config, whole(text[None]), max_new_tokens=6)
        np.testing.assert_array_equal(mixed[row], alone[0])
