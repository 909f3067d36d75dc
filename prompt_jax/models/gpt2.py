"""GPT-2 (Radford et al. 2019), all sizes. `prompt_jax.models.decoder_only` has the rest of the model."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from prompt_jax.config.model import Remat
from prompt_jax.models.dropout import dropout
from prompt_jax.models.generation_settings import GenerationSettings
from prompt_jax.models.hugging_face import HuggingFace
from prompt_jax.models.layers import Params, apply_adapter, feed_forward, layer_norm, merge_heads, project_heads
from prompt_jax.models.parameter import Parameter, layer_norm_parameters

NAME = "GPT-2"
KEYS_PER_LAYER = 3
LEADING_SPACE = True
HUGGING_FACE = HuggingFace(
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    fields={
        "vocab_size": "vocab_size",
        "positions": "n_positions",
        "d_model": "n_embd",
        "d_ff": "n_inner",
        "num_heads": "n_head",
        "layers": "n_layer",
        "norm_epsilon": "layer_norm_epsilon",
        "dropout_rate": "resid_pdrop",
    },
    options={
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "reorder_and_upcast_attn": (False,),  # scores are float32 here anyway
        "add_cross_attention": (False,),
        "tie_word_embeddings": (True,),
    },
    multiples=(("n_embd", "n_head"),),
    defaults=lambda values: {"n_inner": 4 * values.integer("n_embd")},
    write=lambda config: {"bos_token_id": config.eos_id},
    body="transformer",
    renamed=((r"transformer\.", ""),),
    unused=r"h\.\d+\.attn\.(masked_)?bias",  # the causal mask, in older checkpoints
    copies={"wte.weight": ("lm_head.weight",)},
)


@dataclasses.dataclass(frozen=True)
class GPT2Config:
    """The architecture, and how it is computed (`dropout_rate`, `remat`, `fused_attention`, `fsdp`)."""

    vocab_size: int
    positions: int  # maximum length of prompt and text
    d_model: int
    d_ff: int
    num_heads: int
    layers: int
    norm_epsilon: float = 1e-5
    pad_id: int = 50256
    eos_id: int = 50256
    start_id: int = 50256  # the separator between source and target
    dropout_rate: float = 0.1  # applied only with a key
    remat: Remat = "none"
    fused_attention: bool = False
    fsdp: bool = False
    generation: GenerationSettings = GenerationSettings()

    @property
    def d_kv(self) -> int:
        return self.d_model // self.num_heads

    @property
    def kv_heads(self) -> int:
        return self.num_heads


def parameters(config: GPT2Config) -> list[Parameter]:
    """Return the table of parameters. Hugging Face's `Conv1D` stores [in, out]."""
    d, h, k, f, depth = config.d_model, config.num_heads, config.d_kv, config.d_ff, config.layers
    attention, mlp, block = "layers/0/self", "layers/0/mlp", "h.{layer}"
    table = [
        Parameter("embedding", "wte.weight", (config.vocab_size, d), ("vocab", "embed")),
        Parameter("positions", "wpe.weight", (config.positions, d), ("positions", "embed")),
        *layer_norm_parameters("final_norm", "ln_f", d),
        *layer_norm_parameters(f"{attention}/norm", f"{block}.ln_1", d, depth),
        *layer_norm_parameters(f"{mlp}/norm", f"{block}.ln_2", d, depth),
        Parameter(f"{attention}/o_bias", f"{block}.attn.c_proj.bias", (d,), ("embed",), layers=depth),
        Parameter(f"{mlp}/up", f"{block}.mlp.c_fc.weight", (d, f), ("embed", "mlp"), layers=depth),
        Parameter(f"{mlp}/up_bias", f"{block}.mlp.c_fc.bias", (f,), ("mlp",), layers=depth),
        Parameter(f"{mlp}/down", f"{block}.mlp.c_proj.weight", (f, d), ("mlp", "embed"), layers=depth),
        Parameter(f"{mlp}/down_bias", f"{block}.mlp.c_proj.bias", (d,), ("embed",), layers=depth),
    ]
    name, axes = f"{block}.attn.c_attn", ("embed", "heads", "kv")
    output = Parameter(f"{attention}/o", f"{block}.attn.c_proj.weight", (h, k, d), (*axes[1:], "embed"), layers=depth)
    table.append(output._replace(stored=(d, d)))
    for third, letter in enumerate("qkv"):
        fused: Any = {"layers": depth, "part": (third * d, (third + 1) * d)}
        weight = Parameter(f"{attention}/{letter}", f"{name}.weight", (d, h, k), axes, stored=(d, 3 * d), **fused)
        bias = Parameter(f"{attention}/{letter}_bias", f"{name}.bias", (h, k), axes[1:], stored=(3 * d,), **fused)
        table += [weight, bias]
    return table


def embed(params: Params, ids: Int[Array, "B T"], config: GPT2Config) -> Float[Array, "B T D"]:
    return params["embedding"][ids]


def add_positions(
    params: Params,
    x: Float[Array, "B T D"],
    positions: Int[Array, "#B #T"],
    config: GPT2Config,
    key: PRNGKeyArray | None,
) -> tuple[Float[Array, "B T D"], None]:
    return dropout(x + params["positions"][positions], config.dropout_rate, key), None


def layer(x: Float[Array, "B T D"], weights: Params, shared: None, attend: Any, config: GPT2Config, keys: Any) -> Any:
    attention, mlp = weights["self"], weights["mlp"]
    normal = layer_norm(x, attention["norm"], config.norm_epsilon)
    q, k, v = (project_heads(normal, attention[name]) + attention[f"{name}_bias"][None, None] for name in "qkv")
    mixed, kept = attend(q * config.d_kv**-0.5, k, v, keys[0])
    mixed = merge_heads(mixed, attention["o"]) + attention["o_bias"][None, None]
    x = x + apply_adapter(dropout(mixed, config.dropout_rate, keys[1]), attention)

    out = feed_forward(layer_norm(x, mlp["norm"], config.norm_epsilon), mlp, jax.nn.gelu, config=config)
    return x + apply_adapter(dropout(out, config.dropout_rate, keys[2]), mlp), kept


def logits(params: Params, x: Float[Array, "B T D"], config: GPT2Config) -> Float[Array, "B T V"]:
    x = layer_norm(x, params["final_norm"], config.norm_epsilon)
    return jnp.einsum("btd,vd->btv", x, params["embedding"], preferred_element_type=jnp.float32)
