"""Rules of generation that change the scores of the next token: Transformers' logits processors.

They run in the order of `GenerationMixin._get_logits_processor` and give the same results, except that they ignore
padding. A row's result therefore does not depend on its batch. Shapes: see `prompt_jax.models`; G beams.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from prompt_jax.config.decoding import Decoding
from prompt_jax.errors import ConfigError
from prompt_jax.models import Config, family
from prompt_jax.models.generation_settings import GenerationSettings

NO_TOKEN = -1


class Given(NamedTuple):
    """The tokens before the generated ones, for each row."""

    tokens: Int[Array, "B _"]  # NO_TOKEN, then a causal model's input, then the start token
    length: Int[Array, "B"]  # the number of tokens
    source: Int[Array, "B S"]  # the input, then NO_TOKEN
    limits: Int[Array, "B"]  # the maximum number of generated tokens


def merged_settings(config: Config, decoding: Decoding, max_new_tokens: int) -> GenerationSettings:
    """Return the checkpoint's settings, overridden by those of `decoding`.

    Raises:
      ConfigError: the settings contradict each other or do not fit the model.
    """
    generation: GenerationSettings = config.generation
    if generation.not_applied:
        raise ConfigError(
            f"the checkpoint's generation settings have {', '.join(generation.not_applied)}, which cannot be applied: "
            "remove them from its generation_config.json (or config.json) to generate without them"
        )
    if max_new_tokens < 1:
        raise ConfigError(f"max_new_tokens must be positive, not {max_new_tokens}")
    given: dict[str, Any] = {
        "beams": 1 if decoding.temperature else decoding.beams,
        "length_penalty": decoding.length_penalty,
        "early_stopping": decoding.early_stopping,
        "min_new_tokens": decoding.min_new_tokens,
        "no_repeat_ngram": decoding.no_repeat_ngram,
        "repetition_penalty": decoding.repetition_penalty,
    }
    if decoding.min_new_tokens is not None:
        given["min_length"] = 0
    merged = dataclasses.replace(
        generation,
        end_ids=generation.end_ids or (config.eos_id,),
        banned=(*generation.banned, *decoding.banned_tokens),
        **{name: value for name, value in given.items() if value is not None},
    )
    if decoding.min_new_tokens is not None and decoding.min_new_tokens > max_new_tokens:
        raise ConfigError(
            f"decoding.min_new_tokens is {decoding.min_new_tokens}, and an answer has at most {max_new_tokens} tokens"
        )
    for token in decoding.banned_tokens:
        if not 0 <= token < config.vocab_size:
            raise ConfigError(f"decoding.banned_tokens has {token}; ids go from 0 to {config.vocab_size - 1}")
    if merged.forced_first in merged.banned:
        raise ConfigError(f"{merged.forced_first} is banned, and the checkpoint's settings put it first")
    if merged.beams == 1 and (
        decoding.length_penalty not in (None, 1) or decoding.early_stopping not in (None, "false")
    ):
        raise ConfigError(
            "decoding.length_penalty and decoding.early_stopping need beam search: set decoding.beams above 1"
        )
    return merged


def given_tokens(config: Config, batch: dict[str, Any], start: Int[Array, "B"], limits: Int[Array, "B"]) -> Given:
    """Return the tokens before the generated ones. `start` is the last of them."""
    ids, mask = jnp.asarray(batch["inputs"]), jnp.asarray(batch["inputs_mask"]).astype(bool)

    def ordered(key: Any) -> Any:
        order = jnp.argsort(key, axis=1, stable=True)
        return jnp.where(jnp.take_along_axis(mask, order, 1), jnp.take_along_axis(ids, order, 1), NO_TOKEN)

    before, length = start[:, None], jnp.ones_like(start)
    if family(config).causal:
        before = jnp.concatenate([ordered(mask), before], axis=1)
        length = mask.sum(axis=1, dtype=length.dtype) + 1
    return Given(before, length, ordered(~mask), limits)


def is_forced(position: Any, limits: Int[Array, "B"], rules: GenerationSettings) -> Bool[Array, "B"]:
    """Return whether each row's next token is forced. Its probability counts as 1."""
    first = jnp.asarray(position == 0) & (rules.forced_first is not None)
    return first | ((position + 1 >= limits) & bool(rules.forced_last))


def apply_rules(
    scores: Float[Array, "B G V"],
    position: Any,
    generated: Int[Array, "B G N"],
    given: Given,
    rules: GenerationSettings,
) -> Float[Array, "B G V"]:
    """Return the scores of the next token under the rules. A token that is not allowed gets -inf.

    Args:
      scores: logits, or log-probabilities in beam search.
      position: the number of tokens generated so far.
      generated: these tokens, from index 0.
      given: the tokens before them.
      rules: from `merged_settings`.
    """
    vocabulary = scores.shape[-1]
    ids = np.arange(vocabulary)[None, None]
    if rules.repetition_penalty != 1:
        penalized = jnp.where(scores < 0, scores * rules.repetition_penalty, scores / rules.repetition_penalty)
        scores = jnp.where(_present(_history(given, generated, position), vocabulary), penalized, scores)
    for size, text in ((rules.no_repeat_ngram, None), (rules.encoder_no_repeat_ngram, given.source)):
        longest = given.tokens.shape[1] + generated.shape[2] if text is None else text.shape[1]
        if 0 < size <= longest:  # a longer n-gram cannot repeat
            history = _history(given, generated, position, size - 1)
            last = jax.lax.dynamic_slice_in_dim(history, given.tokens.shape[1] + position, size - 1, axis=-1)
            windows = history if text is None else text[:, None]
            scores = jnp.where(_completions(windows, last, size, vocabulary), -jnp.inf, scores)
    if rules.min_length or rules.min_new_tokens:
        early = (given.length + position < rules.min_length) | (position < rules.min_new_tokens)
        scores = jnp.where(early[:, None, None] & np.isin(ids, rules.end_ids), -jnp.inf, scores)
    if rules.forced_first is not None:
        scores = jnp.where(position == 0, jnp.where(ids == rules.forced_first, 0.0, -jnp.inf), scores)
    if rules.forced_last:
        last_place = (position + 1 >= given.limits)[:, None, None]
        scores = jnp.where(last_place, jnp.where(np.isin(ids, rules.forced_last), 0.0, -jnp.inf), scores)
    if rules.banned:
        scores = jnp.where(np.isin(ids, rules.banned), -jnp.inf, scores)
    if rules.banned_first:
        first = 0 if rules.forced_first is None else 1
        scores = jnp.where((position == first) & np.isin(ids, rules.banned_first), -jnp.inf, scores)
    return jax.nn.log_softmax(scores) if rules.renormalize else scores


def is_end(tokens: Int[Array, "*rows"], rules: GenerationSettings) -> Bool[Array, "*rows"]:
    """Return whether each token ends its answer."""
    return jnp.isin(tokens, np.asarray(rules.end_ids, np.int32))


def log_softmax(logits: Float[Array, "*rows V"]) -> Float[Array, "*rows V"]:
    """Return the tokens' log-probabilities; all of a position are NaN if one of its logits is not finite."""
    finite = jnp.isfinite(jnp.abs(logits).max(axis=-1, keepdims=True))  # one pass, without a mask of all logits
    return jnp.where(finite, jax.nn.log_softmax(logits), jnp.nan)


def _history(given: Given, generated: Int[Array, "B G N"], position: Any, before: int = 0) -> Int[Array, "B G _"]:
    """Return the tokens of each beam so far, after `before` entries of NO_TOKEN. Open positions hold NO_TOKEN too."""
    tokens = jnp.pad(given.tokens, ((0, 0), (before, 0)), constant_values=NO_TOKEN)
    shape = *generated.shape[:2], tokens.shape[1]
    so_far = jnp.where(np.arange(generated.shape[2]) < position, generated, NO_TOKEN)
    return jnp.concatenate([jnp.broadcast_to(tokens[:, None], shape), so_far], axis=-1)


def _completions(
    tokens: Int[Array, "B #G _"], last: Int[Array, "B G _"], size: int, vocabulary: int
) -> Bool[Array, "B G V"]:
    """Return which next tokens, after the `last` size - 1 tokens, complete an n-gram of `size` found in `tokens`."""
    count = tokens.shape[-1] - size + 1
    if count < 1:
        return jnp.zeros((*last.shape[:2], vocabulary), bool)
    matches = jnp.ones((*last.shape[:2], count), bool)
    for place in range(size - 1):
        matches &= tokens[..., place : place + count] == last[..., place, None]
    following = jnp.broadcast_to(tokens[..., size - 1 :], matches.shape)
    return _present(jnp.where(matches, following, NO_TOKEN), vocabulary)


def _present(tokens: Int[Array, "B G _"], vocabulary: int) -> Bool[Array, "B G V"]:
    """Return which ids are among the tokens."""
    rows, beams = np.ogrid[: tokens.shape[0], : tokens.shape[1]]
    places = jnp.where(tokens == NO_TOKEN, vocabulary, tokens)
    present = jnp.zeros((*tokens.shape[:2], vocabulary + 1), bool)
    return present.at[rows[..., None], beams[..., None], places].set(True)[..., :vocabulary]
