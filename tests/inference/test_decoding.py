"""Generation, against plain loops over a small model, against Hugging Face's results, and against itself."""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import prompt_jax
import prompt_jax.inference.decoding
from adapters import generate_batch, random_text, random_tokens, whole
from mixed_prompts import mixed_batch, random_prompts
from prompt_jax import stack_prompts
from prompt_jax.config.decoding import Decoding
from prompt_jax.inference.decoding import _generate, generate, generate_scored, sampling_logits, score
from prompt_jax.models.generation_settings import GenerationSettings
from small_model import (
    LENGTH,
    ROWS,
    RULES,
    STEPS,
    SmallConfig,
    next_log_probabilities,
    of_rule,
    padded,
    plain_greedy,
    small_batch,
)


@pytest.mark.parametrize("own_lengths", (False, True))
@pytest.mark.parametrize("rule", RULES)
def test_greedy_equals_a_plain_loop(small, rule, own_lengths):
    rules, config = of_rule(rule)
    limits = np.arange(ROWS) % 3 + 4 if own_lengths else np.full(ROWS, LENGTH)
    actual = generate_scored(small, config, small_batch(), max_new_tokens=LENGTH, lengths=limits)
    expected = [plain_greedy(small, config, row, limits[row], rules) for row in range(ROWS)]
    assert len({len(tokens) for tokens, _ in expected}) > 1, "rows end at different lengths"
    np.testing.assert_array_equal(actual.tokens, [padded(tokens, config) for tokens, _ in expected])
    np.testing.assert_allclose(actual.log_probability, [total for _, total in expected], rtol=1e-5)
    if rule != "plain":
        others = [plain_greedy(small, config, row, limits[row], GenerationSettings()) for row in range(ROWS)]
        assert [tokens for tokens, _ in others] != [tokens for tokens, _ in expected], "the rule changes answers"
    elif not own_lengths:
        without = generate_scored(small, config, small_batch(), max_new_tokens=LENGTH)
        np.testing.assert_array_equal(without.tokens, actual.tokens)
        np.testing.assert_array_equal(without.log_probability, actual.log_probability)


@pytest.mark.parametrize("fields", ({}, {"beams": 3}, {"temperature": 1.0}), ids=str)
def test_the_loop_ends_with_the_last_row(small, fields):
    """The loop runs no steps after the last row has ended."""
    config, decoding = SmallConfig(), Decoding(**fields)
    certain = {"history": small["history"] * 0, "rows": small["rows"] * 0}
    certain["history"][1, :, :, 3] = 20.0  # the second token
    certain["history"][0, :, :, 2] = 20.0
    certain["history"][2, :, :, 1] = 200.0  # the third token is the end, whatever went before
    run = jax.jit(_generate.__wrapped__, static_argnames=("config", "max_new_tokens", "decoding"))
    key = jax.random.key(0)
    tokens = run(certain, config, small_batch(), None, LENGTH, None, decoding, key, np.arange(ROWS), None).tokens
    np.testing.assert_array_equal(tokens, [[2, 3, 1, 0, 0, 0]] * ROWS)
    jax.effects_barrier()
    assert STEPS == [0, 1, 2]


def test_nan_logits_are_visible_in_the_result(small):
    small["rows"][1] = np.nan
    for decoding in (Decoding(), Decoding(beams=3)):
        actual = generate_scored(small, SmallConfig(), small_batch(3), max_new_tokens=LENGTH, decoding=decoding)
        np.testing.assert_array_equal(np.isnan(actual.log_probability), [False, True, False])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("position", [0, 2])
def test_one_logit_that_is_not_finite_makes_the_rows_log_probability_nan(small, value, position):
    """Even if a token can be chosen. Other rows are unaffected."""
    small["rows"][:, 2] = 30.0  # the token at every position, so that no row ends early
    options = {"max_new_tokens": LENGTH, "key": jax.random.key(0)}
    for changed in (False, True):
        if changed:
            small["history"][position, :, :, 4] = value
        for decoding in (Decoding(), Decoding(beams=3), Decoding(temperature=1.0)):
            actual = generate_scored(small, SmallConfig(), small_batch(3), decoding=decoding, **options)
            assert (np.isnan(actual.log_probability) == changed).all()


# --------------------------------------------------------------------------------------------------------------
# Sampling


PROBABILITIES = np.array([0.02, 0.4, 0.08, 0.3, 0.2])


@pytest.mark.parametrize(
    ("fields", "expected"),
    (
        ({"temperature": 1.0}, PROBABILITIES),
        ({"temperature": 0.5}, PROBABILITIES**2),
        ({"temperature": 1.0, "top_k": 2}, [0, 0.4, 0, 0.3, 0]),
        ({"temperature": 1.0, "top_k": 9}, PROBABILITIES),
        ({"temperature": 1.0, "top_p": 0.69}, [0, 0.4, 0, 0.3, 0]),
        ({"temperature": 1.0, "top_p": 0.71}, [0, 0.4, 0, 0.3, 0.2]),
        ({"temperature": 1.0, "top_p": 0.01}, [0, 1, 0, 0, 0]),
        # Of the three, 4/9 and 3/9 have 7/9 together, but 0.7 alone.
        ({"temperature": 1.0, "top_k": 3, "top_p": 0.75}, [0, 0.4, 0, 0.3, 0]),
        # At half the temperature: 0.16, 0.09, 0.04... of 0.2968, so that two have 0.84.
        ({"temperature": 0.5, "top_p": 0.8}, [0, 0.16, 0, 0.09, 0]),
    ),
    ids=str,
)
def test_top_k_and_top_p_sets(fields, expected):
    weights = sampling_logits(jnp.log(jnp.asarray(PROBABILITIES, jnp.float32))[None], Decoding(**fields))
    np.testing.assert_allclose(jax.nn.softmax(weights)[0], np.array(expected) / np.sum(expected), rtol=1e-5)


def sampled(params, rows, decoding, seed=0):
    options = {"max_new_tokens": LENGTH, "decoding": decoding, "key": jax.random.key(seed)}
    batch = {"inputs": np.array(rows, np.int32)[:, None], "inputs_mask": np.ones((len(rows), 1), bool)}
    return generate_scored(params, SmallConfig(), batch, **options)


def test_samples_have_these_probabilities(small):
    """Checks first tokens of 4000 rows. Log-probabilities are the model's, not those used for sampling."""
    decoding = Decoding(temperature=2.0, top_k=4, banned_tokens=(3,), min_new_tokens=2)
    actual = sampled(small, [5] * 4000, decoding)
    first = next_log_probabilities(small, SmallConfig(), 5, [], banned=(3,), min_new_tokens=2)
    expected = np.exp(np.where(first < np.sort(first)[-4], -np.inf, first) / 2)
    expected /= expected.sum()
    shares = np.bincount(np.asarray(actual.tokens[:, 0]), minlength=6) / 4000
    np.testing.assert_allclose(shares, expected, atol=4 * math.sqrt(0.25 / 4000))
    assert (shares[expected == 0] == 0).all()
    for row in range(10):
        tokens, total = np.asarray(actual.tokens[row]).tolist(), 0.0
        length = tokens.index(1) + 1 if 1 in tokens else LENGTH
        for n in range(length):
            total += next_log_probabilities(small, SmallConfig(), 5, tokens[:n])[tokens[n]]
        np.testing.assert_allclose(actual.log_probability[row], total, rtol=1e-5)


def test_a_row_draws_by_its_number(small):
    """Other rows do not matter. Another key and another row number give other samples."""
    decoding = Decoding(temperature=1.0)
    tokens = np.asarray(sampled(small, [3, 3, 7, 7, 3], decoding).tokens)
    np.testing.assert_array_equal(sampled(small, [3, 3, 7], decoding).tokens, tokens[:3])
    np.testing.assert_array_equal(np.asarray(sampled(small, [1, 3, 2, 7], decoding).tokens)[[1, 3]], tokens[[1, 3]])
    assert (tokens != np.asarray(sampled(small, [3, 3, 7, 7, 3], decoding, seed=1).tokens)).any()
    many = np.asarray(sampled(small, [3] * 50, decoding).tokens)
    assert len({tuple(row) for row in many}) > 10


def test_at_a_low_temperature_sampling_is_greedy(small):
    greedy = generate_scored(small, SmallConfig(), small_batch(), max_new_tokens=LENGTH)
    for fields in ({"temperature": 1e-4}, {"temperature": 5.0, "top_k": 1}, {"temperature": 5.0, "top_p": 1e-6}):
        actual = sampled(small, range(ROWS), Decoding(**fields))
        np.testing.assert_array_equal(actual.tokens, greedy.tokens)
        np.testing.assert_allclose(actual.log_probability, greedy.log_probability, rtol=1e-5)


# --------------------------------------------------------------------------------------------------------------
# Real models


@pytest.fixture(scope="module")
def reference(fixtures):
    return np.load(fixtures / "t5_v11" / "reference.npz")


BEAMS = Decoding(beams=4, length_penalty=0.7)


def test_other_inputs_and_keys_need_no_compilation(model):
    def run(decoding, seed):
        batch = whole(random_text(model, 3, 6, seed))
        generate(model.params, model.config, batch, max_new_tokens=5, decoding=decoding, key=jax.random.key(seed))

    kinds = (BEAMS, Decoding(temperature=0.7))
    for decoding in kinds:
        run(decoding, 0)
    before = _generate._cache_size()
    for seed, decoding in itertools.product((1, 2), kinds):
        run(dataclasses.replace(decoding, seed=seed), seed)
    assert _generate._cache_size() == before


# --------------------------------------------------------------------------------------------------------------
# Against the logits of `forward`


def test_log_probability_is_that_of_forward(model):
    """The sum over the answer's tokens, including the end token."""
    batch, stacked = mixed_batch(model, "right"), stack_prompts(random_prompts(model))
    config = dataclasses.replace(model.config, eos_id=first_token(model, batch, stacked))  # makes a row end early
    generated = generate_scored(model.params, config, batch, stacked, max_new_tokens=5)
    tokens, log_probability = np.asarray(generated.tokens), np.asarray(generated.log_probability)
    assert log_probability.dtype == np.float32
    shifted = np.concatenate([np.full((6, 1), config.start_id, np.int32), tokens[:, :-1]], axis=1)
    logits = prompt_jax.forward(model.params, config, {**batch, "decoder_inputs": shifted}, stacked)
    each = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), tokens[..., None], axis=-1)[..., 0]
    ended = np.cumsum(tokens == config.eos_id, axis=1) - (tokens == config.eos_id) > 0
    assert ended.any() and not ended.all()
    np.testing.assert_allclose(log_probability, np.where(ended, 0.0, each).sum(axis=1), rtol=1e-5)
    np.testing.assert_array_equal(tokens, prompt_jax.generate(model.params, config, batch, stacked, max_new_tokens=5))


def test_rows_may_have_different_lengths(model):
    """A row with limit n gets the tokens and log-probability of max_new_tokens=n."""
    batch, stacked = mixed_batch(model, "right"), stack_prompts(random_prompts(model))
    lengths = np.array([1, 3, 3, 1, 5, 5], np.int32)
    together = generate_scored(model.params, model.config, batch, stacked, max_new_tokens=5, lengths=lengths)
    for row, length in enumerate(lengths.tolist()):
        short = generate_scored(model.params, model.config, batch, stacked, max_new_tokens=length)
        np.testing.assert_array_equal(together.tokens[row, :length], short.tokens[row])
        assert (np.asarray(together.tokens[row, length:]) == model.config.pad_id).all()
        np.testing.assert_allclose(together.log_probability[row], short.log_probability[row], rtol=1e-6)


def first_token(model, batch, stacked) -> int:
    """Return the first token of the first row's answer."""
    return int(prompt_jax.generate(model.params, model.config, batch, stacked, max_new_tokens=1)[0, 0])


def test_generation_is_the_argmax_of_forward(model, reference):
    """Each generated token is the most probable next one; only padding follows the end token."""
    prompt, batch = random_tokens(model, 3, seed=3), generate_batch(reference)
    tokens = np.asarray(prompt_jax.generate(model.params, model.config, batch, prompt, max_new_tokens=10))
    assert tokens.dtype == np.int32
    start = np.zeros((len(tokens), 1), np.int32)
    shifted = np.concatenate([start, tokens[:, :-1]], axis=1)
    best = prompt_jax.forward(model.params, model.config, {**batch, "decoder_inputs": shifted}, prompt).argmax(-1)
    for row, expected in zip(tokens, best, strict=True):
        end = np.flatnonzero(row == model.config.eos_id)
        length = end[0] + 1 if len(end) else len(row)
        np.testing.assert_array_equal(row[:length], expected[:length])
        assert not row[length:].any()


def test_generation_ends_with_its_rows(model, reference):
    """If only the end token is possible, generation takes one step for any max_new_tokens."""
    params = {**model.params, "lm_head": jnp.zeros_like(model.params["lm_head"])}
    config = dataclasses.replace(model.config, eos_id=0, pad_id=9)  # the argmax of equal logits is 0
    tokens = prompt_jax.generate(params, config, generate_batch(reference), max_new_tokens=4)
    np.testing.assert_array_equal(tokens, [[0, 9, 9, 9]] * 3)
    with pytest.raises(ValueError, match="max_new_tokens must be positive, not 0"):
        prompt_jax.generate(params, config, generate_batch(reference), max_new_tokens=0)


def test_score_is_the_sum_of_log_probabilities(model, reference):
    batch, prompt = generate_batch(reference), random_tokens(model, 3)
    targets = np.array([[7, 8, 1], [9, 1, 0]], np.int32)
    mask = targets > 0
    scores = score(model.params, model.config, batch, prompt, targets, mask)
    for c, target in enumerate(targets):
        decoder_inputs = np.repeat(np.array([[0, *target[:-1]]], np.int32), 3, axis=0)
        logits = prompt_jax.forward(model.params, model.config, {**batch, "decoder_inputs": decoder_inputs}, prompt)
        each = np.asarray(jax.nn.log_softmax(logits))[:, np.arange(3), target]
        np.testing.assert_allclose(scores[:, c], (each * mask[c]).sum(axis=1), rtol=1e-5)
