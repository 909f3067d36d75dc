"""T5 (Raffel et al. 2020) as pure functions: 1.0, 1.1, LM-adapted, Flan and mT5, of every size.

    logits = forward(params, config, batch, prompt)

Layers are stacked, `[L, ...]`, and run by `jax.lax.scan`. Activations have the embedding's dtype; norms, softmax
and logits are float32. Virtual tokens stand in the encoder's input; their relative positions, and those of a prefix
before them, are counted as if they were text. Shapes: see `prompt_jax.models`. The published code (T5X, Hugging Face)
has the same numbers.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from prompt_jax.config import Remat
from prompt_jax.models.attention import MASKED, Part, attend, dropout, mask_bias, part_scores, weighted_sums
from prompt_jax.models.cache import Cache, decode_layers, empty_cache
from prompt_jax.models.generation import GenerationSettings
from prompt_jax.models.inputs import Past, in_order, past_of, real_first, virtual_tokens
from prompt_jax.models.layers import Params, adapted, heads, keys_or_none, merge, narrow, only_stack, run_layers, widen
from prompt_jax.models.parameter import Parameter
from prompt_jax.models.prompt import Prompt, Site, check_no_infix, check_prompt_ids
from prompt_jax.models.quantised import project

Batch = Mapping[str, Any]


CAUSAL = False  # whether source and target are one text


@dataclasses.dataclass(frozen=True)
class T5Config:
    """The architecture, and how to compute it (`dropout_rate`, `remat`)."""

    vocab_size: int
    d_model: int
    d_kv: int
    d_ff: int
    num_heads: int
    encoder_layers: int
    decoder_layers: int
    activation: Literal["relu", "gelu"] = "gelu"  # "gelu" is its tanh approximation
    gated: bool = True  # T5 1.1: act(x wi_0) * (x wi_1)
    tied_output: bool = False  # logits from the embedding table; there is no lm_head
    scale_output: bool = False  # T5 1.0 multiplies the decoder's output by d_model ** -0.5
    relative_buckets: int = 32
    relative_max_distance: int = 128
    relative_per_layer: bool = False  # a table of relative positions for each layer, as T5X's scanned models have
    norm_epsilon: float = 1e-6
    pad_id: int = 0
    eos_id: int = 1
    start_id: int = 0  # the decoder's first input
    dropout_rate: float = 0.1  # used only where a key is given
    remat: Remat = "none"  # what the backward pass recomputes, to save memory
    generation: GenerationSettings = GenerationSettings()


def parameters(config: T5Config) -> list[Parameter]:
    """Every parameter of a model, in one table."""
    d, h, k, f, v = config.d_model, config.num_heads, config.d_kv, config.d_ff, config.vocab_size
    table = [Parameter("embedding", "shared.weight", (v, d), ("vocab", "embed"))]
    if not config.tied_output:
        table.append(Parameter("lm_head", "lm_head.weight", (v, d), ("vocab", "embed")))

    for side, depth in (("encoder", config.encoder_layers), ("decoder", config.decoder_layers)):
        block = f"{side}.block.{{layer}}.layer."
        sublayers = [("self", f"{block}0.SelfAttention", f"{block}0")]
        if side == "decoder":
            sublayers.append(("cross", f"{block}1.EncDecAttention", f"{block}1"))
        for site, attention, layer in sublayers:
            at = f"{side}/layers/0/{site}"
            table.append(Parameter(f"{at}/norm", f"{layer}.layer_norm.weight", (d,), ("embed",), False, depth))
            for name in ("q", "k", "v"):
                axes: tuple[str, ...] = ("embed", "heads", "kv")
                table.append(Parameter(f"{at}/{name}", f"{attention}.{name}.weight", (d, h, k), axes, True, depth))
            axes = ("heads", "kv", "embed")
            table.append(Parameter(f"{at}/o", f"{attention}.o.weight", (h, k, d), axes, True, depth))

        stored, shape = "SelfAttention.relative_attention_bias.weight", (config.relative_buckets, h)
        if config.relative_per_layer:
            at = f"{side}/layers/0/self/relative_bias"
            table.append(Parameter(at, f"{block}0.{stored}", shape, ("buckets", "heads"), False, depth))
        else:
            stored = f"{side}.block.0.layer.0.{stored}"
            table.append(Parameter(f"{side}/relative_bias", stored, shape, ("buckets", "heads")))
        at, layer = f"{side}/layers/0/mlp", f"{block}{len(sublayers)}"
        table.append(Parameter(f"{at}/norm", f"{layer}.layer_norm.weight", (d,), ("embed",), False, depth))
        inner = (("gate", "wi_0"), ("up", "wi_1")) if config.gated else (("up", "wi"),)
        for name, stored in (*inner, ("down", "wo")):
            shape, axes = ((f, d), ("mlp", "embed")) if name == "down" else ((d, f), ("embed", "mlp"))
            stored = f"{layer}.DenseReluDense.{stored}.weight"
            table.append(Parameter(f"{at}/{name}", stored, shape, axes, True, depth))

        table.append(Parameter(f"{side}/final_norm", f"{side}.final_layer_norm.weight", (d,), ("embed",)))
    return table


# --------------------------------------------------------------------------------------------------------------
# The forward pass


def forward(
    params: Params,
    config: T5Config,
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
    encoder_key, decoder_key = (None, None) if key is None else jax.random.split(key)
    encoded = encode(params, config, batch, prompt, key=encoder_key)
    return decode(params, config, encoded, batch, prompt, key=decoder_key)


class Encoded(NamedTuple):
    """What the decoder sees of the input: the encoder's output and which of its positions are real."""

    output: Float[Array, "B S D"]
    mask: Bool[Array, "B S"]


def encode(
    params: Params,
    config: T5Config,
    batch: Batch,
    prompt: Prompt | None = None,
    *,
    key: PRNGKeyArray | None = None,
) -> Encoded:
    """Runs the encoder over virtual tokens and text. The order of the output's positions is the encoder's own."""
    return _encode(params, config, batch, prompt, key)[0]


def _encode(
    params: Params,
    config: T5Config,
    batch: Batch,
    prompt: Prompt | None,
    key: PRNGKeyArray | None = None,
    capture: bool = False,
) -> tuple[Encoded, Any]:
    """`encode`, and if they are to be captured the self-attention's keys and values, [L, B, S, H, K]."""
    prompt_ids, prompt = batch.get("prompt_ids"), prompt or Prompt()
    check_prompt_ids(prompt, prompt_ids, len(batch["inputs"]))
    check_no_infix(prompt, "T5")
    # Real positions are brought to the front of each row, so that text and virtual tokens touch, one table of relative
    # positions serves the whole batch, and padding moves nothing. Cross-attention has no positions, so nothing has to
    # be put back.
    order = real_first(batch["inputs_mask"])
    ids, mask = in_order(batch["inputs"], order), in_order(batch["inputs_mask"], order).astype(bool)
    x, prefix = params["embedding"][ids], past_of(prompt.encoder_self, prompt_ids)
    if (tokens := prompt.encoder_tokens) is not None:
        after = tokens.placement == "after"
        virtual, used = virtual_tokens(tokens, prompt_ids, len(x), x.dtype)
        x = jnp.concatenate([x, virtual] if after else [virtual, x], axis=1)
        mask = jnp.concatenate([mask, used] if after else [used, mask], axis=1)
        if after or tokens.mask is not None or (prompt_ids is not None and prefix.length):
            order = real_first(mask)
            x, mask = in_order(x, order), in_order(mask, order)

    positions = np.arange(x.shape[1])
    biases = _biases(params["encoder"], config, positions, mask_bias(mask), prefix.length, bidirectional=True)

    def layer(x, weights, extra, keys):
        bias, before = biases(weights)
        normal = _norm(x, weights["self"]["norm"], config)
        q, k, v = (heads(normal, weights["self"][name]) for name in "qkv")
        parts = Part(k, v, bias), *prefix.parts(extra, x.dtype, before)
        mixed = attend(q, *parts, dropout_rate=config.dropout_rate, key=keys[0])
        x = x + adapted(dropout(merge(mixed, weights["self"]["o"]), config.dropout_rate, keys[1]), weights["self"])
        x = x + _mlp(x, weights["mlp"], config, keys[2:])
        return adapted(x, weights), (k, v) if capture else None

    keys = keys_or_none(key, 3)
    x = dropout(x, config.dropout_rate, keys[0])
    layers = params["encoder"]["layers"]
    x, captured = run_layers(layer, x, layers, prefix.layers, remat=config.remat, key=keys[1], keys_per_layer=4)
    output = dropout(_norm(x, params["encoder"]["final_norm"], config), config.dropout_rate, keys[2])
    return Encoded(output, mask), captured


def decode(
    params: Params,
    config: T5Config,
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
    config: T5Config,
    encoded: Encoded,
    batch: Batch,
    prompt: Prompt | None,
    key: PRNGKeyArray | None = None,
    capture: bool = False,
) -> tuple[Float[Array, "B T V"], Any]:
    """`decode`, and if they are to be captured the self-attention's keys and values, [L, B, T, H, K]."""
    prompt, prompt_ids = prompt or Prompt(), batch.get("prompt_ids")
    check_prompt_ids(prompt, prompt_ids, len(batch["decoder_inputs"]))
    self_prefix, cross_prefix = (past_of(p, prompt_ids) for p in (prompt.decoder_self, prompt.decoder_cross))
    ids = jnp.asarray(batch["decoder_inputs"])
    order = None
    if batch.get("decoder_mask") is not None:
        order = real_first(batch["decoder_mask"])
        ids = in_order(ids, order)

    positions = np.arange(ids.shape[1])
    causal = np.where(positions[None, :] <= positions[:, None], 0.0, MASKED).astype(np.float32)[None, None]
    biases = _biases(params["decoder"], config, positions, causal, self_prefix.length, bidirectional=False)
    cross_bias = mask_bias(encoded.mask)

    def layer(x, weights, extra, keys):
        self_bias, prefix_bias = biases(weights)
        normal = _norm(x, weights["self"]["norm"], config)
        q, k, v = (heads(normal, weights["self"][name]) for name in "qkv")
        parts = Part(k, v, self_bias), *self_prefix.parts(extra[0], x.dtype, prefix_bias)
        mixed = attend(q, *parts, dropout_rate=config.dropout_rate, key=keys[0])
        x = x + adapted(dropout(merge(mixed, weights["self"]["o"]), config.dropout_rate, keys[1]), weights["self"])

        q = heads(_norm(x, weights["cross"]["norm"], config), weights["cross"]["q"])
        before = cross_prefix.parts(extra[1], x.dtype)
        mixed = _cross_attend(q, encoded.output, weights["cross"], cross_bias, before, config, keys[2])
        x = x + adapted(dropout(merge(mixed, weights["cross"]["o"]), config.dropout_rate, keys[3]), weights["cross"])
        x = x + _mlp(x, weights["mlp"], config, keys[4:])
        return adapted(x, weights), (k, v) if capture else None

    keys = keys_or_none(key, 3)
    x = dropout(params["embedding"][ids], config.dropout_rate, keys[0])
    layers, extra = params["decoder"]["layers"], (self_prefix.layers, cross_prefix.layers)
    x, captured = run_layers(layer, x, layers, extra, remat=config.remat, key=keys[1], keys_per_layer=6)
    x = dropout(_norm(x, params["decoder"]["final_norm"], config), config.dropout_rate, keys[2])
    if order is not None:
        x = in_order(x, jnp.argsort(order, axis=1))
    return _logits(params, config, x), captured


def sites(config: T5Config) -> dict[Site, tuple[int, int, int]]:
    """The attention sites that take a prefix, with their layers, heads and width of a head."""
    shape = config.num_heads, config.d_kv
    return {
        "encoder_self": (config.encoder_layers, *shape),
        "decoder_self": (config.decoder_layers, *shape),
        "decoder_cross": (config.decoder_layers, *shape),
    }


def activations(
    params: Params, config: T5Config, batch: Batch, prompt: Prompt | None = None
) -> dict[Site, tuple[Float[Array, "L B S H K"], Float[Array, "L B S H K"]]]:
    """The keys and values of text at each attention site: what a prefix of these tokens is.

    Args:
      params, config, batch, prompt: as for `forward`. Real positions come first in each row.
    """
    encoded, encoder_self = _encode(params, config, batch, prompt, capture=True)
    _, decoder_self = _decode(params, config, encoded, batch, prompt, capture=True)
    cross = _cross_keys(params, encoded)
    return {"encoder_self": encoder_self, "decoder_self": decoder_self, "decoder_cross": cross}


# --------------------------------------------------------------------------------------------------------------
# One token at a time, for `prompt_jax.decoding`


_CROSS, _SELF_PREFIX, _CROSS_PREFIX = range(3)  # what is seen, in the cache


def prefill(
    params: Params, config: T5Config, batch: Batch, prompt: Prompt | None, capacity: int, beams: int = 1
) -> tuple[Int[Array, "B G"], Cache]:
    """Reads the input; gives the start tokens, and a cache with room for `capacity` tokens."""
    encoded, given, prompt_ids = encode(params, config, batch, prompt), prompt or Prompt(), batch.get("prompt_ids")
    rows = len(encoded.mask)
    cache = empty_cache(
        params["decoder"]["layers"],
        (
            Past(_cross_keys(params, encoded), used=encoded.mask),
            past_of(given.decoder_self, prompt_ids),
            past_of(given.decoder_cross, prompt_ids),
        ),
        rows=rows,
        beams=beams,
        capacity=capacity,
        heads=config.num_heads,
        width=config.d_kv,
        dtype=encoded.output.dtype,
    )
    return jnp.full((rows, beams), config.start_id, jnp.int32), cache


def decode_step(
    params: Params, config: T5Config, tokens: Int[Array, "B G"], cache: Cache
) -> tuple[Float[Array, "B G V"], Cache]:
    """Appends one token to each beam of each row; gives the logits of the next."""
    side, slots = params["decoder"], np.arange(cache.capacity)
    biases = _biases(side, config, slots, None, cache.past_length(_SELF_PREFIX), bidirectional=False, row=cache.length)

    def layer(x, weights, append, past):
        bias, prefix_bias = biases(weights)
        normal = _norm(x, weights["self"]["norm"], config)
        q, k, v = (heads(normal, weights["self"][name]) for name in "qkv")
        own, generated = append(k, v, bias)
        mixed = attend(q, generated, *past(_SELF_PREFIX, prefix_bias))
        x = x + adapted(merge(mixed, weights["self"]["o"]), weights["self"])
        q = heads(_norm(x, weights["cross"]["norm"], config), weights["cross"]["q"])
        mixed = attend(q, *past(_CROSS), *past(_CROSS_PREFIX))
        x = x + adapted(merge(mixed, weights["cross"]["o"]), weights["cross"])
        return adapted(x + _mlp(x, weights["mlp"], config, (None, None)), weights), own

    x, cache = decode_layers(layer, params["embedding"][tokens], side["layers"], cache)
    return _logits(params, config, _norm(x, side["final_norm"], config)), cache


# --------------------------------------------------------------------------------------------------------------
# Parts


def _norm(x: Float[Array, "B T D"], scale: Float[Array, "D"], config: T5Config) -> Float[Array, "B T D"]:
    """Root-mean-square norm, without mean and bias, in float32."""
    x32 = x.astype(jnp.float32)
    # As a contraction, the square keeps x alone for the backward pass, and not 2 x beside it.
    variance = jnp.einsum("btd,btd->bt", x32, x32)[..., None] / x.shape[-1]
    return (x32 * jax.lax.rsqrt(variance + config.norm_epsilon)).astype(x.dtype) * scale[None, None]


def _cross_keys(params: Params, encoded: Encoded) -> tuple[Float[Array, "L B S H K"], Float[Array, "L B S H K"]]:
    """The decoder's keys and values of the encoder's output, in all layers."""
    cross = only_stack(params["decoder"]["layers"])["cross"]
    return jax.lax.map(lambda layer: tuple(heads(encoded.output, each) for each in layer), (cross["k"], cross["v"]))


def _cross_attend(
    q: Float[Array, "B T H K"],
    encoded: Float[Array, "B S D"],
    weights: Params,
    bias: Float[Array, "B 1 1 S"],
    prefix: list[Part],
    config: T5Config,
    key: PRNGKeyArray | None,
) -> Float[Array, "B T H K"]:
    """Attention of the decoder over the encoder's output, and over a prefix.

    For targets shorter than a head is wide, as labels are, the keys' and values' projections are moved to the side of
    the queries, (q W_k) x instead of q (x W_k): fewer operations, and no keys and values to be kept for each layer.
    """
    if q.shape[1] >= config.d_kv:
        k, v = (heads(encoded, weights[name]) for name in "kv")
        return attend(q, Part(k, v, bias), *prefix, dropout_rate=config.dropout_rate, key=key)
    moved = project("bthk,dhk->bthd", q, weights["k"])
    scores = jnp.einsum("bthd,bsd->bhts", moved, encoded, preferred_element_type=jnp.float32) + bias
    scored = [(scores, (encoded, "bhts,bsd->bhtd")), *(part_scores(q, part) for part in prefix)]
    mixed, *others = weighted_sums(*zip(*scored, strict=True), dropout_rate=config.dropout_rate, key=key)
    return functools.reduce(jnp.add, [project("bthd,dhk->bthk", mixed, weights["v"]), *others])


def _mlp(x: Float[Array, "B T D"], weights: Params, config: T5Config, keys: Any) -> Float[Array, "B T D"]:
    """The feed-forward sublayer with its adapter, without its residual connection."""
    x = _norm(x, weights["norm"], config)
    activate = jax.nn.relu if config.activation == "relu" else jax.nn.gelu
    hidden = widen(x, weights["up"])
    if config.gated:
        gate = widen(x, weights["gate"])
        # Keeps the two products for the backward pass, and not what can be had from them again.
        hidden = jax.checkpoint(lambda gate, up: activate(gate) * up)(gate, hidden)
    else:
        hidden = activate(hidden)
    hidden = dropout(hidden, config.dropout_rate, keys[0])
    return adapted(dropout(narrow(hidden, weights["down"]), config.dropout_rate, keys[1]), weights)


def _logits(params: Params, config: T5Config, x: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
    if config.scale_output:
        x = x * config.d_model**-0.5
    table = params["embedding"] if config.tied_output else params["lm_head"]
    return jnp.einsum("btd,vd->btv", x, table, preferred_element_type=jnp.float32)


def _biases(
    side: Params,
    config: T5Config,
    positions: np.ndarray,
    mask: Float[Array, "#B 1 #T S"] | np.ndarray | None,
    prefix: int,
    bidirectional: bool,
    row: Int[Array, ""] | None = None,
) -> Callable[[Params], tuple[Float[Array, "#B H T S"], Float[Array, "1 H T P"] | None]]:
    """What is added to the scores of self-attention, by a layer's weights: over text, with a mask, and over a prefix.

    Computed once for all layers of a side that have one table. `row` is the one query position that is wanted.
    """

    def of(table: Float[Array, "buckets H"]) -> tuple[Any, Any]:
        own = _relative_bias(table, config, positions, positions, bidirectional)
        before = _prefix_bias(table, config, prefix, positions, bidirectional)
        if row is not None:
            own, before = jax.tree.map(lambda bias: jax.lax.dynamic_slice_in_dim(bias, row, 1, axis=2), (own, before))
        return own if mask is None else own + mask, before

    if config.relative_per_layer:
        return lambda weights: of(weights["self"]["relative_bias"])
    shared = of(side["relative_bias"])
    return lambda weights: shared


def _relative_bias(
    table: Float[Array, "buckets H"],
    config: T5Config,
    queries: np.ndarray,
    keys: np.ndarray,
    bidirectional: bool,
) -> Float[Array, "1 H T S"]:
    """What is added to the scores for the distance between query and key positions, [T] and [S]; float32."""
    buckets = relative_buckets(
        keys[None, :] - queries[:, None],
        bidirectional=bidirectional,
        buckets=config.relative_buckets,
        max_distance=config.relative_max_distance,
    )
    return table.astype(jnp.float32)[buckets].transpose(2, 0, 1)[None]


def _prefix_bias(
    table: Float[Array, "buckets H"], config: T5Config, length: int, queries: np.ndarray, bidirectional: bool
) -> Float[Array, "1 H T P"] | None:
    """The bias of a prefix's keys, which are counted as if they stood before the text, its first token after the last
    of them: at -P to -1 where the queries begin at 0. None where there are none."""
    if not length:
        return None
    return _relative_bias(table, config, queries, np.arange(-length, 0), bidirectional)


def relative_buckets(distance: np.ndarray, *, bidirectional: bool, buckets: int, max_distance: int) -> np.ndarray:
    """The bucket of each distance (key position minus query position), as T5 has them.

    Half of the buckets are for single distances, the others widen logarithmically up to `max_distance`. In NumPy
    and not on the device: where the logarithm is a whole number, an approximate one falls into the wrong bucket.
    """
    offset = np.zeros_like(distance)
    if bidirectional:
        buckets //= 2
        offset = np.where(distance > 0, buckets, 0)
        distance = np.abs(distance)
    else:
        distance = np.maximum(-distance, 0)
    exact = buckets // 2
    ratio = np.log(np.maximum(distance, 1).astype(np.float32) / exact) / np.log(max_distance / exact)
    wide = np.minimum(exact + (ratio.astype(np.float32) * (buckets - exact)).astype(np.int32), buckets - 1)
    return (offset + np.where(distance < exact, distance, wide)).astype(np.int32)
