"""Generation, one compiled loop for every family, and the scoring of given answers. Shapes: see `prompt_jax.models`.

Beam search follows the rules of Hugging Face's (transformers 5, `GenerationMixin._beam_search`): the same tokens and
scores. Beams are the queries of a row: what they share, such as the input's keys and values, is held once.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray

from prompt_jax.config.decoding import Decoding
from prompt_jax.errors import ConfigError
from prompt_jax.inference import logits_rules
from prompt_jax.models import check_context, family, longest_row
from prompt_jax.models.delta import tuned
from prompt_jax.models.prompt import Prompt, check_prompt_ids

HostOrDevice = np.ndarray | jax.Array

FROM_CHECKPOINT = Decoding()
GREEDY = Decoding(beams=1)
MAX_NEW_TOKENS = 32  # where neither the caller nor the checkpoint says

# The score of what is no hypothesis, and what is added to that of one which must not go on. Hugging Face's value.
_NEVER = -1e9


class Generated(NamedTuple):
    """What was generated: new tokens alone, without start token or input; after a row's end token the pad id."""

    tokens: Int[Array, "B N"]  # int32
    # float32, nats: of the row's tokens, its end token included; NaN if one of its logits was not finite
    log_probability: Float[Array, "B"]


class Hypotheses(NamedTuple):
    """All that beam search has found for each row, the best first. Tokens and log-probability as in `Generated`."""

    tokens: Int[Array, "B G N"]
    log_probability: Float[Array, "B G"]
    score: Float[Array, "B G"]  # log-probability / tokens ** length_penalty; -1e9 where there are fewer hypotheses


def generate(
    params: Any,
    config: Any,
    batch: dict[str, Any],
    prompt: Prompt | None = None,
    *,
    max_new_tokens: int | None = None,
    decoding: Decoding = FROM_CHECKPOINT,
    key: PRNGKeyArray | None = None,
) -> Int[Array, "B N"]:
    """Return the answer to each row, by the checkpoint's generation settings unless `decoding` says otherwise.

    A causal model continues the inputs. If its prompt was trained on a task, end them with the separator that the task
    has between source and target (`Tokenizer.separator`). An infix stands before the last token of the inputs.

    Args:
      params, config, prompt: as for `forward`.
      batch: `inputs` [B, S] and `inputs_mask` [B, S], and with a stacked prompt `prompt_ids` [B].
      max_new_tokens: N, the most tokens a row gets; left out, the checkpoint's, or MAX_NEW_TOKENS.
      decoding: beams or sampling, and what may be generated.
      key: for sampling, which needs one. What a row draws depends on its number, and not on the other rows.

    Returns:
      The new tokens alone, without start token or input, int32; after a row's end token the pad id.

    Raises:
      PromptStackError, PromptPartError, ContextError: as `forward`.
      ConfigError: a decoding that does not fit the model or `max_new_tokens`, or sampling without a key.
    """
    options: Any = {"max_new_tokens": max_new_tokens, "decoding": decoding, "key": key}
    return generate_scored(params, config, batch, prompt, **options).tokens


def generate_scored(
    params: Any,
    config: Any,
    batch: dict[str, Any],
    prompt: Prompt | None = None,
    *,
    max_new_tokens: int | None = None,
    decoding: Decoding = FROM_CHECKPOINT,
    key: PRNGKeyArray | None = None,
    lengths: Int[HostOrDevice, "B"] | None = None,
) -> Generated:
    """`generate` with each row's log-probability.

    It is the model's own, also where tokens were drawn at another temperature, banned or penalized; but beam search
    adds up what the rules make of it, as Transformers does. A token that the checkpoint forces counts as certain.

    Args:
      params, config, batch, prompt, max_new_tokens, decoding, key: as for `generate`.
      lengths: the most tokens of each row, where they differ: from 1 to `max_new_tokens`.
    """
    batch = _split_last(config, batch)
    most, lengths = _limits(config, batch, max_new_tokens, lengths)
    _check(config, batch, prompt, most)
    keys = None if key is None else row_keys(key, np.arange(len(batch["inputs"])))
    return compiled_generate(params, config, batch, prompt, most, lengths, decoding, keys)


def beam_search(
    params: Any,
    config: Any,
    batch: dict[str, Any],
    prompt: Prompt | None = None,
    *,
    max_new_tokens: int | None = None,
    decoding: Decoding,
    lengths: Int[HostOrDevice, "B"] | None = None,
) -> Hypotheses:
    """All hypotheses of beam search, the n best of which are the first n; `generate` gives the best alone.

    Arguments and errors as for `generate_scored`.
    """
    batch = _split_last(config, batch)
    most, lengths = _limits(config, batch, max_new_tokens, lengths)
    _check(config, batch, prompt, most)
    return compiled_beam_search(params, config, batch, prompt, most, lengths, decoding)


def score(
    params: Any,
    config: Any,
    batch: dict[str, Any],
    prompt: Prompt | None,
    targets: Int[HostOrDevice, "C T"],
    targets_mask: Bool[HostOrDevice, "C T"],
) -> Float[Array, "B C"]:
    """Return the log-probability, in nats, of each of C given targets for each row.

    The input is encoded once for all of them. A causal model's targets continue the inputs, as in `generate`. The
    result is NaN where a logit at one of the target's tokens is not finite.

    Args:
      params, config, batch, prompt: as for `generate`.
      targets: token ids with the end token, padded on the right.
      targets_mask: which of them count.

    Raises:
      PromptStackError, PromptPartError, ContextError: as `forward`.
    """
    batch = _split_last(config, batch)
    _check(config, batch, prompt, targets.shape[1])
    return compiled_score(params, config, batch, prompt, targets, targets_mask)


def _split_last(config: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """Return the batch as the compiled functions take it.

    They read a causal model's text in two parts: the source, and a first target token `start_ids` [B]. This is the last
    token of the inputs; for an empty text it is the model's start token.
    """
    if not family(config).causal:
        return batch
    ids, mask = jnp.asarray(batch["inputs"]), jnp.asarray(batch["inputs_mask"], bool)
    places = np.arange(ids.shape[1])[None]
    last = jnp.where(mask, places, -1).max(axis=1, keepdims=True)
    start = jnp.take_along_axis(ids, jnp.maximum(last, 0), axis=1)
    start = jnp.where(last < 0, config.start_id, start)[:, 0].astype(jnp.int32)
    return {**batch, "inputs_mask": mask & (places != last), "start_ids": start}


def _limits(
    config: Any, batch: dict[str, Any], max_new_tokens: int | None, lengths: Any
) -> tuple[int, Int[HostOrDevice, "B"] | None]:
    """The most tokens of any row, and those of each row where they differ: the checkpoint's, if the caller has none."""
    own = config.generation
    if max_new_tokens is not None or lengths is not None or (own.max_new_tokens is None and own.max_length is None):
        return MAX_NEW_TOKENS if max_new_tokens is None else max_new_tokens, lengths
    if own.max_new_tokens is not None:
        return own.max_new_tokens, None
    if not family(config).causal:
        return max(own.max_length - 1, 1), None
    read = np.asarray(jax.device_get(batch["inputs_mask"])).sum(axis=1) + 1  # with the start token
    rest = np.maximum(own.max_length - read, 1).astype(np.int32)
    return int(rest.max()), rest


def _check(config: Any, batch: dict[str, Any], prompt: Prompt | None, target: int) -> None:
    """What can be known before anything is compiled."""
    check_prompt_ids(prompt, batch.get("prompt_ids"), len(batch["inputs"]))
    check_context(config, prompt, longest_row(batch["inputs_mask"]), target)


# --------------------------------------------------------------------------------------------------------------
# The compiled functions, for callers that have checked their prompt ids: to read them back is to wait for the device.
# Where texts are continued, batches have `start_ids` (`_split_last`). Without them a causal model's target follows
# `config.start_id`, the separator of tasks.


@jax.jit
def row_keys(key: PRNGKeyArray, numbers: Int[Array, "B"]) -> Key[Array, "B"]:
    """The key that each row draws with, of rows with these numbers."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)


@partial(jax.jit, static_argnames=("config", "max_new_tokens", "decoding"))
def compiled_generate(
    params: Any,
    config: Any,
    batch: dict[str, Any],
    prompt: Prompt | None,
    max_new_tokens: int,
    lengths: Int[Array, "B"] | None = None,
    decoding: Decoding = FROM_CHECKPOINT,
    keys: Key[Array, "B"] | None = None,
) -> Generated:
    rules = logits_rules.settings(config, decoding, max_new_tokens)
    if rules.beams > 1:
        found = compiled_beam_search(params, config, batch, prompt, max_new_tokens, lengths, decoding)
        return Generated(found.tokens[:, 0], found.log_probability[:, 0])
    params, prompt = tuned(params, prompt)
    model, rows = family(config), len(batch["inputs"])
    limits = jnp.full(rows, max_new_tokens) if lengths is None else jnp.asarray(lengths)
    start, cache = model.prefill(params, config, batch, prompt, max_new_tokens)
    given = logits_rules.given_tokens(config, batch, start[:, 0], limits)

    def append(position, logits, so_far, done):
        """Each row's next token, and which rows have ended with it."""
        scores = logits_rules.processed(logits, position, so_far.tokens[:, None], given, rules)[:, 0]
        if decoding.temperature:
            if keys is None:
                raise ConfigError(f"decoding.temperature is {decoding.temperature}, and drawing tokens needs a `key`")
            own = jax.vmap(jax.random.fold_in, (0, None))(keys, position)
            token = jax.vmap(jax.random.categorical)(own, draw_weights(scores, decoding))
        else:
            token = jnp.argmax(scores, axis=-1)
        gained = jnp.take_along_axis(_log_softmax(logits[:, 0]), token[:, None], axis=1)[:, 0]
        certain = logits_rules.forced(position, limits, rules) & ~jnp.isnan(gained)
        gained = jnp.where(done | certain, 0.0, gained)
        token = jnp.where(done, config.pad_id, token.astype(jnp.int32))
        so_far = Generated(so_far.tokens.at[:, position].set(token), so_far.log_probability + gained)
        return so_far, token, done | _is_in(token, rules.end_ids) | (position + 1 >= limits)

    def unfinished(carry):
        position, _, _, done, _ = carry
        return (position < max_new_tokens) & ~done.all()

    def step(carry):
        position, so_far, last, done, cache = carry
        logits, cache = model.decode_step(params, config, last[:, None], cache)
        return position + 1, *append(position, logits, so_far, done), cache

    logits, cache = model.decode_step(params, config, start, cache)
    nothing = Generated(jnp.full((rows, max_new_tokens), config.pad_id, jnp.int32), jnp.zeros(rows))
    first = append(0, logits, nothing, jnp.zeros(rows, bool))
    return jax.lax.while_loop(unfinished, step, (jnp.int32(1), *first, cache))[1]


class _Running(NamedTuple):
    """Hypotheses that go on, the best first."""

    tokens: Int[Array, "B G N"]
    log_probability: Float[Array, "B G"]
    last: Int[Array, "B G"]  # their last tokens
    parent: Int[Array, "B G"]  # which beam each of them came from in the last step


@partial(jax.jit, static_argnames=("config", "max_new_tokens", "decoding"))
def compiled_beam_search(
    params: Any,
    config: Any,
    batch: dict[str, Any],
    prompt: Prompt | None,
    max_new_tokens: int,
    lengths: Int[Array, "B"] | None,
    decoding: Decoding,
) -> Hypotheses:
    rules = logits_rules.settings(config, decoding, max_new_tokens)
    params, prompt = tuned(params, prompt)
    model, beams, rows = family(config), rules.beams, len(batch["inputs"])
    limits = jnp.full(rows, max_new_tokens) if lengths is None else jnp.asarray(lengths)
    penalties = jnp.asarray(np.arange(1, max_new_tokens + 1) ** float(rules.length_penalty), jnp.float32)
    # Each end token ends a beam, so that among so many candidates there are enough that go on.
    candidates = max(2, 1 + len(rules.end_ids)) * beams
    start, cache = model.prefill(params, config, batch, prompt, max_new_tokens, beams)
    given = logits_rules.given_tokens(config, batch, start[:, 0], limits)

    def append(position, logits, running, found, ended, done):
        """One more token. `ended` [B, G] says which of the found are hypotheses, `done` [B] which rows can improve no
        more."""
        vocabulary = logits.shape[-1]
        scores = logits_rules.processed(_log_softmax(logits), position, running.tokens, given, rules)
        sums = scores + running.log_probability[..., None]
        best, index = jax.lax.top_k(sums.reshape(rows, beams * vocabulary), candidates)
        parent, token = index // vocabulary, index % vocabulary
        tokens = _pick(running.tokens, parent).at[:, :, position].set(token)
        at_limit = position + 1 >= limits
        ends = _is_in(token, rules.end_ids) | at_limit[:, None]

        best_open, chosen = jax.lax.top_k(jnp.where(ends, best + _NEVER, best), beams)
        running = _Running(_pick(tokens, chosen), best_open, _pick(token, chosen), _pick(parent, chosen))

        # Written so that what is not a number goes on and comes out.
        real = ~(best <= _NEVER / 2)
        ending = ends & real & (np.arange(candidates) < beams)[None] & ~done[:, None]
        scores = jnp.where(ending, best / penalties[position], _NEVER)
        merged = jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), found, Hypotheses(tokens, best, scores))
        scores, chosen = jax.lax.top_k(merged.score, beams)
        found = Hypotheses(_pick(merged.tokens, chosen), _pick(merged.log_probability, chosen), scores)
        ended = _pick(jnp.concatenate([ended, ending], axis=1), chosen)

        full = ended.all(axis=1)
        length = limits if rules.early_stopping == "never" and rules.length_penalty > 0 else position + 1
        hopeless = best_open[:, 0] / penalties[length - 1] <= jnp.where(full, scores[:, -1], _NEVER)
        done |= hopeless | at_limit | (full if rules.early_stopping == "true" else False)
        return running, found, ended, done

    def unfinished(carry):
        position, *_, done, _ = carry
        return (position < max_new_tokens) & ~done.all()

    def step(carry):
        position, running, *others, cache = carry
        logits, cache = model.decode_step(params, config, running.last, cache.reorder_beams(running.parent))
        return position + 1, *append(position, logits, running, *others), cache

    logits, cache = model.decode_step(params, config, start, cache)
    nothing = jnp.full((rows, beams, max_new_tokens), config.pad_id, jnp.int32)
    no_beam = jnp.zeros((rows, beams), jnp.int32)
    # There is one beam at first: of equal ones, the others would find the same.
    alone = jnp.broadcast_to(jnp.where(np.arange(beams) == 0, 0.0, _NEVER)[None], (rows, beams))
    never = jnp.full((rows, beams), _NEVER)
    first = append(
        0,
        logits,
        _Running(nothing, alone, no_beam, no_beam),
        Hypotheses(nothing, never, never),
        jnp.zeros((rows, beams), bool),
        jnp.zeros(rows, bool),
    )
    return jax.lax.while_loop(unfinished, step, (jnp.int32(1), *first, cache))[2]


@partial(jax.jit, static_argnames="config")
def compiled_score(
    params: Any,
    config: Any,
    batch: dict[str, Any],
    prompt: Prompt | None,
    targets: Int[Array, "C *B T"],
    targets_mask: Bool[Array, "C *B T"],
) -> Float[Array, "B C"]:
    params, prompt = tuned(params, prompt)
    model: Any = family(config)
    encoded, rows = model.encode(params, config, batch, prompt), len(batch["inputs"])
    start = jnp.asarray(batch.get("start_ids", np.full(rows, config.start_id)), targets.dtype)[:, None]

    def one(target_and_mask):
        target, mask = (jnp.broadcast_to(x, (rows, x.shape[-1])) for x in target_and_mask)
        shifted = batch | {"decoder_inputs": jnp.concatenate([start, target[:, :-1]], axis=1)}
        logits = model.decode(params, config, encoded, shifted, prompt)
        chosen = jnp.take_along_axis(_log_softmax(logits), target[..., None], axis=-1)[..., 0]
        return jnp.where(mask, chosen, 0.0).sum(axis=1)

    return jax.lax.map(one, (targets, targets_mask)).T


# --------------------------------------------------------------------------------------------------------------
# Parts


def draw_weights(scores: Float[Array, "B V"], decoding: Decoding) -> Float[Array, "B V"]:
    """The logarithms of what tokens are drawn in proportion to: temperature first, then top-k, then top-p of what is
    left. -inf for what is left out; of equally probable tokens at the edge all stay."""
    weights = scores / decoding.temperature
    if decoding.top_k is not None:
        best, _ = jax.lax.top_k(weights, min(decoding.top_k, weights.shape[1]))
        weights = jnp.where(weights < best[:, -1:], -jnp.inf, weights)
    if decoding.top_p < 1:
        descending = jnp.sort(weights, axis=1, descending=True)
        probabilities = jax.nn.softmax(descending)
        more_probable = jnp.cumsum(probabilities, axis=1) - probabilities
        edge = jnp.where(more_probable < decoding.top_p, descending, jnp.inf).min(axis=1, keepdims=True)
        weights = jnp.where(weights < edge, -jnp.inf, weights)
    return weights


def _log_softmax(logits: Float[Array, "*rows V"]) -> Float[Array, "*rows V"]:
    """Log-probabilities of tokens; NaN for all of them where a logit is not finite, which results keep."""
    finite = jnp.isfinite(jnp.abs(logits).max(axis=-1, keepdims=True))  # in one pass, without a mask of all logits
    return jnp.where(finite, jax.nn.log_softmax(logits), jnp.nan)


def _pick(x: Array, index: Int[Array, "B _"], axis: int = 1) -> Array:
    """The entries `index` of an axis that follows the rows', for each row."""
    shape = *[1] * (axis - 1), *index.shape, *[1] * (x.ndim - axis - 1)
    return jnp.take_along_axis(x, index.reshape(shape), axis=axis, mode="promise_in_bounds")


def _is_in(tokens: Int[Array, "*rows"], ids: Sequence[int]) -> Bool[Array, "*rows"]:
    return jnp.isin(tokens, np.asarray(ids, np.int32))
