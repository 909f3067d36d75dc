"""A model of a few tokens whose logits depend on the row and on all tokens so far, and plain loops that decode it."""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prompt_jax.models.generation_settings import GenerationSettings


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


def small_encode(params, config, batch, prompt):
    return None


def small_prefill(params, config, encoded, batch, prompt, capacity, beams=1):
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
    going, actual = [(0.0, [])], []
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
                actual.append((total / length**penalty, total, tokens))
        actual = sorted(actual, reverse=True)[:beams]
        kept = candidates[: max(2, 1 + len(ends)) * beams]
        going = [candidate for candidate in kept if candidate[1][-1] not in ends][:beams]
        if not going:
            break
        if len(actual) == beams:
            horizon = limit if rules.early_stopping == "never" and penalty > 0 else length
            if rules.early_stopping == "true" or going[0][0] / horizon**penalty <= actual[-1][0]:
                break
    return actual


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
