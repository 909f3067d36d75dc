"""Generation, one compiled loop for every family, and the scoring of given answers. Shapes: see `prompt_jax.models`."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from prompt_jax.models import family
from prompt_jax.models.prompt import Prompt


@partial(jax.jit, static_argnames=("config", "max_new_tokens"))
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
      batch: `inputs` [B, S] and `inputs_mask` [B, S].
      max_new_tokens: N, the most tokens a row gets.

    Returns:
      The new tokens alone, without start token or input, int32; after a row's end token the pad id.
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be positive, not {max_new_tokens}")
    model = family(config)
    logits, cache = model.prefill(params, config, batch, prompt, max_new_tokens)
    tokens = jnp.full((logits.shape[0], max_new_tokens), config.pad_id, jnp.int32)

    def choose(logits, done):
        token = jnp.where(done, config.pad_id, jnp.argmax(logits, axis=-1).astype(jnp.int32))
        return token, done | (token == config.eos_id)

    def unfinished(carry):
        position, _, _, done, _ = carry
        return (position < max_new_tokens) & ~done.all()

    def step(carry):
        position, tokens, last, done, cache = carry
        logits, cache = model.decode_step(params, config, last, cache)
        token, done = choose(logits, done)
        return position + 1, tokens.at[:, position].set(token), token, done, cache

    token, done = choose(logits, jnp.zeros(len(tokens), bool))
    start = (jnp.int32(1), tokens.at[:, 0].set(token), token, done, cache)
    return jax.lax.while_loop(unfinished, step, start)[1]


@partial(jax.jit, static_argnames="config")
def score(
    params: Any,
    config: Any,
    batch: dict[str, Any],
    prompt: Prompt | None,
    targets: Int[Array, "C T"],
    targets_mask: Bool[Array, "C T"],
) -> Float[Array, "B C"]:
    """Log-probability, in nats, of each of C given targets for each row. The input is encoded once for all of them.

    Args:
      params, config, prompt: as for `forward`.
      batch: `inputs` [B, S] and `inputs_mask` [B, S].
      targets: token ids with the end token, padded on the right.
      targets_mask: which of them count.
    """
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
