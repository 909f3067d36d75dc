"""Beam search, against plain loops over a small model and against Hugging Face's results."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

import prompt_jax
from adapters import PREFIXES, PROMPTS, generate_batch, peft_prompt, random_text, random_tokens, whole
from prompt_jax.config.decoding import Decoding
from prompt_jax.inference.decoding import beam_search, generate, generate_scored
from prompt_jax.models.prompt import stack_prompts
from small_model import (
    LENGTH,
    ROWS,
    RULES,
    TIED,
    SmallConfig,
    next_log_probabilities,
    of_rule,
    padded,
    plain_beams,
    small_batch,
)

SEARCHES = [
    {"early_stopping": early, "length_penalty": penalty}
    for early in ("false", "true", "never")
    for penalty in (1.0, 0.0, 2.0, -1.0)
]


@pytest.mark.parametrize(
    ("fields", "rule"),
    # Several tokens that are forced have equal scores, in any order.
    [(fields, "plain") for fields in SEARCHES] + [({}, rule) for rule in RULES if rule not in ("plain", TIED)],
    ids=str,
)
def test_beam_search_equals_a_plain_loop(small, fields, rule):
    """Compares all hypotheses with log-probabilities and scores, with one limit for all rows and with one per row."""
    rules, config = of_rule(rule, beams=3, **fields)
    for limits in (np.full(ROWS, LENGTH), np.arange(ROWS) % 3 + 4):
        options = {"max_new_tokens": LENGTH, "lengths": limits, "decoding": Decoding()}
        actual = beam_search(small, config, small_batch(), **options)
        for row in range(ROWS):
            expected = plain_beams(small, config, row, limits[row], rules)
            count = len(expected)
            assert count > 0
            np.testing.assert_array_equal(
                actual.tokens[row, :count], [padded(tokens, config) for *_, tokens in expected]
            )
            np.testing.assert_allclose(actual.score[row, :count], [score for score, *_ in expected], rtol=1e-5)
            totals = [total for _, total, _ in expected]
            np.testing.assert_allclose(actual.log_probability[row, :count], totals, rtol=1e-5)
            assert (np.asarray(actual.score[row, count:]) <= -1e9).all()


@pytest.mark.parametrize("rule", ("plain", "all"))
def test_generation_returns_the_best_hypothesis(small, rule):
    """Without limits per row, the limit of each is `max_new_tokens`."""
    _, config = of_rule(rule, beams=3)
    for limits in (None, np.arange(ROWS) % 3 + 4):
        options = {"max_new_tokens": LENGTH, "lengths": limits, "decoding": Decoding()}
        actual = beam_search(small, config, small_batch(), **options)
        best = generate_scored(small, config, small_batch(), **options)
        np.testing.assert_array_equal(best.tokens, actual.tokens[:, 0])
        np.testing.assert_array_equal(best.log_probability, actual.log_probability[:, 0])
        if limits is None:
            same = beam_search(small, config, small_batch(), **{**options, "lengths": np.full(ROWS, LENGTH)})
            np.testing.assert_array_equal(actual.tokens, same.tokens)


def test_the_rules_of_stopping_differ(small):
    """Otherwise the test above could not distinguish them."""
    scores = {}
    for early in ("false", "true", "never"):
        decoding = Decoding(beams=3, length_penalty=2.0, early_stopping=early)
        actual = beam_search(small, SmallConfig(), small_batch(), max_new_tokens=LENGTH, decoding=decoding)
        scores[early] = actual.score
    for one, other in itertools.combinations(scores.values(), 2):
        assert not np.allclose(one, other)


@pytest.mark.parametrize("penalty", (0.0, 1.0, 2.0))
def test_with_enough_beams_the_search_is_exhaustive(small, penalty):
    """With four tokens in the vocabulary there are 40 answers of up to three tokens."""
    params = {"history": small["history"][..., :4, :4], "rows": small["rows"][:, :4]}
    config, decoding = SmallConfig(vocab_size=4), Decoding(beams=45, length_penalty=penalty)
    actual = beam_search(params, config, small_batch(1), max_new_tokens=3, decoding=decoding)
    every = []
    for length in (1, 2, 3):
        for tokens in itertools.product(range(4), repeat=length):
            if 1 in tokens[:-1] or (length < 3 and tokens[-1] != 1):
                continue
            total = sum(next_log_probabilities(params, config, 0, list(tokens[:n]))[tokens[n]] for n in range(length))
            every.append((total / length**penalty, [*tokens, *[0] * (3 - length)]))
    every.sort(reverse=True)
    assert len(every) == 40
    np.testing.assert_allclose(actual.score[0, :40], [score for score, _ in every], rtol=1e-5)
    np.testing.assert_array_equal(actual.tokens[0, :40], [tokens for _, tokens in every])
    assert (np.asarray(actual.score[0, 40:]) == -1e9).all()


ADAPTERS = [
    (family, name)
    for family in ("t5_v11", "gpt2", "bart")
    for name in ("base", *PROMPTS, *PREFIXES, *(() if family == "gpt2" else ("prompt_one_submodule",)))
]


@pytest.mark.parametrize(("family", "name"), ADAPTERS)
def test_beam_search_equals_peft(fixtures, family, name):
    """Tokens are identical, scores equal to 1e-5. For GPT-2 with soft prompts only rows without left padding count,
    because PEFT gives padding positions."""
    base = prompt_jax.load_model(str(fixtures / family / "base"))
    reference, prompt = np.load(fixtures / family / "reference.npz"), None
    if name != "base":
        prompt = peft_prompt(fixtures / family / name)
    batch = generate_batch(reference)
    rows = np.ones(len(batch["inputs"]), bool)
    if family == "gpt2":
        rows = batch["inputs_mask"].all(axis=1) if name in PROMPTS else rows
    actual = beam_search(base.params, base.config, batch, prompt, max_new_tokens=12, decoding=Decoding(beams=5))
    assert rows.any()
    np.testing.assert_array_equal(actual.tokens[rows, 0], reference[f"{name}/beam5"][rows, -12:])
    np.testing.assert_allclose(actual.score[rows, 0], reference[f"{name}/beam5_scores"][rows], rtol=0, atol=1e-5)


BEAMS = Decoding(beams=4, length_penalty=0.7)


def ending(model):
    """Return the model's config with an end token that the model generates."""
    batch = whole(random_text(model, 8, 7))
    tokens = np.asarray(generate(model.params, model.config, batch, max_new_tokens=8))
    return dataclasses.replace(model.config, eos_id=int(np.bincount(tokens[:, 2:].ravel()).argmax()))


def test_results_do_not_depend_on_padding_and_other_rows(model):
    """A padded row in a batch with mixed prompts has the beams that it has alone."""
    config, text = ending(model), random_text(model, 3, 9)
    prompts = [random_tokens(model, 3), random_tokens(model, 5, seed=1)]
    ids, lengths = np.array([1, -1, 0], np.int32), (5, 9, 7)
    batch = whole(text) | {"prompt_ids": ids}
    batch["inputs_mask"] = np.array([[False] * 4 + [True] * 5, [True] * 9, [True] * 4 + [False] * 2 + [True] * 3])
    assert batch["inputs_mask"].sum(axis=1).tolist() == list(lengths)
    mixed = beam_search(model.params, config, batch, stack_prompts(prompts), max_new_tokens=8, decoding=BEAMS)
    for row, number in enumerate(ids):
        own = whole(text[row : row + 1, batch["inputs_mask"][row]])
        prompt = prompts[number] if number >= 0 else None
        alone = beam_search(model.params, config, own, prompt, max_new_tokens=8, decoding=BEAMS)
        np.testing.assert_array_equal(mixed.tokens[row], alone.tokens[0])
        np.testing.assert_allclose(mixed.score[row], alone.score[0], rtol=1e-4)


def test_log_probabilities_are_those_of_forward(model):
    config, batch = ending(model), whole(random_text(model, 2, 6))
    actual = beam_search(model.params, config, batch, max_new_tokens=8, decoding=BEAMS)
    for number in range(BEAMS.beams):
        tokens = np.asarray(actual.tokens[:, number])
        shifted = np.concatenate([np.full((2, 1), config.start_id, np.int32), tokens[:, :-1]], axis=1)
        logits = prompt_jax.forward(model.params, config, batch | {"decoder_inputs": shifted})
        each = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), tokens[..., None], axis=-1)[..., 0]
        counted = np.cumsum(tokens == config.eos_id, axis=1) - (tokens == config.eos_id) == 0
        total, length = (each * counted).sum(axis=1), counted.sum(axis=1)
        np.testing.assert_allclose(actual.log_probability[:, number], total, rtol=1e-4)
        np.testing.assert_allclose(actual.score[:, number], total / length**0.7, rtol=1e-4)


def test_beams_share_the_input(model):
    """Memory grows with the beams' keys and values, but the encoder's are not copied for each beam."""
    rows, length, new = 64, 64, 2
    batch, config = whole(random_text(model, rows, length)), model.config

    def memory(beams: int) -> int:
        options = {"max_new_tokens": new, "decoding": Decoding(beams=beams)}
        lowered = jax.jit(generate_scored, static_argnames=("config", *options)).lower(
            model.params, config, batch, **options
        )
        return lowered.compile().memory_analysis().temp_size_in_bytes

    position = 2 * config.decoder_layers * rows * config.num_heads * config.d_kv * 4  # bytes, keys and values
    logits = rows * config.vocab_size * 4
    encoders = position * length
    more = memory(5) - memory(1)
    assert more < 4 * (3 * position * new + 4 * logits) < encoders
