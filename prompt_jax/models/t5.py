"""T5 (Raffel et al. 2020) as pure functions: 1.0, 1.1, LM-adapted, Flan and mT5, of every size.

    logits = forward(params, config, batch, prompt)

Layers are stacked, `[L, ...]`, and run by `jax.lax.scan`. Activations have the parameters' dtype; norms, softmax
and logits are float32. Virtual tokens stand in the encoder's input, and their relative positions are counted as if
they were text. Shapes: see `prompt_jax.models`. The published code (T5X, Hugging Face) has the same numbers.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from prompt_jax.models.attention import MASKED, attend, dropout, mask_bias, weighted_sum
from prompt_jax.models.prompt import NO_PROMPT, Prompt, VirtualTokens, check_prompt_ids

Params = dict[str, Any]
Batch = Mapping[str, Any]


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
    norm_epsilon: float = 1e-6
    pad_id: int = 0
    eos_id: int = 1
    start_id: int = 0  # the decoder's first input
    dropout_rate: float = 0.1  # used only where a key is given
    remat: Literal["none", "full"] = "none"  # whether the backward pass recomputes whole layers, to save memory


class Parameter(NamedTuple):
    """One leaf of the parameters: where it is here, in a checkpoint, and on a mesh.

    `path` leads to it in the nested dict; a stacked leaf holds `layers` arrays of `shape`. `name` is Hugging Face's,
    with `{layer}`; `transposed` says that the checkpoint has it as a PyTorch linear layer, [out, in], to be
    transposed and then reshaped to `shape`. `axes` are the logical names of `shape`'s axes.
    """

    path: str
    name: str
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    transposed: bool = False
    layers: int | None = None


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

        at, layer = f"{side}/layers/0/mlp", f"{block}{len(sublayers)}"
        table.append(Parameter(f"{at}/norm", f"{layer}.layer_norm.weight", (d,), ("embed",), False, depth))
        inner = (("gate", "wi_0"), ("up", "wi_1")) if config.gated else (("up", "wi"),)
        for name, stored in (*inner, ("down", "wo")):
            shape, axes = ((f, d), ("mlp", "embed")) if name == "down" else ((d, f), ("embed", "mlp"))
            stored = f"{layer}.DenseReluDense.{stored}.weight"
            table.append(Parameter(f"{at}/{name}", stored, shape, axes, True, depth))

        stored = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        shape = (config.relative_buckets, h)
        table.append(Parameter(f"{side}/relative_bias", stored, shape, ("buckets", "heads")))
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
    check_prompt_ids(prompt, batch.get("prompt_ids"), len(batch["inputs"]))
    tokens = None if prompt is None else prompt.encoder_tokens
    # Real positions are brought to the front of each row, so that text and virtual tokens touch, one table of relative
    # positions serves the whole batch, and padding moves nothing. Cross-attention has no positions, so nothing has to
    # be put back.
    order = _real_first(batch["inputs_mask"])
    ids = jnp.take_along_axis(jnp.asarray(batch["inputs"]), order, axis=1)
    mask = jnp.take_along_axis(jnp.asarray(batch["inputs_mask"], bool), order, axis=1)

    x = params["embedding"][ids]
    if tokens is not None:
        after = tokens.placement == "after"
        virtual, used = _virtual_tokens(tokens, batch.get("prompt_ids"), len(x), x.dtype)
        x = jnp.concatenate([x, virtual] if after else [virtual, x], axis=1)
        mask = jnp.concatenate([mask, used] if after else [used, mask], axis=1)
        if after:
            order = _real_first(mask)
            x = jnp.take_along_axis(x, order[..., None], axis=1)
            mask = jnp.take_along_axis(mask, order, axis=1)

    positions = np.arange(x.shape[1])
    bias = _relative_bias(params["encoder"]["relative_bias"], config, positions, positions, bidirectional=True)
    bias = bias + mask_bias(mask)

    def layer(x, weights, keys):
        q, k, v = (_heads(_norm(x, weights["self"]["norm"], config), weights["self"][name]) for name in "qkv")
        mixed = attend(q, k, v, bias, dropout_rate=config.dropout_rate, key=keys[0])
        x = x + dropout(_merge(mixed, weights["self"]["o"]), config.dropout_rate, keys[1])
        return x + _mlp(x, weights["mlp"], config, keys[2:])

    keys = _keys(key, 3)
    x = dropout(x, config.dropout_rate, keys[0])
    x = _run(layer, x, params["encoder"]["layers"], config, keys[1], keys_per_layer=4)
    return Encoded(dropout(_norm(x, params["encoder"]["final_norm"], config), config.dropout_rate, keys[2]), mask)


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
    ids = jnp.asarray(batch["decoder_inputs"])
    order = None
    if batch.get("decoder_mask") is not None:
        order = _real_first(batch["decoder_mask"])
        ids = jnp.take_along_axis(ids, order, axis=1)

    positions = np.arange(ids.shape[1])
    bias = _relative_bias(params["decoder"]["relative_bias"], config, positions, positions, bidirectional=False)
    causal = np.where(positions[None, :] <= positions[:, None], 0.0, MASKED).astype(np.float32)
    self_bias = bias + causal[None, None]
    cross_bias = mask_bias(encoded.mask)

    def layer(x, weights, keys):
        q, k, v = (_heads(_norm(x, weights["self"]["norm"], config), weights["self"][name]) for name in "qkv")
        mixed = attend(q, k, v, self_bias, dropout_rate=config.dropout_rate, key=keys[0])
        x = x + dropout(_merge(mixed, weights["self"]["o"]), config.dropout_rate, keys[1])

        q = _heads(_norm(x, weights["cross"]["norm"], config), weights["cross"]["q"])
        mixed = _cross_attend(q, encoded.output, weights["cross"], cross_bias, config, keys[2])
        x = x + dropout(_merge(mixed, weights["cross"]["o"]), config.dropout_rate, keys[3])
        return x + _mlp(x, weights["mlp"], config, keys[4:])

    keys = _keys(key, 3)
    x = dropout(params["embedding"][ids], config.dropout_rate, keys[0])
    x = _run(layer, x, params["decoder"]["layers"], config, keys[1], keys_per_layer=6)
    x = dropout(_norm(x, params["decoder"]["final_norm"], config), config.dropout_rate, keys[2])
    if order is not None:
        x = jnp.take_along_axis(x, jnp.argsort(order, axis=1)[:, :, None], axis=1)
    return _logits(params, config, x)


# --------------------------------------------------------------------------------------------------------------
# One token at a time, for `prompt_jax.decoding`


class Cache(NamedTuple):
    """Keys and values of the decoder: of the tokens so far, up to N, and of the encoder's output."""

    length: Int[Array, ""]  # tokens so far
    self_k: Float[Array, "L B N H K"]
    self_v: Float[Array, "L B N H K"]
    cross_k: Float[Array, "L B S H K"]
    cross_v: Float[Array, "L B S H K"]
    cross_mask: Bool[Array, "B S"]


def prefill(
    params: Params, config: T5Config, batch: Batch, prompt: Prompt | None, capacity: int
) -> tuple[Float[Array, "B V"], Cache]:
    """Reads the input; gives the logits of the first new token, and a cache with room for `capacity` tokens."""
    encoded = encode(params, config, batch, prompt)
    layers = _only_stack(params["decoder"]["layers"])
    k, v = (jnp.einsum("bsd,ldhk->lbshk", encoded.output, layers["cross"][name]) for name in "kv")
    b = len(encoded.mask)
    empty = jnp.zeros((config.decoder_layers, b, capacity, config.num_heads, config.d_kv), k.dtype)
    cache = Cache(jnp.zeros((), jnp.int32), empty, empty, k, v, encoded.mask)
    return decode_step(params, config, jnp.full((b,), config.start_id, jnp.int32), cache)


def decode_step(
    params: Params, config: T5Config, tokens: Int[Array, "B"], cache: Cache
) -> tuple[Float[Array, "B V"], Cache]:
    """Appends one token to each row; gives the logits of the next."""
    slots = np.arange(cache.self_k.shape[2])
    table = _relative_bias(params["decoder"]["relative_bias"], config, slots, slots, bidirectional=False)
    row = jax.lax.dynamic_slice_in_dim(table, cache.length, 1, axis=2)  # [1, H, 1, N]
    self_bias = row + jnp.where(slots <= cache.length, 0.0, MASKED)[None, None, None, :]
    cross_bias = mask_bias(cache.cross_mask)

    def layer(carry, scanned):
        x, self_k, self_v = carry
        weights, cross_k, cross_v, index = scanned
        q, k, v = (_heads(_norm(x, weights["self"]["norm"], config), weights["self"][name]) for name in "qkv")
        # The whole cache is carried and written in place: as scanned input and output it would be copied.
        self_k = jax.lax.dynamic_update_slice(self_k, k[None], (index, 0, cache.length, 0, 0))
        self_v = jax.lax.dynamic_update_slice(self_v, v[None], (index, 0, cache.length, 0, 0))
        x = x + _merge(attend(q, self_k[index], self_v[index], self_bias), weights["self"]["o"])
        q = _heads(_norm(x, weights["cross"]["norm"], config), weights["cross"]["q"])
        x = x + _merge(attend(q, cross_k, cross_v, cross_bias), weights["cross"]["o"])
        return (x + _mlp(x, weights["mlp"], config, (None, None)), self_k, self_v), None

    x = params["embedding"][tokens][:, None]
    scanned = (
        _only_stack(params["decoder"]["layers"]),
        cache.cross_k,
        cache.cross_v,
        jnp.arange(config.decoder_layers),
    )
    (x, self_k, self_v), _ = jax.lax.scan(layer, (x, cache.self_k, cache.self_v), scanned)
    logits = _logits(params, config, _norm(x, params["decoder"]["final_norm"], config))
    return logits[:, 0], cache._replace(length=cache.length + 1, self_k=self_k, self_v=self_v)


# --------------------------------------------------------------------------------------------------------------
# Parts


def _virtual_tokens(
    tokens: VirtualTokens, ids: Int[Any, "B"] | None, rows: int, dtype: Any
) -> tuple[Float[Array, "B P D"], Bool[Array, "B P"]]:
    """Each row's virtual tokens, and which of them are used. Unused slots lie away from the text, and so take no
    position between used ones."""
    after = tokens.placement == "after"
    embeddings, mask = jnp.asarray(tokens.embeddings), tokens.mask
    if ids is None:  # the rows share one prompt
        used = jnp.ones(len(embeddings), bool) if mask is None else jnp.asarray(mask)
        if mask is not None:
            order = jnp.argsort(~used if after else used, stable=True)
            embeddings, used = embeddings[order], used[order]
        virtual = jnp.broadcast_to(embeddings.astype(dtype)[None], (rows, *embeddings.shape))
        return virtual, jnp.broadcast_to(used[None], virtual.shape[:2])

    ids = jnp.asarray(ids)
    chosen = jnp.where(ids == NO_PROMPT, 0, ids)
    outside: dict[str, Any] = {"mode": "fill", "wrap_negative_indices": False}
    virtual = embeddings.at[chosen].get(fill_value=jnp.nan, **outside).astype(dtype)
    used = jnp.broadcast_to((ids != NO_PROMPT)[:, None], virtual.shape[:2])
    if mask is not None:
        used &= jnp.asarray(mask).at[chosen].get(fill_value=True, **outside)
        order = _real_first(used, last=not after)
        virtual = jnp.take_along_axis(virtual, order[..., None], axis=1)
        used = jnp.take_along_axis(used, order, axis=1)
    # Zeros, since a value that is not finite would pass through an attention weight of 0.
    return jnp.where(used[..., None], virtual, 0.0), used


def _run(
    layer: Callable,
    x: Float[Array, "B T D"],
    stacks: tuple[Params, ...],
    config: T5Config,
    key: PRNGKeyArray | None,
    keys_per_layer: int,
) -> Float[Array, "B T D"]:
    """Applies `layer(x, weights, keys)` for each layer of each stack."""

    def body(x, scanned):
        weights, key = scanned
        return layer(x, weights, _keys(key, keys_per_layer)), None

    if config.remat != "none":
        body = jax.checkpoint(body, prevent_cse=False)
    for stack, stack_key in zip(stacks, _keys(key, len(stacks)), strict=True):
        depth = len(jax.tree.leaves(stack)[0])
        x, _ = jax.lax.scan(body, x, (stack, None if key is None else jax.random.split(stack_key, depth)))
    return x


def _only_stack(stacks: tuple[Params, ...]) -> Params:
    """All layers as one stack, for decoding."""
    return stacks[0] if len(stacks) == 1 else jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *stacks)


def _keys(key: PRNGKeyArray | None, count: int) -> Any:
    """`count` independent keys; as many None where there is no key."""
    return (None,) * count if key is None else jax.random.split(key, count)


def _norm(x: Float[Array, "B T D"], scale: Float[Array, "D"], config: T5Config) -> Float[Array, "B T D"]:
    """Root-mean-square norm, without mean and bias, in float32."""
    x32 = x.astype(jnp.float32)
    # As a contraction, the square keeps x alone for the backward pass, and not 2 x beside it.
    variance = jnp.einsum("btd,btd->bt", x32, x32)[..., None] / x.shape[-1]
    return (x32 * jax.lax.rsqrt(variance + config.norm_epsilon)).astype(x.dtype) * scale[None, None]


def _heads(x: Float[Array, "B T D"], weights: Float[Array, "D H K"]) -> Float[Array, "B T H K"]:
    return jnp.einsum("btd,dhk->bthk", x, weights)


def _merge(x: Float[Array, "B T H K"], weights: Float[Array, "H K D"]) -> Float[Array, "B T D"]:
    return jnp.einsum("bthk,hkd->btd", x, weights)


def _cross_attend(
    q: Float[Array, "B T H K"],
    encoded: Float[Array, "B S D"],
    weights: Params,
    bias: Float[Array, "B 1 1 S"],
    config: T5Config,
    key: PRNGKeyArray | None,
) -> Float[Array, "B T H K"]:
    """Attention of the decoder over the encoder's output.

    For targets shorter than a head is wide, as labels are, the keys' and values' projections are moved to the side of
    the queries, (q W_k) x instead of q (x W_k): fewer operations, and no keys and values to be kept for each layer.
    """
    if q.shape[1] >= config.d_kv:
        k, v = (_heads(encoded, weights[name]) for name in "kv")
        return attend(q, k, v, bias, dropout_rate=config.dropout_rate, key=key)
    q = jnp.einsum("bthk,dhk->bthd", q, weights["k"])
    scores = jnp.einsum("bthd,bsd->bhts", q, encoded, preferred_element_type=jnp.float32)
    mixed = weighted_sum(scores + bias, encoded, "bhts,bsd->bthd", dropout_rate=config.dropout_rate, key=key)
    return jnp.einsum("bthd,dhk->bthk", mixed, weights["v"])


def _mlp(x: Float[Array, "B T D"], weights: Params, config: T5Config, keys: Any) -> Float[Array, "B T D"]:
    """The feed-forward sublayer, without its residual connection."""
    x = _norm(x, weights["norm"], config)
    activate = jax.nn.relu if config.activation == "relu" else jax.nn.gelu
    hidden = jnp.einsum("btd,df->btf", x, weights["up"])
    if config.gated:
        gate = jnp.einsum("btd,df->btf", x, weights["gate"])
        # Keeps the two products for the backward pass, and not what can be had from them again.
        hidden = jax.checkpoint(lambda gate, up: activate(gate) * up)(gate, hidden)
    else:
        hidden = activate(hidden)
    hidden = dropout(hidden, config.dropout_rate, keys[0])
    return dropout(jnp.einsum("btf,fd->btd", hidden, weights["down"]), config.dropout_rate, keys[1])


def _logits(params: Params, config: T5Config, x: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
    if config.scale_output:
        x = x * config.d_model**-0.5
    table = params["embedding"] if config.tied_output else params["lm_head"]
    return jnp.einsum("btd,vd->btv", x, table, preferred_element_type=jnp.float32)


def _real_first(mask: Any, last: bool = False) -> Int[Array, "B T"]:
    """For each row the order that brings its real positions to the front (or to the end), as they follow."""
    mask = jnp.asarray(mask, bool)
    return jnp.argsort(mask if last else ~mask, axis=1, stable=True)


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
