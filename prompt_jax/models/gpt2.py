"""GPT-2 (Radford et al. 2019) as pure functions, of every size, DistilGPT2 included.

    logits = forward(params, config, batch, prompt)

What a causal model reads is divided into source and target, as Li and Liang 2021 do for table to text: `encode` reads
the source and keeps its keys and values, `decode` reads the start token and the target after it. The two together are
the model reading source, start token and target as one text; but only the target's logits are computed, and batches
look like those of encoder-decoders.

Nothing in a prompt before the text depends on the text. Its keys and values are therefore computed once for the whole
batch, and each row attends to the same ones: virtual tokens become the prefix that they stand for (`as_prefix`).

Layers are stacked, `[L, ...]`, and run by `jax.lax.scan`. Positions are learned and counted over real tokens, so that
padding on any side changes nothing. Activations have the embedding's dtype; norms, softmax and logits are float32.
Shapes: see `prompt_jax.models`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from prompt_jax.config import Remat
from prompt_jax.models.attention import MASKED, Part, attend, dropout
from prompt_jax.models.cache import Cache, decode_layers, empty_cache
from prompt_jax.models.generation import GenerationSettings
from prompt_jax.models.inputs import Past, in_order, past_of, real_first
from prompt_jax.models.layers import (
    Params,
    adapted,
    heads,
    keys_or_none,
    layer_norm,
    merge,
    narrow,
    run_layers,
    widen,
)
from prompt_jax.models.parameter import Parameter
from prompt_jax.models.prompt import Prefix, Prompt, PromptPartError, Site, check_parts, check_prompt_ids

Batch = Mapping[str, Any]


CAUSAL = True  # whether source and target are one text


@dataclasses.dataclass(frozen=True)
class GPT2Config:
    """The architecture, and how to compute it (`dropout_rate`, `remat`)."""

    vocab_size: int
    positions: int  # the longest text, with everything that stands before it
    d_model: int
    d_ff: int
    num_heads: int
    layers: int
    norm_epsilon: float = 1e-5
    pad_id: int = 50256
    eos_id: int = 50256
    start_id: int = 50256  # stands between source and target
    dropout_rate: float = 0.1  # used only where a key is given
    remat: Remat = "none"  # what the backward pass recomputes, to save memory
    generation: GenerationSettings = GenerationSettings()

    @property
    def d_kv(self) -> int:
        return self.d_model // self.num_heads


def parameters(config: GPT2Config) -> list[Parameter]:
    """Every parameter of a model, in one table. Hugging Face's `Conv1D` stores [in, out]."""
    d, h, k, f, depth = config.d_model, config.num_heads, config.d_kv, config.d_ff, config.layers
    table = [
        Parameter("embedding", "wte.weight", (config.vocab_size, d), ("vocab", "embed")),
        Parameter("positions", "wpe.weight", (config.positions, d), ("positions", "embed")),
        Parameter("final_norm/scale", "ln_f.weight", (d,), ("embed",)),
        Parameter("final_norm/bias", "ln_f.bias", (d,), ("embed",)),
    ]
    layer: list[tuple[str, str, tuple[int, ...], tuple[str, ...], tuple[int, ...] | None]] = [
        ("self/norm/scale", "ln_1.weight", (d,), ("embed",), None),
        ("self/norm/bias", "ln_1.bias", (d,), ("embed",), None),
        ("self/o", "attn.c_proj.weight", (h, k, d), ("heads", "kv", "embed"), (d, d)),
        ("self/o_bias", "attn.c_proj.bias", (d,), ("embed",), None),
        ("mlp/norm/scale", "ln_2.weight", (d,), ("embed",), None),
        ("mlp/norm/bias", "ln_2.bias", (d,), ("embed",), None),
        ("mlp/up", "mlp.c_fc.weight", (d, f), ("embed", "mlp"), None),
        ("mlp/up_bias", "mlp.c_fc.bias", (f,), ("mlp",), None),
        ("mlp/down", "mlp.c_proj.weight", (f, d), ("mlp", "embed"), None),
        ("mlp/down_bias", "mlp.c_proj.bias", (d,), ("embed",), None),
    ]
    for path, name, shape, axes, stored in layer:
        table.append(Parameter(f"layers/0/{path}", f"h.{{layer}}.{name}", shape, axes, False, depth, stored))
    for third, path in enumerate("qkv"):
        at, name = f"layers/0/self/{path}", "h.{layer}.attn.c_attn"
        matrix = Parameter(at, f"{name}.weight", (d, h, k), ("embed", "heads", "kv"), False, depth, (d, 3 * d), third)
        bias = Parameter(f"{at}_bias", f"{name}.bias", (h, k), ("heads", "kv"), False, depth, (3 * d,), third)
        table += [matrix, bias]
    return table


def sites(config: GPT2Config) -> dict[Site, tuple[int, int, int]]:
    """The attention sites that take a prefix, with their layers, heads and width of a head."""
    return {"decoder_self": (config.layers, config.num_heads, config.d_kv)}


def positions_needed(prompt: Prompt | None, source: int, target: int) -> dict[str, int]:
    """How many learned positions texts of these lengths take; the start token is one of the target's."""
    return {
        "prompt, source and target": source + target + sum(part.slots for part in (prompt or Prompt()).parts.values())
    }


# --------------------------------------------------------------------------------------------------------------
# The forward pass


def forward(
    params: Params,
    config: GPT2Config,
    batch: Batch,
    prompt: Prompt | None = None,
    *,
    key: PRNGKeyArray | None = None,
) -> Float[Array, "B T V"]:
    """Logits of the target's positions, or of all where the text is not divided.

    Args:
      params: the frozen base.
      config: its architecture.
      batch: `inputs` [B, S] int32 and `inputs_mask` [B, S] bool; `decoder_inputs` [B, T] int32 (the start token, then
        the target without its last token) and, where these are not padded on the right alone, `decoder_mask` [B, T].
        Without `decoder_inputs` the inputs are one text, [B, T]. With a stacked prompt `prompt_ids` [B] int32.
      prompt: what is added to the base; None is the base model.
      key: turns dropout on.

    Returns:
      float32; what stands at masked positions has no meaning.
    """
    keys = keys_or_none(key, 2)
    if "decoder_inputs" in batch:
        encoded = encode(params, config, batch, prompt, key=keys[0])
        return decode(params, config, encoded, batch, prompt, key=keys[1])
    before, between = _prefixes(params, config, batch, prompt, keys[0])
    if between.layers is not None:
        raise PromptPartError("an infix stands between source and target; give the target as `decoder_inputs`")
    text = {"decoder_inputs": batch["inputs"], "decoder_mask": batch["inputs_mask"]}
    return decode(params, config, Encoded((before,), before.used_slots), text, prompt, key=keys[1])


class Encoded(NamedTuple):
    """What the target is read after: a prefix, the source, an infix."""

    past: tuple[Past, ...]
    position: Int[Array, "#B"]  # of the start token


def encode(
    params: Params,
    config: GPT2Config,
    batch: Batch,
    prompt: Prompt | None = None,
    *,
    key: PRNGKeyArray | None = None,
) -> Encoded:
    """Reads the source, after the prompt. Arguments as for `forward`."""
    keys = keys_or_none(key, 2)
    before, between = _prefixes(params, config, batch, prompt, keys[0])
    order = real_first(batch["inputs_mask"])
    ids, mask = in_order(batch["inputs"], order), in_order(batch["inputs_mask"], order).astype(bool)
    position = before.used_slots
    x = params["embedding"][ids]
    _, source = _run(params, config, x, position[:, None] + np.arange(ids.shape[1])[None], (before,), key=keys[1])
    position = position + mask.sum(axis=1, dtype=jnp.int32) + between.used_slots
    return Encoded((before, Past(source, used=mask), between), position)


def decode(
    params: Params,
    config: GPT2Config,
    encoded: Encoded,
    batch: Batch,
    prompt: Prompt | None = None,
    *,
    key: PRNGKeyArray | None = None,
) -> Float[Array, "B T V"]:
    """Reads the target after what is encoded. Arguments as for `forward`."""
    ids, order = jnp.asarray(batch["decoder_inputs"]), None
    if batch.get("decoder_mask") is not None:
        order = real_first(batch["decoder_mask"])
        ids = in_order(ids, order)
    places = encoded.position[:, None] + np.arange(ids.shape[1])[None]
    x, _ = _run(params, config, params["embedding"][ids], places, encoded.past, key=key)
    if order is not None:
        x = in_order(x, jnp.argsort(order, axis=1))
    return _logits(params, config, x)


def as_prefix(params: Params, config: GPT2Config, prompt: Prompt, *, key: PRNGKeyArray | None = None) -> Prompt:
    """The same prompt with the keys and values of its virtual tokens in place of these; logits are equal.

    Args:
      params, config: the frozen base, on which they depend.
      prompt: a single or a stacked one.
      key: turns dropout on.

    Raises:
      PromptPartError: virtual tokens after the input, which depend on it.
    """
    check_parts(prompt, ("encoder_tokens", "decoder_self"), "GPT-2")
    tokens, prefix = prompt.encoder_tokens, prompt.decoder_self
    if prefix is not None and not prefix.shift_positions:
        raise PromptPartError("GPT-2's positions are always counted on from a prefix; shift_positions=False is of BART")
    if tokens is None:
        return prompt
    if tokens.placement == "after":
        raise PromptPartError(
            "virtual tokens after the input depend on it, and GPT-2 has no place for them; an infix has"
        )
    if prefix is not None and prefix.placement == "after":
        raise PromptPartError("virtual tokens go together with a prefix before them, and not with an infix")
    stacked = prompt.stacked is not None
    single: Any = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], prompt) if not stacked else prompt
    tokens, prefix = single.encoder_tokens, single.decoder_self  # [N, ...]
    embeddings = jnp.asarray(tokens.embeddings).astype(params["embedding"].dtype)
    rows, slots = embeddings.shape[:2]
    used = None if tokens.mask is None else jnp.asarray(tokens.mask, bool)
    past = past_of(prefix, jnp.arange(rows))
    places = jnp.arange(slots)[None] if used is None else jnp.maximum(jnp.cumsum(used, axis=1) - 1, 0)
    places = past.used_slots[:, None] + places
    _, (keys, values) = _run(params, config, embeddings, places, (past,), used=used, key=key)
    made = Prefix(keys.swapaxes(0, 1), values.swapaxes(0, 1), used)  # [N, L, P, H, K]
    if prefix is not None:
        made = _joined(prefix, made)
    result = Prompt(decoder_self=made)
    return result if stacked else jax.tree.map(lambda leaf: leaf[0], result)


def activations(
    params: Params, config: GPT2Config, batch: Batch, prompt: Prompt | None = None
) -> dict[Site, tuple[Float[Array, "L B S H K"], Float[Array, "L B S H K"]]]:
    """The keys and values of a text at each attention site: what a prefix of these tokens is.

    Args:
      params, config, prompt: as for `forward`.
      batch: `inputs` and `inputs_mask`; real positions come first in each row of the result.
    """
    source = encode(params, config, batch, prompt).past[1].layers
    assert source is not None
    return {"decoder_self": source}


# --------------------------------------------------------------------------------------------------------------
# One token at a time, for `prompt_jax.decoding`


def prefill(
    params: Params, config: GPT2Config, batch: Batch, prompt: Prompt | None, capacity: int, beams: int = 1
) -> tuple[Int[Array, "B G"], Cache]:
    """Reads the source; gives the start tokens (`start_ids` of the batch, if it has any), and a cache with room for
    `capacity` tokens."""
    rows = len(batch["inputs"])
    encoded = encode(params, config, batch, prompt)
    cache = empty_cache(
        params["layers"],
        encoded.past,
        rows=rows,
        beams=beams,
        capacity=capacity,
        heads=config.num_heads,
        width=config.d_kv,
        dtype=params["embedding"].dtype,
        position=encoded.position,
    )
    start = jnp.asarray(batch.get("start_ids", np.full(rows, config.start_id, np.int32)))
    return jnp.broadcast_to(start[:, None], (rows, beams)), cache


def decode_step(
    params: Params, config: GPT2Config, tokens: Int[Array, "B G"], cache: Cache
) -> tuple[Float[Array, "B G V"], Cache]:
    """Appends one token to each beam of each row; gives the logits of the next."""

    def layer(x, weights, append, past):
        q, k, v = _qkv(x, weights["self"], config)
        own, generated = append(k, v)
        parts = generated, *(part for number in range(len(cache.seen)) for part in past(number))
        x = x + adapted(_projected(attend(q, *parts), weights["self"]), weights["self"])
        return adapted(x + _mlp(x, weights["mlp"], config, None), weights), own

    x = params["embedding"][tokens] + params["positions"][cache.position + cache.length][:, None]
    x, cache = decode_layers(layer, x, params["layers"], cache)
    return _logits(params, config, x), cache


# --------------------------------------------------------------------------------------------------------------
# Parts


def _prefixes(
    params: Params, config: GPT2Config, batch: Batch, prompt: Prompt | None, key: PRNGKeyArray | None
) -> tuple[Past, Past]:
    """What stands before the text, and what between source and target."""
    ids = batch.get("prompt_ids")
    check_prompt_ids(prompt, ids, len(batch["inputs"]))
    prefix = None if prompt is None else as_prefix(params, config, prompt, key=key).decoder_self
    if prefix is not None and prefix.placement == "after":
        return Past(None), past_of(prefix, ids)
    return past_of(prefix, ids), Past(None)


def _joined(first: Any, second: Prefix) -> Prefix:
    """Two prefixes [N, L, P, H, K] as one, the second after the first."""
    keys, values = (
        jnp.concatenate([jnp.asarray(a).astype(b.dtype), b], axis=2)
        for a, b in ((first.keys, second.keys), (first.values, second.values))
    )
    if first.mask is None and second.mask is None:
        return first.replace(keys=keys, values=values)
    rows = len(keys)
    masks = [
        jnp.ones((rows, prefix.keys.shape[2]), bool) if prefix.mask is None else jnp.asarray(prefix.mask, bool)
        for prefix in (first, second)
    ]
    return first.replace(keys=keys, values=values, mask=jnp.concatenate(masks, axis=1))


def _run(
    params: Params,
    config: GPT2Config,
    x: Float[Array, "B T D"],
    places: Int[Any, "#B T"],
    past: Sequence[Past],
    *,
    used: Any = None,
    key: PRNGKeyArray | None,
) -> tuple[Float[Array, "B T D"], Any]:
    """Reads embedded tokens, each after those before it and all of the past; gives what comes out of the layers, and
    the tokens' keys and values [L, B, T, H, K]. `used` [B, T] says which of them are to be seen by others."""
    positions = np.arange(x.shape[1])
    bias = jnp.asarray(np.where(positions[None, :] <= positions[:, None], 0.0, MASKED)[None, None], jnp.float32)
    if used is not None:
        bias = bias + jnp.where(used, 0.0, MASKED)[:, None, None, :]

    def layer(x, weights, extra, keys):
        q, k, v = _qkv(x, weights["self"], config)
        parts = Part(k, v, bias), *_parts(past, extra, x.dtype)
        mixed = attend(q, *parts, dropout_rate=config.dropout_rate, key=keys[0])
        x = x + adapted(dropout(_projected(mixed, weights["self"]), config.dropout_rate, keys[1]), weights["self"])
        return adapted(x + _mlp(x, weights["mlp"], config, keys[2]), weights), (k, v)

    keys = keys_or_none(key, 2)
    x = dropout(x + params["positions"][places], config.dropout_rate, keys[0])
    extra = tuple(each.layers for each in past)
    return run_layers(layer, x, params["layers"], extra, remat=config.remat, key=keys[1], keys_per_layer=3)


def _parts(past: Sequence[Past], extra: Sequence[Any], dtype: Any) -> list[Part]:
    return [part for each, layer in zip(past, extra, strict=True) for part in each.parts(layer, dtype)]


def _qkv(x: Float[Array, "B T D"], weights: Params, config: GPT2Config) -> list[Float[Array, "B T H K"]]:
    x = layer_norm(x, weights["norm"], config.norm_epsilon)
    q, k, v = (heads(x, weights[name]) + weights[f"{name}_bias"][None, None] for name in "qkv")
    return [q * config.d_kv**-0.5, k, v]


def _projected(x: Float[Array, "B T H K"], weights: Params) -> Float[Array, "B T D"]:
    return merge(x, weights["o"]) + weights["o_bias"][None, None]


def _mlp(x: Float[Array, "B T D"], weights: Params, config: GPT2Config, key: Any) -> Float[Array, "B T D"]:
    """The feed-forward sublayer with its adapter, without its residual connection."""
    x = layer_norm(x, weights["norm"], config.norm_epsilon)
    hidden = widen(x, weights["up"])
    # Keeps the product for the backward pass, and not what can be had from it again.
    hidden = jax.checkpoint(lambda h, bias: jax.nn.gelu(h + bias[None, None]))(hidden, weights["up_bias"])
    out = narrow(hidden, weights["down"]) + weights["down_bias"][None, None]
    return adapted(dropout(out, config.dropout_rate, key), weights)


def _logits(params: Params, config: GPT2Config, x: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
    x = layer_norm(x, params["final_norm"], config.norm_epsilon)
    return jnp.einsum("btd,vd->btv", x, params["embedding"], preferred_element_type=jnp.float32)
