"""Llama, Mistral, Qwen, SmolLM, Phi and Gemma: one block with switches. The skeleton is in decoder_only.py.

`MODEL_TYPES` lists how the model types differ. The numbers are read from config.json as in Transformers'
`configuration_*.py`.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from prompt_jax.config.model import Remat
from prompt_jax.models.generation_settings import GenerationSettings
from prompt_jax.models.hugging_face import ConfigValues, HuggingFace
from prompt_jax.models.layers import (
    Params,
    add_bias,
    apply_adapter,
    exact_gelu,
    feed_forward,
    merge_heads,
    project_heads,
)
from prompt_jax.models.layers import rms_norm as layer_rms_norm
from prompt_jax.models.parameter import Parameter
from prompt_jax.models.rope import Rope, angles, read_rope, rope_parameters, rotate

NAME = "Llama"
KEYS_PER_LAYER = 1
SLIDING, FULL = "sliding_attention", "full_attention"

# model_type in config.json -> the class of Transformers, and the switches that differ from Llama.
MODEL_TYPES: dict[str, tuple[str, dict[str, bool]]] = {
    "llama": ("LlamaForCausalLM", {}),
    "mistral": ("MistralForCausalLM", {}),
    "qwen2": ("Qwen2ForCausalLM", {"qkv_bias": True}),
    "qwen3": ("Qwen3ForCausalLM", {"qk_norm": True}),
    "smollm3": ("SmolLM3ForCausalLM", {}),
    "phi3": ("Phi3ForCausalLM", {"fused": True}),
    "gemma": ("GemmaForCausalLM", {"gemma_norm": True}),
    "gemma2": ("Gemma2ForCausalLM", {"gemma_norm": True, "post_norms": True}),
    "gemma3_text": ("Gemma3ForCausalLM", {"gemma_norm": True, "post_norms": True, "qk_norm": True}),
}
_BIAS_OPTIONS = {"llama", "qwen3", "smollm3", "gemma", "gemma2", "gemma3_text"}  # read `attention_bias`
_UNSUPPORTED = {
    **dict.fromkeys(("mixtral", "qwen2_moe", "qwen3_moe", "phimoe", "llama4", "llama4_text"), "a mixture of experts"),
    **dict.fromkeys(("qwen3_next", "qwen3_5", "qwen3_5_text"), "which has linear attention"),
    **dict.fromkeys(("gemma3n", "gemma3n_text"), "which has embeddings in each layer"),
    **dict.fromkeys(("gemma4", "gemma4_text"), "whose layers share keys and values"),
}


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """The architecture, and how it is computed (`dropout_rate`, `remat`, `fused_attention`, `fsdp`)."""

    model_type: str
    vocab_size: int
    positions: int  # maximum length of prompt and text
    d_model: int
    d_ff: int
    num_heads: int
    kv_heads: int
    d_kv: int
    layers: int
    ropes: tuple[Rope, ...]
    rope_of_layer: tuple[int | None, ...]  # index into `ropes`; None for a layer without positions
    windows: tuple[int | None, ...]  # for each layer, how many tokens a token attends to, itself included; None: all
    query_scalar: float  # queries are divided by its root
    activation: Literal["silu", "gelu_pytorch_tanh", "gelu"] = "silu"
    norm_epsilon: float = 1e-6
    gemma_norm: bool = False  # norms multiply by 1 + weight, and embeddings are scaled
    post_norms: bool = False  # norms after the sublayers too
    qk_norm: bool = False  # norms of queries and keys
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    fused: bool = False  # the checkpoint has one matrix for q, k and v, and one for gate and up
    attention_softcap: float | None = None
    output_softcap: float | None = None
    tied_output: bool = False  # computes logits from the embedding table, without lm_head
    pad_id: int = 0
    eos_id: int = 1
    start_id: int = 1  # the separator between source and target
    dropout_rate: float = 0.0  # of attention weights, applied only with a key
    remat: Remat = "none"
    fused_attention: bool = False
    fsdp: bool = False
    generation: GenerationSettings = GenerationSettings()

    @property
    def embedding_scale(self) -> float:
        """Return the factor from the table of embeddings to the space of embedded tokens."""
        return self.d_model**0.5 if self.gemma_norm else 1.0


# --------------------------------------------------------------------------------------------------------------
# config.json


def _read(values: ConfigValues, tied: bool) -> dict[str, Any]:
    """Return the fields of LlamaConfig that `HUGGING_FACE.fields` does not list."""
    model_type = values.config.model_type
    layers = values.integer("num_hidden_layers")
    width = _head_width(values)
    switches = dict(MODEL_TYPES[model_type][1])
    if model_type in _BIAS_OPTIONS and values.choice("attention_bias", (False, True)):
        switches |= {"qkv_bias": True, "o_bias": True}
    if model_type in ("llama", "smollm3"):
        switches["mlp_bias"] = values.choice("mlp_bias", (False, True))
    activation = "hidden_activation" if model_type in ("gemma2", "gemma3_text") else "hidden_act"
    kinds = _layer_types(values, model_type, layers)
    raw = values.get("rope_parameters", {})
    nested = FULL in raw or SLIDING in raw
    ropes = {kind: read_rope(raw[kind] if nested else raw, values, width) for kind in dict.fromkeys(kinds)}
    distinct = tuple(dict.fromkeys(ropes.values()))
    has_rope = values.get("no_rope_layers", []) if model_type == "smollm3" else [1] * layers
    if len(has_rope) < layers:
        values.fail(f"no_rope_layers has {len(has_rope)} entries; expected one for each of {layers} layers")
    gemma2 = model_type in ("gemma2", "gemma3_text")
    return switches | {
        "model_type": model_type,
        "d_kv": width,
        "ropes": distinct,
        "rope_of_layer": tuple(
            distinct.index(ropes[kind]) if rotated else None for kind, rotated in zip(kinds, has_rope, strict=False)
        ),
        "windows": tuple(values.integer("sliding_window") if kind == SLIDING else None for kind in kinds),
        "query_scalar": values.number("query_pre_attn_scalar") if gemma2 else width,
        "activation": values.choice(activation, ("silu", "gelu_pytorch_tanh", "gelu")),
        "attention_softcap": values.number("attn_logit_softcapping", None) if model_type == "gemma2" else None,
        "output_softcap": values.number("final_logit_softcapping", None) if gemma2 else None,
        "tied_output": tied,
    }


def _head_width(values: ConfigValues) -> int:
    return values.integer("head_dim", default=values.integer("hidden_size") // values.integer("num_attention_heads"))


def _layer_types(values: ConfigValues, model_type: str, layers: int) -> list[str]:
    """Return the kind of attention of each layer."""
    if model_type in ("mistral", "phi3"):
        return [FULL if values.get("sliding_window") is None else SLIDING] * layers
    kinds = [FULL] * layers if model_type in ("llama", "gemma") else values.get("layer_types")
    if not isinstance(kinds, list) or len(kinds) != layers or not set(kinds) <= {FULL, SLIDING}:
        values.fail(f"layer_types is {kinds!r}; expected {layers} entries, each {FULL!r} or {SLIDING!r}")
    return kinds


def _write(config: LlamaConfig) -> dict[str, Any]:
    """Return the values of config.json that `HUGGING_FACE.fields` does not list."""
    kinds = [FULL if window is None else SLIDING for window in config.windows]
    ropes = {
        kind: rope_parameters(config.ropes[index])
        for kind, index in zip(kinds, config.rope_of_layer, strict=True)
        if index is not None
    }
    window = next((window for window in config.windows if window is not None), None)
    gelu = "hidden_activation" if config.model_type in ("gemma2", "gemma3_text") else "hidden_act"
    values = {
        "model_type": config.model_type,
        "architectures": [MODEL_TYPES[config.model_type][0]],
        "head_dim": config.d_kv,
        gelu: config.activation,
        "rope_parameters": ropes if config.model_type == "gemma3_text" else rope_parameters(config.ropes[0]),
        "tie_word_embeddings": config.tied_output,
        "attention_bias": config.o_bias,
        "mlp_bias": config.mlp_bias,
        "sliding_window": window,
        "bos_token_id": None,
    }
    if config.model_type not in ("mistral", "phi3"):
        values |= {"layer_types": kinds, "use_sliding_window": window is not None, "max_window_layers": 0}
    if config.model_type == "smollm3":
        values["no_rope_layers"] = [int(index is not None) for index in config.rope_of_layer]
    if config.model_type == "phi3":
        values["original_max_position_embeddings"] = (
            config.ropes[0].original_max_position_embeddings or config.positions
        )
    if config.post_norms:
        values |= {
            "query_pre_attn_scalar": config.query_scalar,
            "attn_logit_softcapping": config.attention_softcap,
            "final_logit_softcapping": config.output_softcap,
        }
    return values


HUGGING_FACE = HuggingFace(
    model_type="llama",
    architecture="LlamaForCausalLM",
    also_read=(*list(MODEL_TYPES)[1:], "gemma3"),
    unsupported=_UNSUPPORTED,
    fields={
        "vocab_size": "vocab_size",
        "positions": "max_position_embeddings",
        "d_model": "hidden_size",
        "d_ff": "intermediate_size",
        "num_heads": "num_attention_heads",
        "kv_heads": "num_key_value_heads",
        "layers": "num_hidden_layers",
        "norm_epsilon": "rms_norm_eps",
        "dropout_rate": "attention_dropout",
    },
    options={"use_bidirectional_attention": (False,)},
    multiples=(("num_attention_heads", "num_key_value_heads"),),
    defaults=lambda values: {"attention_dropout": 0.0},
    read=_read,
    write=_write,
    body="model",
    renamed=(
        (r"(language_model\.model|model\.language_model)\.", "model."),  # Gemma 3 with images
        (r"language_model\.lm_head\.", "lm_head."),
        (r"(?=(embed_tokens|layers|norm)\.)", "model."),  # checkpoints without a language modeling head
    ),
    # Rotary frequencies in older checkpoints, and what reads images.
    unused=r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq|(model\.)?(vision_tower|multi_modal_projector)\..*",
    output=("lm_head.weight", "model.embed_tokens.weight"),
)


# --------------------------------------------------------------------------------------------------------------
# Parameters and layers


def parameters(config: LlamaConfig) -> list[Parameter]:
    """Return the table of parameters."""
    d, h, g, k, f = config.d_model, config.num_heads, config.kv_heads, config.d_kv, config.d_ff
    vocabulary = (config.vocab_size, d), ("vocab", "embed")
    table = [
        Parameter("embedding", "model.embed_tokens.weight", *vocabulary),
        Parameter("final_norm", "model.norm.weight", (d,), ("embed",)),
    ]
    if not config.tied_output:
        table.append(Parameter("lm_head", "lm_head.weight", *vocabulary))

    def add(path: str, name: str, shape: tuple[int, ...], axes: tuple[str, ...], **fields: Any) -> None:
        place = f"layers/0/{path}", f"model.layers.{{layer}}.{name}"
        table.append(Parameter(*place, shape, axes, layers=config.layers, **fields))

    outputs, start = (h + 2 * g) * k, 0
    for letter, heads in (("q", h), ("k", g), ("v", g)):
        fused: Any = {"stored": (outputs, d), "part": (start, start + heads * k)} if config.fused else {}
        name = f"self_attn.{'qkv' if config.fused else letter}_proj"
        add(f"self/{letter}", f"{name}.weight", (d, heads, k), ("embed", "heads", "kv"), transposed=True, **fused)
        if config.qkv_bias:
            add(f"self/{letter}_bias", f"{name}.bias", (heads, k), ("heads", "kv"), stored=(heads * k,))
        start += heads * k
    add("self/o", "self_attn.o_proj.weight", (h, k, d), ("heads", "kv", "embed"), transposed=True)
    if config.o_bias:
        add("self/o_bias", "self_attn.o_proj.bias", (d,), ("embed",))
    for number, name in enumerate(("gate", "up")):
        fused = {"stored": (2 * f, d), "part": (number * f, (number + 1) * f)} if config.fused else {}
        stored = f"mlp.{'gate_up' if config.fused else name}_proj"
        add(f"mlp/{name}", f"{stored}.weight", (d, f), ("embed", "mlp"), transposed=True, **fused)
        if config.mlp_bias:
            add(f"mlp/{name}_bias", f"{stored}.bias", (f,), ("mlp",))
    add("mlp/down", "mlp.down_proj.weight", (f, d), ("mlp", "embed"), transposed=True)
    if config.mlp_bias:
        add("mlp/down_bias", "mlp.down_proj.bias", (d,), ("embed",))
    if config.qk_norm:
        for letter in "qk":
            add(f"self/{letter}_norm", f"self_attn.{letter}_norm.weight", (k,), ("kv",))
    norms = {"self/norm": "input_layernorm", "mlp/norm": "post_attention_layernorm"}
    if config.post_norms:
        norms |= {"self/post_norm": "post_attention_layernorm", "mlp/norm": "pre_feedforward_layernorm"}
        norms["mlp/post_norm"] = "post_feedforward_layernorm"
    for path, name in norms.items():
        add(path, f"{name}.weight", (d,), ("embed",))
    return table


def layer_settings(config: LlamaConfig) -> Mapping[str, np.ndarray]:
    """Return what differs between layers, with a leading axis L."""
    settings = {}
    if any(config.windows):
        settings["window"] = np.array([window or np.iinfo(np.int32).max for window in config.windows], np.int32)
    if len(set(config.rope_of_layer)) > 1:
        last = len(config.ropes)
        settings["rope"] = np.array([last if index is None else index for index in config.rope_of_layer], np.int32)
    return settings


def for_length(config: LlamaConfig, length: int) -> LlamaConfig:
    """Return the config for texts of `length` tokens, prompt included.

    Longrope has other factors for texts longer than those of pretraining. As in Transformers, all rows of a call use
    the same. Unlike there, they do not change while a text is generated.
    """
    ropes = tuple(
        dataclasses.replace(rope, long=rope.long or length > (rope.original_max_position_embeddings or 0))
        if rope.rope_type == "longrope"
        else rope
        for rope in config.ropes
    )
    return dataclasses.replace(config, ropes=ropes)


def embed(params: Params, ids: Int[Array, "B T"], config: LlamaConfig) -> Float[Array, "B T D"]:
    x = params["embedding"][ids]
    return x if config.embedding_scale == 1 else x * jnp.asarray(config.embedding_scale, x.dtype)


def add_positions(
    params: Params, x: Float[Array, "B T D"], positions: Int[Array, "#B #T"], config: LlamaConfig, key: Any
) -> tuple[Float[Array, "B T D"], Any]:
    """Return x, and the cosines and sines of the layers' rotations; stacked if layers differ."""
    rotations = [angles(rope, config.d_kv, positions, x.dtype) for rope in config.ropes]
    if None in config.rope_of_layer:
        rotations.append((jnp.ones_like(rotations[0][0]), jnp.zeros_like(rotations[0][1])))
    if len(set(config.rope_of_layer)) == 1:
        return x, rotations[config.rope_of_layer[0] or 0]
    return x, jax.tree.map(lambda *each: jnp.stack(each), *rotations)


def layer(x: Float[Array, "B T D"], weights: Params, shared: Any, attend: Any, config: LlamaConfig, keys: Any) -> Any:
    attention, mlp = weights["self"], weights["mlp"]
    norm = functools.partial(_norm, config=config)
    normal = norm(x, attention["norm"])
    q, k, v = (add_bias(project_heads(normal, attention[name]), attention.get(f"{name}_bias")) for name in "qkv")
    if config.qk_norm:
        q, k = norm(q, attention["q_norm"]), norm(k, attention["k_norm"])
    settings = weights.get("settings", {})
    cos, sin = jax.tree.map(lambda each: each[settings["rope"]], shared) if "rope" in settings else shared
    q, k = rotate(q, cos, sin) * jnp.asarray(config.query_scalar**-0.5, q.dtype), rotate(k, cos, sin)
    mixed, kept = attend(q, k, v, keys[0], softcap=config.attention_softcap)
    out = add_bias(merge_heads(mixed, attention["o"]), attention.get("o_bias"))
    if config.post_norms:
        out = norm(out, attention["post_norm"])
    x = x + apply_adapter(out, attention)

    out = feed_forward(norm(x, mlp["norm"]), mlp, _activation(config), config=config)
    if config.post_norms:
        out = norm(out, mlp["post_norm"])
    return x + apply_adapter(out, mlp), kept


def _activation(config: LlamaConfig) -> Callable:
    return {"silu": jax.nn.silu, "gelu": exact_gelu, "gelu_pytorch_tanh": jax.nn.gelu}[config.activation]


def _norm(x: Float[Array, "B T *H N"], scale: Float[Array, "N"], config: LlamaConfig) -> Float[Array, "B T *H N"]:
    return layer_rms_norm(x, scale, config.norm_epsilon, one_plus=config.gemma_norm)


def logits(params: Params, x: Float[Array, "B T D"], config: LlamaConfig) -> Float[Array, "B T V"]:
    x = _norm(x, params["final_norm"], config)
    table = params["embedding"] if config.tied_output else params["lm_head"]
    out = jnp.einsum("btd,vd->btv", x, table, preferred_element_type=jnp.float32)
    return out if config.output_softcap is None else config.output_softcap * jnp.tanh(out / config.output_softcap)
