"""Generation, against plain loops over a small model, against Hugging Face's results, and against itself."""

import dataclasses
import itertools
import math
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import prompt_jax
import prompt_jax.inference.decoding
from adapters import PREFIXES, PROMPTS, generate_batch, peft_prompt, random_text, random_tokens, whole
from prompt_jax.config.decoding import Decoding
from prompt_jax.data.examples import Examples
from prompt_jax.errors import ConfigError
from prompt_jax.inference import beam_search as search_module
from prompt_jax.inference import logits_rules
from prompt_jax.inference.answers import generate_answers
from prompt_jax.inference.batching import Rows
from prompt_jax.inference.decoding import _generate, beam_search, generate, generate_scored, sampling_logits
from prompt_jax.inference.evaluation import EvaluationOptions, evaluate, evaluate_members
from prompt_jax.models import ContextError
from prompt_jax.models.generation_settings import GenerationSettings
from prompt_jax.models.prompt import stack_prompts

# --------------------------------------------------------------------------------------------------------------
# A model of a few tokens, whose logits depend on the row and on all tokens so far


@dataclasses.dataclass(frozen=True)
class SmallConfig:
    vocab_size: int = 6
    pad_id: int = 0
    start_id: int = 0
    eos_id: int = 1
    generation: GenerationSettings = GenerationSettings()


class SmallCache(NamedTuple):
    length: jax.Array
    generated: jax.Array  # [B, G, N], the tokens so far
    rows: jax.Array  # [B, V]

    def reorder_beams(self, parent):
        return self._replace(generated=jnp.take_along_axis(self.generated, parent[:, :, None], axis=1))


STEPS: list[int] = []  # one entry for each time that the model runs


def small_prefill(params, config, batch, prompt, capacity, beams=1):
    rows = params["rows"][batch["inputs"][:, 0]]
    cache = SmallCache(jnp.int32(0), jnp.zeros((len(rows), beams, capacity), jnp.int32), rows)
    return jnp.full((len(rows), beams), config.start_id, jnp.int32), cache


def small_step(params, config, tokens, cache):
    jax.debug.callback(lambda length: STEPS.append(int(length)), cache.length)
    generated = cache.generated.at[:, :, cache.length].set(tokens)
    slots = np.arange(generated.shape[-1])
    each = params["history"][cache.length][slots[None, None], generated]  # [B, G, N, V]
    logits = jnp.where((slots <= cache.length)[None, None, :, None], each, 0.0).sum(axis=2) + cache.rows[:, None]
    return logits, SmallCache(cache.length + 1, generated, cache.rows)


LENGTH, ROWS = 6, 16


@pytest.fixture
def small(monkeypatch):
    """Its parameters. Generation runs the model if the config is a SmallConfig."""
    family = SimpleNamespace(prefill=small_prefill, decode_step=small_step, causal=False)
    for module in (prompt_jax.inference.decoding, search_module, logits_rules):
        monkeypatch.setattr(module, "family", lambda config: family)
    rng = np.random.default_rng(0)
    params = {"history": rng.normal(size=(LENGTH, LENGTH, 6, 6)), "rows": rng.normal(size=(ROWS, 6))}
    yield {name: value.astype(np.float32) for name, value in params.items()}
    jax.effects_barrier()
    STEPS.clear()


def small_batch(rows=ROWS):
    return {"inputs": np.arange(rows, dtype=np.int32)[:, None], "inputs_mask": np.ones((rows, 1), bool)}


def next_scores(params, config, row: int, tokens: list[int], limit: int, rules: GenerationSettings, log=True):
    """Return the scores [V] under the rules, and the log-probabilities before them, by a loop over the tokens."""
    history = [config.start_id, *tokens]
    logits = params["rows"][row].astype(float)
    for slot, token in enumerate(history):
        logits = logits + params["history"][len(history) - 1, slot, token]
    plain = logits - np.log(np.exp(logits).sum())
    result = plain.copy() if log else logits
    for token in set(history):
        result[token] *= rules.repetition_penalty if result[token] < 0 else 1 / rules.repetition_penalty
    for size, text in ((rules.no_repeat_ngram, history), (rules.encoder_no_repeat_ngram, [row])):
        if size and len(history) >= size - 1:
            seen = {tuple(text[i : i + size]) for i in range(len(text) - size + 1)}
            end = tuple(history[len(history) - size + 1 :])
            result[[token for token in range(len(result)) if (*end, token) in seen]] = -math.inf
    ends = list(rules.end_ids or (config.eos_id,))
    if len(tokens) < rules.min_new_tokens or len(history) < rules.min_length:
        result[ends] = -math.inf
    if not tokens and rules.forced_first is not None:
        result[:] = plain[:] = -math.inf
        result[rules.forced_first] = plain[rules.forced_first] = 0.0
    if len(tokens) == limit - 1 and rules.forced_last:
        result[:] = plain[:] = -math.inf
        result[list(rules.forced_last)] = plain[list(rules.forced_last)] = 0.0
    result[list(rules.banned)] = -math.inf
    if len(tokens) == (0 if rules.forced_first is None else 1):
        result[list(rules.banned_first)] = -math.inf
    return result, plain


def next_log_probabilities(params, config, row, tokens, **rules):
    return next_scores(params, config, row, tokens, LENGTH + 1, GenerationSettings(**rules))[0]


def plain_greedy(params, config, row: int, limit: int, rules: GenerationSettings) -> tuple[list[int], float]:
    tokens, total, ends = [], 0.0, rules.end_ids or (config.eos_id,)
    while len(tokens) < limit and not (tokens and tokens[-1] in ends):
        each, plain = next_scores(params, config, row, tokens, limit, rules, log=False)
        token = int(each.argmax())
        tokens, total = [*tokens, token], total + plain[token]
    return tokens, total


def plain_beams(
    params, config, row: int, limit: int, rules: GenerationSettings
) -> list[tuple[float, float, list[int]]]:
    """Return score, log-probability and tokens of each hypothesis of beam search, best first."""
    beams, penalty, ends = rules.beams, rules.length_penalty, rules.end_ids or (config.eos_id,)
    going, found = [(0.0, [])], []
    for length in range(1, limit + 1):
        candidates = [
            (total + gained, [*tokens, token])
            for total, tokens in going
            for token, gained in enumerate(next_scores(params, config, row, tokens, limit, rules)[0])
            if gained > -math.inf
        ]
        candidates.sort(key=lambda candidate: -candidate[0])
        for total, tokens in candidates[:beams]:
            if tokens[-1] in ends or length == limit:
                found.append((total / length**penalty, total, tokens))
        found = sorted(found, reverse=True)[:beams]
        kept = candidates[: max(2, 1 + len(ends)) * beams]
        going = [candidate for candidate in kept if candidate[1][-1] not in ends][:beams]
        if not going:
            break
        if len(found) == beams:
            horizon = limit if rules.early_stopping == "never" and penalty > 0 else length
            if rules.early_stopping == "true" or going[0][0] / horizon**penalty <= found[-1][0]:
                break
    return found


def padded(tokens: list[int], config) -> list[int]:
    return [*tokens, *[config.pad_id] * (LENGTH - len(tokens))]


RULES = {
    "plain": {},
    "min_new_tokens": {"min_new_tokens": 4},
    "min_length": {"min_length": 5},
    "banned": {"banned": (2, 5)},
    "banned_first": {"banned_first": (2, 3, 4)},
    "forced_first": {"forced_first": 4},
    "forced_first, banned_first": {"forced_first": 4, "banned_first": (2, 3)},
    "forced_last": {"forced_last": (1,)},
    "several forced_last": {"forced_last": (1, 3)},
    "several ends": {"end_ids": (1, 3)},
    "no_repeat_ngram 1": {"no_repeat_ngram": 1},
    "no_repeat_ngram 2": {"no_repeat_ngram": 2},
    "no_repeat_ngram 3": {"no_repeat_ngram": 3},
    "encoder_no_repeat_ngram": {"encoder_no_repeat_ngram": 1},
    "repetition_penalty": {"repetition_penalty": 2.5},
    "all": {
        "end_ids": (1, 3),
        "forced_first": 2,
        "forced_last": (3,),
        "no_repeat_ngram": 2,
        "repetition_penalty": 1.5,
        "min_new_tokens": 2,
    },
}


TIED = "several forced_last"


def of_rule(rule: str, **fields) -> tuple[GenerationSettings, SmallConfig]:
    rules = GenerationSettings(**RULES[rule], **fields)
    return rules, SmallConfig(generation=rules)


@pytest.mark.parametrize("own_lengths", (False, True))
@pytest.mark.parametrize("rule", RULES)
def test_greedy_equals_a_plain_loop(small, rule, own_lengths):
    rules, config = of_rule(rule)
    limits = np.arange(ROWS) % 3 + 4 if own_lengths else np.full(ROWS, LENGTH)
    lengths = limits if own_lengths else None
    found = generate_scored(small, config, small_batch(), max_new_tokens=LENGTH, lengths=lengths)
    expected = [plain_greedy(small, config, row, limits[row], rules) for row in range(ROWS)]
    assert len({len(tokens) for tokens, _ in expected}) > 1, "rows end at different lengths"
    np.testing.assert_array_equal(found.tokens, [padded(tokens, config) for tokens, _ in expected])
    np.testing.assert_allclose(found.log_probability, [total for _, total in expected], rtol=1e-5)
    if rule != "plain":
        others = [plain_greedy(small, config, row, limits[row], GenerationSettings()) for row in range(ROWS)]
        assert [tokens for tokens, _ in others] != [tokens for tokens, _ in expected], "the rule changes answers"


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
    for limits in (None, np.arange(ROWS) % 3 + 4):
        options = {"max_new_tokens": LENGTH, "lengths": limits, "decoding": Decoding()}
        found = beam_search(small, config, small_batch(), **options)
        for row in range(ROWS):
            limit = LENGTH if limits is None else limits[row]
            expected = plain_beams(small, config, row, limit, rules)
            count = len(expected)
            assert count > 0
            np.testing.assert_array_equal(
                found.tokens[row, :count], [padded(tokens, config) for *_, tokens in expected]
            )
            np.testing.assert_allclose(found.score[row, :count], [score for score, *_ in expected], rtol=1e-5)
            totals = [total for _, total, _ in expected]
            np.testing.assert_allclose(found.log_probability[row, :count], totals, rtol=1e-5)
            assert (np.asarray(found.score[row, count:]) <= -1e9).all()
    best = generate_scored(small, config, small_batch(), **options)
    np.testing.assert_array_equal(best.tokens, found.tokens[:, 0])
    np.testing.assert_array_equal(best.log_probability, found.log_probability[:, 0])


def test_the_rules_of_stopping_differ(small):
    """Otherwise the test above could not distinguish them."""
    scores = {}
    for early in ("false", "true", "never"):
        decoding = Decoding(beams=3, length_penalty=2.0, early_stopping=early)
        found = beam_search(small, SmallConfig(), small_batch(), max_new_tokens=LENGTH, decoding=decoding)
        scores[early] = found.score
    for one, other in itertools.combinations(scores.values(), 2):
        assert not np.allclose(one, other)


@pytest.mark.parametrize("penalty", (0.0, 1.0, 2.0))
def test_with_beams_enough_nothing_is_missed(small, penalty):
    """With four tokens in the vocabulary there are 40 answers of up to three tokens."""
    params = {"history": small["history"][..., :4, :4], "rows": small["rows"][:, :4]}
    config, decoding = SmallConfig(vocab_size=4), Decoding(beams=45, length_penalty=penalty)
    found = beam_search(params, config, small_batch(1), max_new_tokens=3, decoding=decoding)
    every = []
    for length in (1, 2, 3):
        for tokens in itertools.product(range(4), repeat=length):
            if 1 in tokens[:-1] or (length < 3 and tokens[-1] != 1):
                continue
            total = sum(next_log_probabilities(params, config, 0, list(tokens[:n]))[tokens[n]] for n in range(length))
            every.append((total / length**penalty, [*tokens, *[0] * (3 - length)]))
    every.sort(reverse=True)
    assert len(every) == 40
    np.testing.assert_allclose(found.score[0, :40], [score for score, _ in every], rtol=1e-5)
    np.testing.assert_array_equal(found.tokens[0, :40], [tokens for _, tokens in every])
    assert (np.asarray(found.score[0, 40:]) == -1e9).all()


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
    tokens = run(certain, config, small_batch(), None, LENGTH, None, decoding, key, np.arange(ROWS)).tokens
    np.testing.assert_array_equal(tokens, [[2, 3, 1, 0, 0, 0]] * ROWS)
    jax.effects_barrier()
    assert STEPS == [0, 1, 2]


def test_what_is_not_a_number_comes_out(small):
    small["rows"][1] = np.nan
    for decoding in (Decoding(), Decoding(beams=3)):
        found = generate_scored(small, SmallConfig(), small_batch(3), max_new_tokens=LENGTH, decoding=decoding)
        np.testing.assert_array_equal(np.isnan(found.log_probability), [False, True, False])


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
            found = generate_scored(small, SmallConfig(), small_batch(3), decoding=decoding, **options)
            assert (np.isnan(found.log_probability) == changed).all()


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
def test_what_tokens_are_drawn_from(fields, expected):
    weights = sampling_logits(jnp.log(jnp.asarray(PROBABILITIES, jnp.float32))[None], Decoding(**fields))
    np.testing.assert_allclose(jax.nn.softmax(weights)[0], np.array(expected) / np.sum(expected), rtol=1e-5)


def sampled(params, rows, decoding, seed=0):
    options = {"max_new_tokens": LENGTH, "decoding": decoding, "key": jax.random.key(seed)}
    batch = {"inputs": np.array(rows, np.int32)[:, None], "inputs_mask": np.ones((len(rows), 1), bool)}
    return generate_scored(params, SmallConfig(), batch, **options)


def test_samples_have_these_probabilities(small):
    """Checks first tokens of 4000 rows. Log-probabilities are the model's, not those used for sampling."""
    decoding = Decoding(temperature=2.0, top_k=4, banned_tokens=(3,), min_new_tokens=2)
    found = sampled(small, [5] * 4000, decoding)
    first = next_log_probabilities(small, SmallConfig(), 5, [], banned=(3,), min_new_tokens=2)
    expected = np.exp(np.where(first < np.sort(first)[-4], -np.inf, first) / 2)
    expected /= expected.sum()
    shares = np.bincount(np.asarray(found.tokens[:, 0]), minlength=6) / 4000
    np.testing.assert_allclose(shares, expected, atol=4 * math.sqrt(0.25 / 4000))
    assert (shares[expected == 0] == 0).all()
    for row in range(10):
        tokens, total = np.asarray(found.tokens[row]).tolist(), 0.0
        length = tokens.index(1) + 1 if 1 in tokens else LENGTH
        for n in range(length):
            total += next_log_probabilities(small, SmallConfig(), 5, tokens[:n])[tokens[n]]
        np.testing.assert_allclose(found.log_probability[row], total, rtol=1e-5)


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
        found = sampled(small, range(ROWS), Decoding(**fields))
        np.testing.assert_array_equal(found.tokens, greedy.tokens)
        np.testing.assert_allclose(found.log_probability, greedy.log_probability, rtol=1e-5)


# --------------------------------------------------------------------------------------------------------------
# Real models


@pytest.fixture(scope="module")
def model(fixtures):
    return prompt_jax.load_model(str(fixtures / "t5_v11" / "base"))


@pytest.mark.parametrize("name", ("base", *PROMPTS, *PREFIXES))
@pytest.mark.parametrize("family", ("t5_v11", "gpt2", "bart"))
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
    found = beam_search(base.params, base.config, batch, prompt, max_new_tokens=12, decoding=Decoding(beams=5))
    assert rows.any()
    np.testing.assert_array_equal(found.tokens[rows, 0], reference[f"{name}/beam5"][rows, -12:])
    np.testing.assert_allclose(found.score[rows, 0], reference[f"{name}/beam5_scores"][rows], rtol=0, atol=1e-5)


BEAMS = Decoding(beams=4, length_penalty=0.7)


def ending(model):
    """Return the model's config with an end token that the model generates."""
    batch = whole(random_text(model, 8, 7))
    tokens = np.asarray(generate(model.params, model.config, batch, max_new_tokens=8))
    return dataclasses.replace(model.config, eos_id=int(np.bincount(tokens[:, 2:].ravel()).argmax()))


def test_padding_and_company_do_not_matter(model):
    """A padded row in a batch with mixed prompts has the beams that it has alone."""
    config, text = ending(model), random_text(model, 3, 9)
    prompts = [random_tokens(model, 3), random_tokens(model, 5, seed=1)]
    ids, lengths = np.array([1, -1, 0], np.int32), (5, 9, 7)
    batch = whole(text) | {"prompt_ids": ids}
    batch["inputs_mask"] = np.array([[False] * 4 + [True] * 5, [True] * 9, [True] * 4 + [False] * 2 + [True] * 3])
    assert batch["inputs_mask"].sum(axis=1).tolist() == list(lengths)
    together = beam_search(model.params, config, batch, stack_prompts(prompts), max_new_tokens=8, decoding=BEAMS)
    for row, number in enumerate(ids):
        own = whole(text[row : row + 1, batch["inputs_mask"][row]])
        prompt = prompts[number] if number >= 0 else None
        alone = beam_search(model.params, config, own, prompt, max_new_tokens=8, decoding=BEAMS)
        np.testing.assert_array_equal(together.tokens[row], alone.tokens[0])
        np.testing.assert_allclose(together.score[row], alone.score[0], rtol=1e-4)


def test_log_probabilities_are_those_of_forward(model):
    config, batch = ending(model), whole(random_text(model, 2, 6))
    found = beam_search(model.params, config, batch, max_new_tokens=8, decoding=BEAMS)
    for number in range(BEAMS.beams):
        tokens = np.asarray(found.tokens[:, number])
        shifted = np.concatenate([np.full((2, 1), config.start_id, np.int32), tokens[:, :-1]], axis=1)
        logits = prompt_jax.forward(model.params, config, batch | {"decoder_inputs": shifted})
        each = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), tokens[..., None], axis=-1)[..., 0]
        counted = np.cumsum(tokens == config.eos_id, axis=1) - (tokens == config.eos_id) == 0
        total, length = (each * counted).sum(axis=1), counted.sum(axis=1)
        np.testing.assert_allclose(found.log_probability[:, number], total, rtol=1e-4)
        np.testing.assert_allclose(found.score[:, number], total / length**0.7, rtol=1e-4)


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


# --------------------------------------------------------------------------------------------------------------
# Options, and evaluation


@pytest.mark.parametrize(
    ("fields", "message"),
    (
        ({"beams": 0}, "decoding.beams must be positive, not 0"),
        ({"top_k": 0, "temperature": 1.0}, "decoding.top_k must be positive"),
        ({"min_new_tokens": -1}, "decoding.min_new_tokens must be zero or positive"),
        ({"temperature": math.nan}, "decoding.temperature must be finite, not nan"),
        ({"length_penalty": math.inf, "beams": 2}, "decoding.length_penalty must be finite"),
        ({"top_p": 0.0, "temperature": 1.0}, r"decoding.top_p must be in \(0, 1\], not 0.0"),
        ({"beams": 2, "temperature": 1.0}, "sampling needs 1 beam"),
        ({"top_k": 5}, "need sampling: set decoding.temperature"),
        ({"top_p": 0.9}, "need sampling: set decoding.temperature"),
        ({"beams": 1, "length_penalty": 0.6}, "need beam search: set decoding.beams"),
        ({"beams": 1, "early_stopping": "never"}, "need beam search: set decoding.beams"),
        ({"no_repeat_ngram": -1}, "decoding.no_repeat_ngram must be zero or positive, not -1"),
        ({"repetition_penalty": 0.0}, "decoding.repetition_penalty must be positive, not 0.0"),
    ),
    ids=str,
)
def test_options_that_do_not_go_together(fields, message):
    with pytest.raises(ConfigError, match=message):
        Decoding(**fields)


def test_early_stopping_is_no_bool():
    """Hugging Face accepts a bool. (These tests check types, so the constructor would already refuse it.)"""
    decoding = Decoding(beams=2)
    object.__setattr__(decoding, "early_stopping", True)
    with pytest.raises(ConfigError, match="decoding.early_stopping is 'false', 'true' or 'never', not True"):
        decoding.__post_init__()


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


def test_evaluation_decodes_as_it_is_told(tiny):
    """Samples depend neither on batches nor on other prompts."""
    inputs, texts = list(random_text(tiny, 4, 8)), [""] * 4
    prompts = [random_tokens(tiny, 3), random_tokens(tiny, 3, seed=1)]
    sampling = Decoding(temperature=1.0, top_p=0.9, seed=3)
    for decoding in (BEAMS, sampling):
        given = generate_answers(Rows(tiny, prompts[0], inputs, batch_size=2), 4, decoding)
        arguments = tiny.params, tiny.config, whole(np.stack(inputs)), prompts[0]
        expected = generate_scored(*arguments, max_new_tokens=4, decoding=decoding, key=jax.random.key(3))
        assert given.texts == [tiny.tokenizer.decode(row) for row in np.asarray(expected.tokens).tolist()]
        np.testing.assert_allclose(given.log_probabilities, expected.log_probability, rtol=1e-4)
    examples = Examples("task", "test", inputs, inputs, texts, texts, {}, None, ())
    options = EvaluationOptions(4, 2, sampling)
    together = evaluate_members(tiny, prompts, examples, options)
    assert together[0].predictions == given.texts != together[1].predictions
    assert together[1].predictions == evaluate(tiny, prompts[1], examples, options).predictions
