"""Generation, one compiled loop for every family, and the scoring of given targets. Shapes: see `prompt_jax.models`."""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from prompt_jax.config.decoding import Decoding
from prompt_jax.errors import ConfigError
from prompt_jax.inference import logits_rules
from prompt_jax.inference.beam_search import Hypotheses, search_beams
from prompt_jax.models import Config, check_context, family, longest_row
from prompt_jax.models.prompt import Prompt, check_prompt_ids

HostOrDevice = np.ndarray | jax.Array
# The targets and targets_mask of `score`.
Targets = tuple[Int[HostOrDevice, "C *B T"], Bool[HostOrDevice, "C *B T"]]

FROM_CHECKPOINT = Decoding()
GREEDY = Decoding(beams=1)
MAX_NEW_TOKENS = 32  # if neither the caller nor the checkpoint gives a limit


class Generated(NamedTuple):
    """Generated tokens, without start token and input, and their log-probability."""

    tokens: Int[Array, "B N"]  # int32; the pad id after a row's end token
    # float32, in nats: the sum over the row's tokens including the end token; NaN if one of its logits is not finite
    log_probability: Float[Array, "B"]
    targets: Float[Array, "B C"] | None = None  # the log-probabilities of given targets, as `score` returns them


def generate(
    params: Any,
    config: Config,
    batch: dict[str, Any],
    prompt: Prompt | None = None,
    *,
    max_new_tokens: int | None = None,
    decoding: Decoding = FROM_CHECKPOINT,
    key: PRNGKeyArray | None = None,
) -> Int[Array, "B N"]:
    """Return the generated tokens of each row.

    The checkpoint's generation settings apply unless `decoding` overrides them. A causal model continues the inputs. If
    its prompt was trained on a task, end the inputs with the separator that the task puts between source and target
    (`Tokenizer.separator`). An infix stands before the last token of the inputs.

    Args:
      params: a model's `.params`.
      config: its `.config`.
      batch: `inputs` [B, S] and `inputs_mask` [B, S]; with a stacked prompt also `prompt_ids` [B]. A causal model's
        batch may hold the last token of each text separately, as `start_ids` [B].
      prompt: None for the base model; as for `forward`.
      max_new_tokens: N, the maximum number of tokens per row. The default is the checkpoint's, or MAX_NEW_TOKENS.
      decoding: greedy, beam search or sampling, and constraints on the tokens.
      key: required for sampling. A row's samples depend on its number, not on the other rows.

    Returns:
      The new tokens without start token and input, int32; the pad id after a row's end token.

    Raises:
      PromptStackError, PromptPartError, ContextError: as `forward`.
      ConfigError: `decoding` does not fit the model or `max_new_tokens`, or sampling has no key.
    """
    return generate_scored(
        params, config, batch, prompt, max_new_tokens=max_new_tokens, decoding=decoding, key=key
    ).tokens


def generate_scored(
    params: Any,
    config: Config,
    batch: dict[str, Any],
    prompt: Prompt | None = None,
    *,
    max_new_tokens: int | None = None,
    decoding: Decoding = FROM_CHECKPOINT,
    key: PRNGKeyArray | None = None,
    row_numbers: Int[HostOrDevice, "B"] | None = None,
    lengths: Int[HostOrDevice, "B"] | None = None,
    targets: Targets | None = None,
    check: bool = True,
) -> Generated:
    """Return the generated tokens of each row and their log-probability.

    The log-probability is the model's, even if tokens were sampled at another temperature, banned or penalized.
    Beam search is the exception: as in Transformers, it sums the processed scores. A token that the checkpoint forces
    has probability 1.

    Args:
      params, config, batch, prompt, max_new_tokens, decoding, key: as for `generate`.
      row_numbers: the numbers that determine each row's samples. The default is 0, 1, 2...
      lengths: the maximum number of tokens of each row, from 1 to `max_new_tokens`. The default is `max_new_tokens`.
      targets: the `targets` and `targets_mask` of `score`, to score them too. The input is encoded once.
      check: set to False if the batch is known to be valid. The check copies prompt ids and masks to the host.
    """
    if decoding.temperature and key is None:
        raise ConfigError(f"decoding.temperature is {decoding.temperature}, and sampling needs a `key`")
    longest = 0 if targets is None else targets[0].shape[-1]
    config, batch, limit, lengths = _prepare(config, batch, prompt, max_new_tokens, lengths, check, longest)
    if row_numbers is None:
        row_numbers = np.arange(len(batch["inputs"]))
    # The seed is in the key. Another seed needs no compilation.
    unseeded = dataclasses.replace(decoding, seed=0)
    return _generate(params, config, batch, prompt, limit, lengths, unseeded, key, row_numbers, targets)


def beam_search(
    params: Any,
    config: Config,
    batch: dict[str, Any],
    prompt: Prompt | None = None,
    *,
    max_new_tokens: int | None = None,
    decoding: Decoding,
    lengths: Int[HostOrDevice, "B"] | None = None,
) -> Hypotheses:
    """Return all hypotheses of beam search. `generate` returns the best one only.

    Arguments and errors as for `generate_scored`.
    """
    config, batch, limit, lengths = _prepare(config, batch, prompt, max_new_tokens, lengths, True)
    return _search(params, config, batch, prompt, limit, lengths, decoding)


def score(
    params: Any,
    config: Config,
    batch: dict[str, Any],
    prompt: Prompt | None,
    targets: Int[HostOrDevice, "C *B T"],
    targets_mask: Bool[HostOrDevice, "C *B T"],
    *,
    check: bool = True,
) -> Float[Array, "B C"]:
    """Return the log-probability, in nats, of each of C targets for each row.

    The input is encoded once for all targets. A causal model's targets continue the inputs, as in `generate`. The
    result is NaN if a logit at one of the target's tokens is not finite.

    Args:
      params, config, batch, prompt, check: as for `generate_scored`.
      targets: token ids with the end token, padded on the right: [C, T] if all rows share them, else [C, B, T].
      targets_mask: True for tokens that count.

    Raises:
      PromptStackError, PromptPartError, ContextError: as `forward`.
    """
    config, batch, _, _ = _prepare(config, batch, prompt, targets.shape[-1], None, check)
    return _score(params, config, batch, prompt, (targets, targets_mask))


def _prepare(
    config: Config,
    batch: dict[str, Any],
    prompt: Prompt | None,
    max_new_tokens: int | None,
    lengths: Any,
    check: bool,
    longest_target: int = 0,
) -> tuple[Any, dict[str, Any], int, Int[HostOrDevice, "B"] | None]:
    """Return config and batch as the compiled functions take them, and the most tokens of any row and of each row."""
    if family(config).causal and "start_ids" not in batch:
        batch = _split_last(config, batch)
    limit, lengths = _limits(config, batch, max_new_tokens, lengths)
    if check:
        check_prompt_ids(prompt, batch.get("prompt_ids"), len(batch["inputs"]))
        config = check_context(config, prompt, longest_row(batch["inputs_mask"]), max(limit, longest_target))
    return config, batch, limit, lengths


def _split_last(config: Config, batch: dict[str, Any]) -> dict[str, Any]:
    """Move the last token of each text from `inputs` to `start_ids`. An empty text gets the model's start token."""
    ids, mask = jnp.asarray(batch["inputs"]), jnp.asarray(batch["inputs_mask"], bool)
    positions = np.arange(ids.shape[1])[None]
    last = jnp.where(mask, positions, -1).max(axis=1, keepdims=True)
    start = jnp.take_along_axis(ids, jnp.maximum(last, 0), axis=1)
    start = jnp.where(last < 0, config.start_id, start)[:, 0].astype(jnp.int32)
    return {**batch, "inputs_mask": mask & (positions != last), "start_ids": start}


def _limits(
    config: Config, batch: dict[str, Any], max_new_tokens: int | None, lengths: Any
) -> tuple[int, Int[HostOrDevice, "B"] | None]:
    """Return the maximum number of tokens of any row, and of each row if they differ.

    The checkpoint's limits apply if the caller gives none.
    """
    settings = config.generation
    if max_new_tokens is not None or lengths is not None:
        return MAX_NEW_TOKENS if max_new_tokens is None else max_new_tokens, lengths
    if settings.max_new_tokens is not None:
        return settings.max_new_tokens, None
    if settings.max_length is None:
        return MAX_NEW_TOKENS, None
    if not family(config).causal:
        return max(settings.max_length - 1, 1), None
    used = np.asarray(jax.device_get(batch["inputs_mask"])).sum(axis=1) + 1  # with the start token
    remaining = np.maximum(settings.max_length - used, 1).astype(np.int32)
    return int(remaining.max()), remaining


# --------------------------------------------------------------------------------------------------------------
# The compiled functions


@partial(jax.jit, static_argnames=("config", "max_new_tokens", "decoding"))
def _generate(
    params: Any,
    config: Config,
    batch: dict[str, Any],
    prompt: Prompt | None,
    max_new_tokens: int,
    lengths: Int[Array, "B"] | None,
    decoding: Decoding,
    key: PRNGKeyArray | None,
    row_numbers: Int[Array, "B"],
    targets: Targets | None,
) -> Generated:
    model: Any = family(config)
    encoded = model.encode(params, config, batch, prompt)
    scores = None if targets is None else _score_targets(params, config, encoded, batch, prompt, targets)
    rules = logits_rules.merged_settings(config, decoding, max_new_tokens)
    if rules.beams > 1:
        hypotheses = search_beams(params, config, encoded, batch, prompt, max_new_tokens, lengths, rules)
        return Generated(hypotheses.tokens[:, 0], hypotheses.log_probability[:, 0], scores)
    rows = len(batch["inputs"])
    limits = jnp.full(rows, max_new_tokens) if lengths is None else jnp.asarray(lengths)
    start, cache = model.prefill(params, config, encoded, batch, prompt, max_new_tokens)
    given = logits_rules.given_tokens(config, batch, start[:, 0], limits)
    keys: Any = None if key is None else jax.vmap(jax.random.fold_in, (None, 0))(key, row_numbers)

    def append(position, logits, so_far, done):
        """Append each row's next token. Also return this token and which rows are finished."""
        scores = logits_rules.apply_rules(logits, position, so_far.tokens[:, None], given, rules)[:, 0]
        if decoding.temperature:
            step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, position)
            token = jax.vmap(jax.random.categorical)(step_keys, sampling_logits(scores, decoding))
        else:
            token = jnp.argmax(scores, axis=-1)
        gained = jnp.take_along_axis(logits_rules.log_softmax(logits[:, 0]), token[:, None], axis=1)[:, 0]
        certain = logits_rules.is_forced(position, limits, rules) & ~jnp.isnan(gained)
        gained = jnp.where(done | certain, 0.0, gained)
        token = jnp.where(done, config.pad_id, token.astype(jnp.int32))
        so_far = Generated(so_far.tokens.at[:, position].set(token), so_far.log_probability + gained)
        return so_far, token, done | logits_rules.is_end(token, rules) | (position + 1 >= limits)

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
    generated = jax.lax.while_loop(unfinished, step, (jnp.int32(1), *first, cache))[1]
    return generated._replace(targets=scores)


@partial(jax.jit, static_argnames=("config", "max_new_tokens", "decoding"))
def _search(
    params: Any,
    config: Config,
    batch: dict[str, Any],
    prompt: Prompt | None,
    max_new_tokens: int,
    lengths: Int[Array, "B"] | None,
    decoding: Decoding,
) -> Hypotheses:
    rules = logits_rules.merged_settings(config, decoding, max_new_tokens)
    encoded = family(config).encode(params, config, batch, prompt)
    return search_beams(params, config, encoded, batch, prompt, max_new_tokens, lengths, rules)


@partial(jax.jit, static_argnames="config")
def _score(
    params: Any,
    config: Config,
    batch: dict[str, Any],
    prompt: Prompt | None,
    targets: Targets,
) -> Float[Array, "B C"]:
    encoded = family(config).encode(params, config, batch, prompt)
    return _score_targets(params, config, encoded, batch, prompt, targets)


def _score_targets(
    params: Any, config: Config, encoded: Any, batch: dict[str, Any], prompt: Prompt | None, targets: Targets
) -> Float[Array, "B C"]:
    """Return the targets' log-probabilities, from `encode`'s result for the inputs. Called while tracing."""
    model, rows = family(config), len(batch["inputs"])
    start = jnp.asarray(batch.get("start_ids", np.full(rows, config.start_id)), targets[0].dtype)[:, None]

    def score_one(target_and_mask):
        target, mask = (jnp.broadcast_to(x, (rows, x.shape[-1])) for x in target_and_mask)
        shifted = batch | {"decoder_inputs": jnp.concatenate([start, target[:, :-1]], axis=1)}
        logits = model.decode(params, config, encoded, shifted, prompt)
        chosen = jnp.take_along_axis(logits_rules.log_softmax(logits), target[..., None], axis=-1)[..., 0]
        return jnp.where(mask, chosen, 0.0).sum(axis=1)

    return jax.lax.map(score_one, targets).T


def sampling_logits(scores: Float[Array, "B V"], decoding: Decoding) -> Float[Array, "B V"]:
    """Apply temperature, then top-k, then top-p. Excluded tokens get -inf; ties at the boundary are kept."""
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
