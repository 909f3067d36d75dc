"""BART (Lewis et al. 2020), base and large. `prompt_jax.models.encoder_decoder` has the rest of the model.

Positions are learned, and a layer norm follows each residual connection. Results equal Transformers' for inputs padded
on the right.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from prompt_jax.config.model import Remat
from prompt_jax.models.attention import KeyValues, attend
from prompt_jax.models.dropout import dropout
from prompt_jax.models.encoder_decoder import Biases
from prompt_jax.models.generation_settings import GenerationSettings
from prompt_jax.models.hugging_face import HuggingFace
from prompt_jax.models.layers import (
    Params,
    apply_adapter,
    exact_gelu,
    feed_forward,
    layer_norm,
    merge_heads,
    project_heads,
)
from prompt_jax.models.parameter import Parameter, layer_norm_parameters

NAME = "BART"
ENCODER_KEYS, DECODER_KEYS = 4, 6
EPSILON = 1e-5
FIRST_POSITION = 2  # the table's row for position 0; earlier rows are unused
HUGGING_FACE = HuggingFace(
    model_type="bart",
    architecture="BartForConditionalGeneration",
    fields={
        "vocab_size": "vocab_size",
        "positions": "max_position_embeddings",
        "d_model": "d_model",
        "encoder_layers": "encoder_layers",
        "encoder_heads": "encoder_attention_heads",
        "encoder_d_ff": "encoder_ffn_dim",
        "decoder_layers": "decoder_layers",
        "decoder_heads": "decoder_attention_heads",
        "decoder_d_ff": "decoder_ffn_dim",
        "activation": "activation_function",
        "scale_embedding": "scale_embedding",
        "dropout_rate": "dropout",
    },
    options={
        "activation_function": ("gelu", "gelu_new", "relu"),
        "scale_embedding": (False, True),
        "normalize_before": (False,),
        "add_final_layer_norm": (False,),
    },
    multiples=(("d_model", "encoder_attention_heads"), ("d_model", "decoder_attention_heads")),
    read=lambda values, tied: {"bos_id": values.token_id("bos_token_id")},
    write=lambda config: {"bos_token_id": config.bos_id, "decoder_start_token_id": config.start_id},
    body="model",
    renamed=((r"model\.", ""),),
    unused=r"(en|de)coder\.version",  # in older checkpoints
    copies={"shared.weight": ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")},
    # Missing in checkpoints without a language modeling head, such as bart-base; Transformers then uses zeros.
    optional=lambda config: {"final_logits_bias": (1, config.vocab_size)},
)


@dataclasses.dataclass(frozen=True)
class BartConfig:
    """The architecture, and how it is computed (`dropout_rate`, `remat`, `fused_attention`, `fsdp`)."""

    vocab_size: int
    positions: int  # maximum length of the input, and of the output
    d_model: int
    encoder_layers: int
    encoder_heads: int
    encoder_d_ff: int
    decoder_layers: int
    decoder_heads: int
    decoder_d_ff: int
    activation: Literal["gelu", "gelu_new", "relu"] = "gelu"
    scale_embedding: bool = False  # multiplies embeddings by d_model ** 0.5
    pad_id: int = 1
    eos_id: int = 2
    start_id: int = 2  # the decoder's first input
    bos_id: int = 0  # <s>, which begins every input and target
    dropout_rate: float = 0.1  # applied only with a key
    remat: Remat = "none"
    fused_attention: bool = False
    fsdp: bool = False
    generation: GenerationSettings = GenerationSettings()

    @property
    def embedding_scale(self) -> float:
        return self.d_model**0.5 if self.scale_embedding else 1.0


def shape(config: BartConfig, side: str) -> tuple[int, int, int]:
    heads = getattr(config, f"{side}_heads")
    return getattr(config, f"{side}_layers"), heads, config.d_model // heads


def parameters(config: BartConfig) -> list[Parameter]:
    """Return the table of parameters."""
    d, v = config.d_model, config.vocab_size
    table = [
        Parameter("embedding", "shared.weight", (v, d), ("vocab", "embed")),
        Parameter("logits_bias", "final_logits_bias", (v,), ("vocab",), stored=(1, v)),
    ]
    for side, f in (("encoder", config.encoder_d_ff), ("decoder", config.decoder_d_ff)):
        depth, h, k = shape(config, side)
        at, block = f"{side}/layers/0", f"{side}.layers.{{layer}}"
        linear: Any = {"transposed": True, "layers": depth}
        places = (config.positions + FIRST_POSITION, d)
        table.append(Parameter(f"{side}/positions", f"{side}.embed_positions.weight", places, ("positions", "embed")))
        table += layer_norm_parameters(f"{side}/embed_norm", f"{side}.layernorm_embedding", d)
        for site, stored in [("self", "self_attn"), ("cross", "encoder_attn")][: 1 if side == "encoder" else 2]:
            path, name = f"{at}/{site}", f"{block}.{stored}"
            for letter in "qkv":
                proj, axes = f"{name}.{letter}_proj", ("embed", "heads", "kv")
                table.append(Parameter(f"{path}/{letter}", f"{proj}.weight", (d, h, k), axes, **linear))
                bias = Parameter(f"{path}/{letter}_bias", f"{proj}.bias", (h, k), axes[1:], layers=depth)
                table.append(bias._replace(stored=(h * k,)))
            axes = ("heads", "kv", "embed")
            table.append(Parameter(f"{path}/o", f"{name}.out_proj.weight", (h, k, d), axes, **linear))
            table.append(Parameter(f"{path}/o_bias", f"{name}.out_proj.bias", (d,), ("embed",), layers=depth))
            table += layer_norm_parameters(f"{path}/norm", f"{name}_layer_norm", d, depth)
        table += [
            Parameter(f"{at}/mlp/up", f"{block}.fc1.weight", (d, f), ("embed", "mlp"), **linear),
            Parameter(f"{at}/mlp/up_bias", f"{block}.fc1.bias", (f,), ("mlp",), layers=depth),
            Parameter(f"{at}/mlp/down", f"{block}.fc2.weight", (f, d), ("mlp", "embed"), **linear),
            Parameter(f"{at}/mlp/down_bias", f"{block}.fc2.bias", (d,), ("embed",), layers=depth),
        ]
        table += layer_norm_parameters(f"{at}/mlp/norm", f"{block}.final_layer_norm", d, depth)
    return table


# --------------------------------------------------------------------------------------------------------------
# Layers


def embed(params: Params, ids: Int[Array, "B T"], config: BartConfig) -> Float[Array, "B T D"]:
    x = params["embedding"][ids]
    return x * jnp.asarray(config.embedding_scale, x.dtype) if config.scale_embedding else x


def add_positions(
    side: Params, x: Float[Array, "B T D"], positions: Int[Array, "#B #T"], config: BartConfig, key: Any
) -> Float[Array, "B T D"]:
    x = layer_norm(x + side["positions"][positions + FIRST_POSITION], side["embed_norm"], EPSILON)
    return dropout(x, config.dropout_rate, key)


def biases(
    side: Params, config: BartConfig, places: np.ndarray, prefix: int, bidirectional: bool, row: Any = None
) -> Biases:
    return lambda weights: (None, None)


def encoder_layer(x: Float[Array, "B T D"], weights: Params, attend: Any, config: BartConfig, keys: Any) -> Any:
    x, kept = _self_attention(x, weights["self"], attend, config, keys[:2])
    return _mlp(x, weights["mlp"], config, keys[2:]), kept


def decoder_layer(
    x: Float[Array, "B T D"], weights: Params, attend: Any, attend_cross: Any, config: BartConfig, keys: Any
) -> Any:
    x, kept = _self_attention(x, weights["self"], attend, config, keys[:2])
    cross = weights["cross"]
    x = _attention_output(x, attend_cross(_query(x, cross), cross, keys[2]), cross, config, keys[3])
    return _mlp(x, weights["mlp"], config, keys[4:]), kept


def final_norm(side: Params, x: Float[Array, "B T D"], config: BartConfig, key: Any) -> Float[Array, "B T D"]:
    return x


def logits(params: Params, x: Float[Array, "B T D"], config: BartConfig) -> Float[Array, "B T V"]:
    out = jnp.einsum("btd,vd->btv", x, params["embedding"], preferred_element_type=jnp.float32)
    return out + params["logits_bias"].astype(jnp.float32)[None, None]


def cross_key_values(encoded: Float[Array, "B S D"], weights: Params) -> tuple[Array, Array]:
    k, v = (project_heads(encoded, weights[name]) + weights[f"{name}_bias"][None, None] for name in "kv")
    return k, v


def attend_encoded(
    q: Float[Array, "B T H K"],
    encoded: Float[Array, "B S D"],
    weights: Params,
    mask: Bool[Array, "B S"],
    prefix: list[KeyValues],
    config: BartConfig,
    key: Any,
) -> Float[Array, "B T H K"]:
    source = KeyValues(*cross_key_values(encoded, weights), mask=mask)
    options: Any = {"dropout_rate": config.dropout_rate, "key": key, "fused": config.fused_attention}
    return attend(q, source, *prefix, **options)


def _query(x: Float[Array, "B T D"], weights: Params) -> Float[Array, "B T H K"]:
    q = project_heads(x, weights["q"]) + weights["q_bias"][None, None]
    return q * q.shape[-1] ** -0.5


def _self_attention(x: Float[Array, "B T D"], weights: Params, attend: Any, config: BartConfig, keys: Any) -> Any:
    mixed, kept = attend(_query(x, weights), *cross_key_values(x, weights), keys[0])
    return _attention_output(x, mixed, weights, config, keys[1]), kept


def _attention_output(x: Array, mixed: Float[Array, "B T H K"], weights: Params, config: BartConfig, key: Any) -> Array:
    return _add_and_norm(x, merge_heads(mixed, weights["o"]) + weights["o_bias"][None, None], weights, config, key)


def _mlp(x: Float[Array, "B T D"], weights: Params, config: BartConfig, keys: Any) -> Float[Array, "B T D"]:
    activate: Callable = {
        "gelu": exact_gelu,
        "gelu_new": jax.nn.gelu,
        "relu": jax.nn.relu,
    }[config.activation]
    y = feed_forward(x, weights, activate, config=config, dropout_rate=config.dropout_rate, key=keys[0])
    return _add_and_norm(x, y, weights, config, keys[1])


def _add_and_norm(
    x: Float[Array, "B T D"], y: Float[Array, "B T D"], weights: Params, config: BartConfig, key: Any
) -> Array:
    """Add the output y of a sublayer, after dropout and adapter, to x, and apply the layer norm."""
    return layer_norm(x + apply_adapter(dropout(y, config.dropout_rate, key), weights), weights["norm"], EPSILON)
