"""BART (Lewis et al. 2020) as pure functions, base and large.

    logits = forward(params, config, batch, prompt)

Layers are stacked, `[L, ...]`, and run by `jax.lax.scan`; each sublayer is normalised after its residual connection.
Positions are learned and counted over real tokens, so that padding on any side changes nothing. Activations have the
embedding's dtype; norms, softmax and logits are float32. Shapes: see `prompt_jax.models`. Hugging Face's code has the
same numbers on inputs that are padded on the right.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from prompt_jax.config import Remat
from prompt_jax.models.attention import MASKED, Part, attend, dropout, mask_bias
from prompt_jax.models.cache import Cache, decode_layers, empty_cache
from prompt_jax.models.generation import GenerationSettings
from prompt_jax.models.inputs import Past, in_order, past_of, real_first, virtual_tokens
from prompt_jax.models.layers import (
    Params,
    adapted,
    heads,
    keys_or_none,
    layer_norm,
    merge,
    narrow,
    only_stack,
    run_layers,
    widen,
)
from prompt_jax.models.parameter import Parameter
from prompt_jax.models.prompt import Prefix, Prompt, Site, check_no_infix, check_prompt_ids

Batch = Mapping[str, Any]

NORM_EPSILON = 1e-5
FIRST_POSITION = 2  # the row of the table for position 0; those before it are not used


CAUSAL = False  # whether source and target are one text


@dataclasses.dataclass(frozen=True)
class BartConfig:
    """The architecture, and how to compute it (`dropout_rate`, `remat`)."""

    vocab_size: int
    positions: int  # the longest input, and the longest output
    d_model: int
    encoder_layers: int
    encoder_heads: int
    encoder_d_ff: int
    decoder_layers: int
    decoder_heads: int
    decoder_d_ff: int
    activation: Literal["gelu", "gelu_new", "relu"] = "gelu"
    scale_embedding: bool = False  # times d_model ** 0.5
    pad_id: int = 1
    eos_id: int = 2
    start_id: int = 2  # the decoder's first input
    bos_id: int = 0  # <s>, with which every text begins, the target included
    dropout_rate: float = 0.1  # used only where a key is given
    remat: Remat = "none"  # what the backward pass recomputes, to save memory
    generation: GenerationSettings = GenerationSettings()


def parameters(config: BartConfig) -> list[Parameter]:
    """Every parameter of a model, in one table."""
    d = config.d_model
    table = [
        Parameter("embedding", "shared.weight", (config.vocab_size, d), ("vocab", "embed")),
        Parameter("logits_bias", "final_logits_bias", (config.vocab_size,), ("vocab",), stored=(1, config.vocab_size)),
    ]
    sides = (
        ("encoder", config.encoder_layers, config.encoder_heads, config.encoder_d_ff),
        ("decoder", config.decoder_layers, config.decoder_heads, config.decoder_d_ff),
    )
    for side, depth, h, f in sides:
        k, at, block = d // h, f"{side}/layers/0", f"{side}.layers.{{layer}}"
        places = (config.positions + FIRST_POSITION, d)
        table.append(Parameter(f"{side}/positions", f"{side}.embed_positions.weight", places, ("positions", "embed")))
        table += _norm_parameters(f"{side}/embed_norm", f"{side}.layernorm_embedding", d, None)
        sublayers = [("self", "self_attn"), ("cross", "encoder_attn")][: 1 if side == "encoder" else 2]
        for site, stored in sublayers:
            for name in "qkv":
                linear, axes = f"{block}.{stored}.{name}_proj", ("heads", "kv")
                table.append(
                    Parameter(f"{at}/{site}/{name}", f"{linear}.weight", (d, h, k), ("embed", *axes), True, depth)
                )
                table.append(
                    Parameter(f"{at}/{site}/{name}_bias", f"{linear}.bias", (h, k), axes, False, depth, (h * k,))
                )
            linear, shape = f"{block}.{stored}.out_proj", (h, k, d)
            table.append(Parameter(f"{at}/{site}/o", f"{linear}.weight", shape, ("heads", "kv", "embed"), True, depth))
            table.append(Parameter(f"{at}/{site}/o_bias", f"{linear}.bias", (d,), ("embed",), False, depth))
            table += _norm_parameters(f"{at}/{site}/norm", f"{block}.{stored}_layer_norm", d, depth)
        table += [
            Parameter(f"{at}/mlp/up", f"{block}.fc1.weight", (d, f), ("embed", "mlp"), True, depth),
            Parameter(f"{at}/mlp/up_bias", f"{block}.fc1.bias", (f,), ("mlp",), False, depth),
            Parameter(f"{at}/mlp/down", f"{block}.fc2.weight", (f, d), ("mlp", "embed"), True, depth),
            Parameter(f"{at}/mlp/down_bias", f"{block}.fc2.bias", (d,), ("embed",), False, depth),
        ]
        table += _norm_parameters(f"{at}/mlp/norm", f"{block}.final_layer_norm", d, depth)
    return table


def _norm_parameters(path: str, name: str, width: int, layers: int | None) -> list[Parameter]:
    return [
        Parameter(f"{path}/scale", f"{name}.weight", (width,), ("embed",), False, layers),
        Parameter(f"{path}/bias", f"{name}.bias", (width,), ("embed",), False, layers),
    ]


def sites(config: BartConfig) -> dict[Site, tuple[int, int, int]]:
    """The attention sites that take a prefix, with their layers, heads and width of a head."""
    decoder = config.decoder_layers, config.decoder_heads, config.d_model // config.decoder_heads
    encoder = config.encoder_layers, config.encoder_heads, config.d_model // config.encoder_heads
    return {"encoder_self": encoder, "decoder_self": decoder, "decoder_cross": decoder}


def positions_needed(prompt: Prompt | None, source: int, target: int) -> dict[str, int]:
    """How many learned positions texts of these lengths take; the start token is one of the target's."""
    prompt = prompt or Prompt()
    tokens = 0 if prompt.encoder_tokens is None else prompt.encoder_tokens.slots

    def shift(prefix: Prefix | None) -> int:
        return prefix.slots if prefix is not None and prefix.shift_positions else 0

    return {
        "prompt and source": shift(prompt.encoder_self) + tokens + source,
        "prompt and target": shift(prompt.decoder_self) + target,
    }


# --------------------------------------------------------------------------------------------------------------
# The forward pass


def forward(
    params: Params,
    config: BartConfig,
    batch: Batch,
    prompt: Prompt | None = None,
    *,
    key: PRNGKeyArray | None = None,
) -> Float[Array, "B T V"]:
    """Logits of the decoder's positions, teacher-forced.

    Args:
      params: the frozen base.
      config: its architecture.
      batch: `inputs` [B, S] int32 and `inputs_mask` [B, S] bool, `decoder_inputs` [B, T] int32 (the start token,
        then the target without its last token) and, where these are not padded on the right alone,
        `decoder_mask` [B, T] bool; with a stacked prompt `prompt_ids` [B] int32.
      prompt: what is added to the base; None is the base model.
      key: turns dropout on.

    Returns:
      float32; what stands at masked positions has no meaning.
    """
    keys = keys_or_none(key, 2)
    encoded = encode(params, config, batch, prompt, key=keys[0])
    return decode(params, config, encoded, batch, prompt, key=keys[1])


class Encoded(NamedTuple):
    """What the decoder sees of the input: the encoder's output and which of its positions are real."""

    output: Float[Array, "B S D"]
    mask: Bool[Array, "B S"]


def encode(
    params: Params,
    config: BartConfig,
    batch: Batch,
    prompt: Prompt | None = None,
    *,
    key: PRNGKeyArray | None = None,
) -> Encoded:
    """Runs the encoder over virtual tokens and text. The order of the output's positions is the encoder's own."""
    return _encode(params, config, batch, prompt, key)[0]


def _encode(
    params: Params,
    config: BartConfig,
    batch: Batch,
    prompt: Prompt | None,
    key: PRNGKeyArray | None = None,
    capture: bool = False,
) -> tuple[Encoded, Any]:
    """`encode`, and if they are to be captured the self-attention's keys and values, [L, B, S, H, K]."""
    prompt, prompt_ids = prompt or Prompt(), batch.get("prompt_ids")
    check_prompt_ids(prompt, prompt_ids, len(batch["inputs"]))
    check_no_infix(prompt, "BART")
    ids, mask = jnp.asarray(batch["inputs"]), jnp.asarray(batch["inputs_mask"], bool)
    x, past = _embedded(params, config, ids), past_of(prompt.encoder_self, prompt_ids)
    if (tokens := prompt.encoder_tokens) is not None:
        virtual, used = virtual_tokens(tokens, prompt_ids, len(x), x.dtype)
        x = jnp.concatenate([x, virtual] if tokens.placement == "after" else [virtual, x], axis=1)
        mask = jnp.concatenate([mask, used] if tokens.placement == "after" else [used, mask], axis=1)
    order = real_first(mask)
    x, mask = in_order(x, order), in_order(mask, order)

    bias, side = mask_bias(mask), params["encoder"]

    def layer(x, weights, extra, keys):
        q, k, v = _qkv(x, x, weights["self"])
        parts = Part(k, v, bias), *past.parts(extra, x.dtype)
        mixed = attend(q, *parts, dropout_rate=config.dropout_rate, key=keys[0])
        x = _add(x, _projected(mixed, weights["self"]), weights["self"], config, keys[1])
        return adapted(_mlp(x, weights["mlp"], config, keys[2:]), weights), (k, v) if capture else None

    keys = keys_or_none(key, 2)
    x = _placed(x, side, _offset(past, prompt.encoder_self), config, keys[0])
    x, captured = run_layers(layer, x, side["layers"], past.layers, remat=config.remat, key=keys[1], keys_per_layer=4)
    return Encoded(x, mask), captured


def decode(
    params: Params,
    config: BartConfig,
    encoded: Encoded,
    batch: Batch,
    prompt: Prompt | None = None,
    *,
    key: PRNGKeyArray | None = None,
) -> Float[Array, "B T V"]:
    """Runs the decoder over all target positions at once. The arguments are those of `forward`."""
    return _decode(params, config, encoded, batch, prompt, key)[0]


def _decode(
    params: Params,
    config: BartConfig,
    encoded: Encoded,
    batch: Batch,
    prompt: Prompt | None,
    key: PRNGKeyArray | None = None,
    capture: bool = False,
) -> tuple[Float[Array, "B T V"], Any]:
    """`decode`, and if they are to be captured the self-attention's keys and values, [L, B, T, H, K]."""
    prompt, prompt_ids = prompt or Prompt(), batch.get("prompt_ids")
    check_prompt_ids(prompt, prompt_ids, len(batch["decoder_inputs"]))
    own, cross = (past_of(prefix, prompt_ids) for prefix in (prompt.decoder_self, prompt.decoder_cross))
    ids, order = jnp.asarray(batch["decoder_inputs"]), None
    if batch.get("decoder_mask") is not None:
        order = real_first(batch["decoder_mask"])
        ids = in_order(ids, order)

    positions, side = np.arange(ids.shape[1]), params["decoder"]
    self_bias = jnp.asarray(np.where(positions[None, :] <= positions[:, None], 0.0, MASKED)[None, None], jnp.float32)
    cross_bias = mask_bias(encoded.mask)

    def layer(x, weights, extra, keys):
        q, k, v = _qkv(x, x, weights["self"])
        parts = Part(k, v, self_bias), *own.parts(extra[0], x.dtype)
        mixed = attend(q, *parts, dropout_rate=config.dropout_rate, key=keys[0])
        x = _add(x, _projected(mixed, weights["self"]), weights["self"], config, keys[1])

        q, cross_k, cross_v = _qkv(x, encoded.output, weights["cross"])
        parts = Part(cross_k, cross_v, cross_bias), *cross.parts(extra[1], x.dtype)
        mixed = attend(q, *parts, dropout_rate=config.dropout_rate, key=keys[2])
        x = _add(x, _projected(mixed, weights["cross"]), weights["cross"], config, keys[3])
        return adapted(_mlp(x, weights["mlp"], config, keys[4:]), weights), (k, v) if capture else None

    keys = keys_or_none(key, 2)
    x = _placed(_embedded(params, config, ids), side, _offset(own, prompt.decoder_self), config, keys[0])
    extra = own.layers, cross.layers
    x, captured = run_layers(layer, x, side["layers"], extra, remat=config.remat, key=keys[1], keys_per_layer=6)
    if order is not None:
        x = in_order(x, jnp.argsort(order, axis=1))
    return _logits(params, x), captured


def activations(
    params: Params, config: BartConfig, batch: Batch, prompt: Prompt | None = None
) -> dict[Site, tuple[Float[Array, "L B S H K"], Float[Array, "L B S H K"]]]:
    """The keys and values of text at each attention site: what a prefix of these tokens is.

    Args:
      params, config, batch, prompt: as for `forward`. Real positions come first in each row.
    """
    encoded, encoder_self = _encode(params, config, batch, prompt, capture=True)
    _, decoder_self = _decode(params, config, encoded, batch, prompt, capture=True)
    return {
        "encoder_self": encoder_self,
        "decoder_self": decoder_self,
        "decoder_cross": _cross_keys(params, encoded),
    }


# --------------------------------------------------------------------------------------------------------------
# One token at a time, for `prompt_jax.decoding`


_CROSS, _SELF_PREFIX, _CROSS_PREFIX = range(3)  # what is seen, in the cache


def prefill(
    params: Params, config: BartConfig, batch: Batch, prompt: Prompt | None, capacity: int, beams: int = 1
) -> tuple[Int[Array, "B G"], Cache]:
    """Reads the input; gives the start tokens, and a cache with room for `capacity` tokens."""
    encoded, given, prompt_ids = encode(params, config, batch, prompt), prompt or Prompt(), batch.get("prompt_ids")
    rows, self_prefix = len(encoded.mask), past_of(given.decoder_self, prompt_ids)
    cache = empty_cache(
        params["decoder"]["layers"],
        (
            Past(_cross_keys(params, encoded), used=encoded.mask),
            self_prefix,
            past_of(given.decoder_cross, prompt_ids),
        ),
        rows=rows,
        beams=beams,
        capacity=capacity,
        heads=config.decoder_heads,
        width=config.d_model // config.decoder_heads,
        dtype=encoded.output.dtype,
        position=_offset(self_prefix, given.decoder_self),
    )
    return jnp.full((rows, beams), config.start_id, jnp.int32), cache


def decode_step(
    params: Params, config: BartConfig, tokens: Int[Array, "B G"], cache: Cache
) -> tuple[Float[Array, "B G V"], Cache]:
    """Appends one token to each beam of each row; gives the logits of the next."""
    side = params["decoder"]

    def layer(x, weights, append, past):
        q, k, v = _qkv(x, x, weights["self"])
        own, generated = append(k, v)
        mixed = attend(q, generated, *past(_SELF_PREFIX))
        x = _add(x, _projected(mixed, weights["self"]), weights["self"], config, None)
        mixed = attend(_query(x, weights["cross"]), *past(_CROSS), *past(_CROSS_PREFIX))
        x = _add(x, _projected(mixed, weights["cross"]), weights["cross"], config, None)
        return adapted(_mlp(x, weights["mlp"], config, (None, None)), weights), own

    places = cache.position + cache.length + FIRST_POSITION
    x = _embedded(params, config, tokens) + side["positions"][places][:, None]
    x = layer_norm(x, side["embed_norm"], NORM_EPSILON)
    x, cache = decode_layers(layer, x, side["layers"], cache)
    return _logits(params, x), cache


# --------------------------------------------------------------------------------------------------------------
# Parts


def _embedded(params: Params, config: BartConfig, ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    x = params["embedding"][ids]
    return x * jnp.asarray(config.d_model**0.5, x.dtype) if config.scale_embedding else x


def _placed(
    x: Float[Array, "B T D"], side: Params, offset: Int[Array, "#B"], config: BartConfig, key: PRNGKeyArray | None
) -> Float[Array, "B T D"]:
    """Embedded tokens with their positions, which begin at the offset, normalised."""
    places = offset[:, None] + np.arange(x.shape[1])[None] + FIRST_POSITION
    x = layer_norm(x + side["positions"][places], side["embed_norm"], NORM_EPSILON)
    return dropout(x, config.dropout_rate, key)


def _offset(past: Past, prefix: Prefix | None) -> Int[Array, "#B"]:
    """The position of what follows a prefix."""
    return past.used_slots if prefix is not None and prefix.shift_positions else jnp.zeros(1, jnp.int32)


def _cross_keys(params: Params, encoded: Encoded) -> tuple[Float[Array, "L B S H K"], Float[Array, "L B S H K"]]:
    """The decoder's keys and values of the encoder's output, in all layers."""
    cross = only_stack(params["decoder"]["layers"])["cross"]
    return jax.lax.map(lambda layer: _keys_values(encoded.output, layer), cross)


def _query(x: Float[Array, "B T D"], weights: Params) -> Float[Array, "B T H K"]:
    q = heads(x, weights["q"]) + weights["q_bias"][None, None]
    return q * q.shape[-1] ** -0.5


def _keys_values(x: Float[Array, "B S D"], weights: Params) -> tuple[Float[Array, "B S H K"], Float[Array, "B S H K"]]:
    k, v = (heads(x, weights[name]) + weights[f"{name}_bias"][None, None] for name in "kv")
    return k, v


def _qkv(
    x: Float[Array, "B T D"], other: Float[Array, "B S D"], weights: Params
) -> tuple[Float[Array, "B _ H K"], ...]:
    """Queries of x, keys and values of the other."""
    return _query(x, weights), *_keys_values(other, weights)


def _projected(x: Float[Array, "B T H K"], weights: Params) -> Float[Array, "B T D"]:
    return merge(x, weights["o"]) + weights["o_bias"][None, None]


def _add(x: Float[Array, "B T D"], y: Float[Array, "B T D"], weights: Params, config: BartConfig, key: Any) -> Array:
    """What comes out of a sublayer after its adapter, the residual connection, and the norm after it."""
    y = adapted(dropout(y, config.dropout_rate, key), weights)
    return layer_norm(x + y, weights["norm"], NORM_EPSILON)


def _mlp(x: Float[Array, "B T D"], weights: Params, config: BartConfig, keys: Any) -> Float[Array, "B T D"]:
    """The feed-forward sublayer, with its residual connection."""
    activate: Callable = {
        "gelu": lambda h: jax.nn.gelu(h, approximate=False),
        "gelu_new": jax.nn.gelu,
        "relu": jax.nn.relu,
    }[config.activation]
    hidden = widen(x, weights["up"])
    # Keeps the product for the backward pass, and not what can be had from it again.
    hidden = jax.checkpoint(lambda h, bias: activate(h + bias[None, None]))(hidden, weights["up_bias"])
    hidden = dropout(hidden, config.dropout_rate, keys[0])
    out = narrow(hidden, weights["down"]) + weights["down_bias"][None, None]
    return _add(x, out, weights, config, keys[1])


def _logits(params: Params, x: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
    logits = jnp.einsum("btd,vd->btv", x, params["embedding"], preferred_element_type=jnp.float32)
    return logits + params["logits_bias"].astype(jnp.float32)[None, None]
