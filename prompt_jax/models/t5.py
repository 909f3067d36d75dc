"""T5 (Raffel et al. 2020): 1.0, 1.1, LM-adapted, Flan and mT5, all sizes.

`prompt_jax.models.encoder_decoder` has the rest of the model. Positions are relative. Results equal those of T5X and
Transformers.
"""

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from prompt_jax.config.model import Remat
from prompt_jax.errors import CheckpointError
from prompt_jax.models.attention import KeyValues, attend, attend_projected
from prompt_jax.models.dropout import dropout
from prompt_jax.models.encoder_decoder import Biases
from prompt_jax.models.generation_settings import GenerationSettings
from prompt_jax.models.hugging_face import ConfigValues, HuggingFace
from prompt_jax.models.layers import (
    Params,
    apply_adapter,
    feed_forward,
    merge_heads,
    project_heads,
    rms_norm,
)
from prompt_jax.models.parameter import Parameter
from prompt_jax.models.relative_positions import relative_biases, relative_buckets

NAME = "T5"
ENCODER_KEYS, DECODER_KEYS = 4, 6
# feed_forward_proj -> activation, gated. "gated-gelu" is the tanh approximation ("gelu_new"); "gelu" is not.
_FEED_FORWARD: dict[str, tuple[Literal["relu", "gelu"], bool]] = {
    "relu": ("relu", False),
    "gated-relu": ("relu", True),
    "gelu_new": ("gelu", False),
    "gated-gelu": ("gelu", True),
    "gated-gelu_new": ("gelu", True),
}


def _read(values: ConfigValues, tied_output: bool) -> dict[str, Any]:
    activation, gated = _FEED_FORWARD[values.choice("feed_forward_proj", tuple(_FEED_FORWARD))]
    scaled = bool(values.get("scale_decoder_outputs", False))  # T5 1.0; mT5's configuration has no such field
    return {"activation": activation, "gated": gated, "tied_output": tied_output, "scale_output": scaled}


def _write(config: "T5Config") -> dict[str, Any]:
    if config.relative_per_layer:
        raise CheckpointError("only T5X supports a table of relative positions in each layer; Transformers does not")
    activation = {"relu": "relu", "gelu": "gelu_new"}[config.activation]
    return {
        "feed_forward_proj": f"gated-{activation}".replace("_new", "") if config.gated else activation,
        "tie_word_embeddings": config.scale_output,
        "decoder_start_token_id": config.start_id,
    }


HUGGING_FACE = HuggingFace(
    model_type="t5",
    also_read=("mt5",),
    architecture="T5ForConditionalGeneration",
    fields={
        "vocab_size": "vocab_size",
        "d_model": "d_model",
        "d_kv": "d_kv",
        "d_ff": "d_ff",
        "num_heads": "num_heads",
        "encoder_layers": "num_layers",
        "decoder_layers": "num_decoder_layers",
        "relative_buckets": "relative_attention_num_buckets",
        "relative_max_distance": "relative_attention_max_distance",
        "norm_epsilon": "layer_norm_epsilon",
        "dropout_rate": "dropout_rate",
    },
    read=_read,
    write=_write,
    unused=r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",  # in checkpoints from 2020
    copies={"shared.weight": ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")},
    output=("lm_head.weight", "shared.weight"),
)


@dataclasses.dataclass(frozen=True)
class T5Config:
    """The architecture, and how it is computed (`dropout_rate`, `remat`, `fused_attention`, `fsdp`)."""

    vocab_size: int
    d_model: int
    d_kv: int
    d_ff: int
    num_heads: int
    encoder_layers: int
    decoder_layers: int
    activation: Literal["relu", "gelu"] = "gelu"  # "gelu" is its tanh approximation
    gated: bool = True  # T5 1.1: act(x wi_0) * (x wi_1)
    tied_output: bool = False  # computes logits from the embedding table, without lm_head
    scale_output: bool = False  # T5 1.0 multiplies the decoder's output by d_model ** -0.5
    relative_buckets: int = 32
    relative_max_distance: int = 128
    relative_per_layer: bool = False  # a table of relative positions in each layer, as in T5X's scanned models
    norm_epsilon: float = 1e-6
    pad_id: int = 0
    eos_id: int = 1
    start_id: int = 0  # the decoder's first input
    dropout_rate: float = 0.1  # applied only with a key
    remat: Remat = "none"
    fused_attention: bool = False
    fsdp: bool = False
    generation: GenerationSettings = GenerationSettings()


def shape(config: T5Config, side: str) -> tuple[int, int, int]:
    return getattr(config, f"{side}_layers"), config.num_heads, config.d_kv


def parameters(config: T5Config) -> list[Parameter]:
    """Return the table of parameters."""
    d, h, k, f, v = config.d_model, config.num_heads, config.d_kv, config.d_ff, config.vocab_size
    table = [Parameter("embedding", "shared.weight", (v, d), ("vocab", "embed"))]
    if not config.tied_output:
        table.append(Parameter("lm_head", "lm_head.weight", (v, d), ("vocab", "embed")))
    for side in ("encoder", "decoder"):
        depth, at, block = shape(config, side)[0], f"{side}/layers/0", f"{side}.block.{{layer}}.layer"
        linear: Any = {"transposed": True, "layers": depth}
        sites = [("self", "SelfAttention"), ("cross", "EncDecAttention")][: 1 if side == "encoder" else 2]
        for number, (site, stored) in enumerate(sites):
            norm = f"{block}.{number}.layer_norm.weight"
            table.append(Parameter(f"{at}/{site}/norm", norm, (d,), ("embed",), layers=depth))
            for name in "qkv":
                stored_name = f"{block}.{number}.{stored}.{name}.weight"
                table.append(
                    Parameter(f"{at}/{site}/{name}", stored_name, (d, h, k), ("embed", "heads", "kv"), **linear)
                )
            stored_name, axes = f"{block}.{number}.{stored}.o.weight", ("heads", "kv", "embed")
            table.append(Parameter(f"{at}/{site}/o", stored_name, (h, k, d), axes, **linear))

        bias, size = "SelfAttention.relative_attention_bias.weight", (config.relative_buckets, h)
        if config.relative_per_layer:
            path, stored_name, layers = f"{at}/self/relative_bias", f"{block}.0.{bias}", depth
        else:
            path, stored_name, layers = f"{side}/relative_bias", f"{side}.block.0.layer.0.{bias}", None
        table.append(Parameter(path, stored_name, size, ("buckets", "heads"), layers=layers))
        mlp, path = f"{block}.{len(sites)}", f"{at}/mlp"
        table.append(Parameter(f"{path}/norm", f"{mlp}.layer_norm.weight", (d,), ("embed",), layers=depth))
        for name, stored in (("gate", "wi_0"), ("up", "wi_1")) if config.gated else (("up", "wi"),):
            stored = f"{mlp}.DenseReluDense.{stored}.weight"
            table.append(Parameter(f"{path}/{name}", stored, (d, f), ("embed", "mlp"), **linear))
        stored = f"{mlp}.DenseReluDense.wo.weight"
        table.append(Parameter(f"{path}/down", stored, (f, d), ("mlp", "embed"), **linear))
        table.append(Parameter(f"{side}/final_norm", f"{side}.final_layer_norm.weight", (d,), ("embed",)))
    return table


# --------------------------------------------------------------------------------------------------------------
# Layers


def embed(params: Params, ids: Int[Array, "B T"], config: T5Config) -> Float[Array, "B T D"]:
    return params["embedding"][ids]


def add_positions(
    side: Params, x: Float[Array, "B T D"], positions: Any, config: T5Config, key: Any
) -> Float[Array, "B T D"]:
    return dropout(x, config.dropout_rate, key)


def encoder_layer(x: Float[Array, "B T D"], weights: Params, attend: Any, config: T5Config, keys: Any) -> Any:
    x, kept = _self_attention(x, weights["self"], attend, config, keys[:2])
    return x + _mlp(x, weights["mlp"], config, keys[2:]), kept


def decoder_layer(
    x: Float[Array, "B T D"], weights: Params, attend: Any, attend_cross: Any, config: T5Config, keys: Any
) -> Any:
    x, kept = _self_attention(x, weights["self"], attend, config, keys[:2])
    cross = weights["cross"]
    mixed = attend_cross(project_heads(rms_norm(x, cross["norm"], config.norm_epsilon), cross["q"]), cross, keys[2])
    x = x + apply_adapter(dropout(merge_heads(mixed, cross["o"]), config.dropout_rate, keys[3]), cross)
    return x + _mlp(x, weights["mlp"], config, keys[4:]), kept


def final_norm(side: Params, x: Float[Array, "B T D"], config: T5Config, key: Any) -> Float[Array, "B T D"]:
    return dropout(rms_norm(x, side["final_norm"], config.norm_epsilon), config.dropout_rate, key)


def logits(params: Params, x: Float[Array, "B T D"], config: T5Config) -> Float[Array, "B T V"]:
    if config.scale_output:
        x = x * config.d_model**-0.5
    table = params["embedding"] if config.tied_output else params["lm_head"]
    return jnp.einsum("btd,vd->btv", x, table, preferred_element_type=jnp.float32)


def _self_attention(x: Float[Array, "B T D"], weights: Params, attend: Any, config: T5Config, keys: Any) -> Any:
    normal = rms_norm(x, weights["norm"], config.norm_epsilon)
    mixed, kept = attend(*(project_heads(normal, weights[name]) for name in "qkv"), keys[0])
    return x + apply_adapter(dropout(merge_heads(mixed, weights["o"]), config.dropout_rate, keys[1]), weights), kept


def _mlp(x: Float[Array, "B T D"], weights: Params, config: T5Config, keys: Any) -> Float[Array, "B T D"]:
    """Return the output of the feed-forward sublayer and its adapter, without the residual connection."""
    x = rms_norm(x, weights["norm"], config.norm_epsilon)
    activate = jax.nn.relu if config.activation == "relu" else jax.nn.gelu
    out = feed_forward(x, weights, activate, config=config, dropout_rate=config.dropout_rate, key=keys[0])
    return apply_adapter(dropout(out, config.dropout_rate, keys[1]), weights)


# --------------------------------------------------------------------------------------------------------------
# Cross-attention


def cross_key_values(encoded: Float[Array, "B S D"], weights: Params) -> tuple[Array, Array]:
    return project_heads(encoded, weights["k"]), project_heads(encoded, weights["v"])


def attend_encoded(
    q: Float[Array, "B T H K"],
    encoded: Float[Array, "B S D"],
    weights: Params,
    mask: Bool[Array, "B S"],
    prefix: list[KeyValues],
    config: T5Config,
    key: PRNGKeyArray | None,
) -> Float[Array, "B T H K"]:
    options: Any = {"dropout_rate": config.dropout_rate, "key": key}
    if q.shape[1] < config.d_kv:  # short targets, such as labels
        return attend_projected(q, encoded, weights["k"], weights["v"], mask, prefix, **options)
    source = KeyValues(*cross_key_values(encoded, weights), mask=mask)
    return attend(q, source, *prefix, fused=config.fused_attention, **options)


def biases(
    side: Params, config: T5Config, places: np.ndarray, prefix: int, bidirectional: bool, row: Any = None
) -> Biases:
    """Return the biases of relative positions. If the layers share one table, they are computed once."""
    options: Any = {"buckets": config.relative_buckets, "max_distance": config.relative_max_distance}
    bucket = functools.partial(relative_buckets, bidirectional=bidirectional, **options)
    biases_from_table = relative_biases(bucket, places, prefix, row)
    if config.relative_per_layer:
        return lambda weights: biases_from_table(weights["self"]["relative_bias"])
    shared = biases_from_table(side["relative_bias"])
    return lambda weights: shared
