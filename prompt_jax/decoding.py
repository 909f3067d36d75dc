"""Generation, one compiled loop for every family, and the scoring of given answers. Shapes: see `prompt_jax.models`."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from prompt_jax.models import family
from prompt_jax.models.prompt import Prompt, check_prompt_ids

HostOrDevice = np.ndarray | jax.Array


class Generated(NamedTuple):
    """What was generated: new tokens alone, without start token or input; after a row's end token the pad id."""

    tokens: Int[Array, "B N"]  # int32
    log_probability: Float[Array, "B"]  # float32, nats: of the row's tokens, its end token included


def generate(
    params: Any,
    config: Any,
    batch: dict[str, Any],
    prompt: Prompt | None = None,
    *,
    max_new_tokens: int = 32,
) -> Int[Array, "B N"]:
    """The most probable next token, again and again, until each row has ended.

    Args:
      params, config, prompt: as for `forward`.
      batch: `inputs` [B, S] and `inputs_mask` [B, S], and with a stacked prompt `prompt_ids` [B].
      max_new_tokens: N, the most tokens a row gets.

    Returns:
      The new tokens alone, without start token or input, int32; after a row's end token the pad id.

    Raises:
      PromptStackError: as `forward`.
    """
    return generate_scored(params, config, batch, prompt, max_new_tokens=max_new_tokens).tokens


def generate_scored(
    params: Any,
    config: Any,
    batch: dict[str, Any],
    prompt: Prompt | None = None,
    *,
    max_new_tokens: int = 32,
    lengths: Int[HostOrDevice, "B"] | None = None,
) -> Generated:
    """`generate` with each row's log-probability.

    Args:
      params, config, batch, prompt, max_new_tokens: as for `generate`.
      lengths: the most tokens of each row, where they differ: from 1 to `max_new_tokens`.
    """
    check_prompt_ids(prompt, batch.get("prompt_ids"), len(batch["inputs"]))
    return compiled_generate(params, config, batch, prompt, max_new_tokens, lengths)


def score(
    params: Any,
    config: Any,
    batch: dict[str, Any],
    prompt: Prompt | None,
    targets: Int[HostOrDevice, "C T"],
    targets_mask: Bool[HostOrDevice, "C T"],
) -> Float[Array, "B C"]:
    """Log-probability, in nats, of each of C given targets for each row. The input is encoded once for all of them.

    Args:
      params, config, batch, prompt: as for `generate`.
      targets: token ids with the end token, padded on the right.
      targets_mask: which of them count.

    Raises:
      PromptStackError: as `forward`.
    """
    check_prompt_ids(prompt, batch.get("prompt_ids"), len(batch["inputs"]))
    return compiled_score(params, config, batch, prompt, targets, targets_mask)


# --------------------------------------------------------------------------------------------------------------
# The compiled functions, for callers that have checked their prompt ids: to read them back is to wait for the device


@partial(jax.jit, static_argnames=("config", "max_new_tokens"))
def compiled_generate(
    params: Any,
    config: Any,
    batch: dict[str, Any],
    prompt: Prompt | None,
    max_new_tokens: int,
    lengths: Int[Array, "B"] | None = None,
) -> Generated:
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be positive, not {max_new_tokens}")
    model = family(config)
    logits, cache = model.prefill(params, config, batch, prompt, max_new_tokens)
    rows = logits.shape[0]

    def append(position, logits, so_far, done):
        """Each row's next token, and which rows have ended with it."""
        token = jnp.where(done, config.pad_id, jnp.argmax(logits, axis=-1).astype(jnp.int32))
        gained = jnp.where(done, 0.0, logits.max(axis=-1) - jax.nn.logsumexp(logits, axis=-1))
        so_far = Generated(so_far.tokens.at[:, position].set(token), so_far.log_probability + gained)
        done |= token == config.eos_id
        return so_far, token, done if lengths is None else done | (position + 1 >= lengths)

    def unfinished(carry):
        position, _, _, done, _ = carry
        return (position < max_new_tokens) & ~done.all()

    def step(carry):
        position, so_far, last, done, cache = carry
        logits, cache = model.decode_step(params, config, last, cache)
        return position + 1, *append(position, logits, so_far, done), cache

    nothing = Generated(jnp.full((rows, max_new_tokens), config.pad_id, jnp.int32), jnp.zeros(rows))
    start = (jnp.int32(1), *append(0, logits, nothing, jnp.zeros(rows, bool)), cache)
    return jax.lax.while_loop(unfinished, step, start)[1]


@partial(jax.jit, static_argnames="config")
def compiled_score(
    params: Any,
    config: Any,
    batch: dict[str, Any],
    prompt: Prompt | None,
    targets: Int[Array, "C T"],
    targets_mask: Bool[Array, "C T"],
) -> Float[Array, "B C"]:
    model = family(config)
    encoded = model.encode(params, config, batch, prompt)
    rows = encoded.mask.shape[0]

    def one(target_and_mask):
        target, mask = (jnp.broadcast_to(x, (rows, x.shape[0])) for x in target_and_mask)
        start = jnp.full((rows, 1), config.start_id, target.dtype)
        shifted = {"decoder_inputs": jnp.concatenate([start, target[:, :-1]], axis=1)}
        logits = model.decode(params, config, encoded, shifted, prompt)
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), target[..., None], axis=-1)[..., 0]
        return jnp.where(mask, chosen, 0.0).sum(axis=1)

    return jax.lax.map(one, (targets, targets_mask)).T
