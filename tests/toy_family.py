"""A decoder-only family in one file: grouped-query attention, rotary positions and RMSNorm, as in Llama."""

import dataclasses

import jax
import jax.numpy as jnp

from prompt_jax.models.generation_settings import GenerationSettings
from prompt_jax.models.layers import merge_heads, project_down, project_heads, project_up, rms_norm
from prompt_jax.models.parameter import Parameter

NAME = "Toy"
KEYS_PER_LAYER = 1
EPSILON = 1e-6
THETA = 100.0


@dataclasses.dataclass(frozen=True)
class ToyConfig:
    vocab_size: int = 32
    d_model: int = 16
    d_kv: int = 4
    d_ff: int = 24
    num_heads: int = 6
    kv_heads: int = 2
    layers: int = 3
    pad_id: int = 0
    eos_id: int = 1
    start_id: int = 1
    dropout_rate: float = 0.0
    remat: str = "none"
    fused_attention: bool = False
    fsdp: bool = False
    generation: GenerationSettings = GenerationSettings()


def parameters(config):
    d, h, g, k, f = config.d_model, config.num_heads, config.kv_heads, config.d_kv, config.d_ff
    layer = {
        "q": ((d, h, k), ("embed", "heads", "kv")),
        "k": ((d, g, k), ("embed", "heads", "kv")),
        "v": ((d, g, k), ("embed", "heads", "kv")),
        "o": ((h, k, d), ("heads", "kv", "embed")),
        "up": ((d, f), ("embed", "mlp")),
        "down": ((f, d), ("mlp", "embed")),
        "attention_norm": ((d,), ("embed",)),
        "mlp_norm": ((d,), ("embed",)),
    }
    return [
        Parameter("embedding", "embedding", (config.vocab_size, d), ("vocab", "embed")),
        Parameter("final_norm", "final_norm", (d,), ("embed",)),
        *(Parameter(f"layers/0/{name}", name, *row, layers=config.layers) for name, row in layer.items()),
    ]


def embed(params, ids, config):
    return params["embedding"][ids]


def add_positions(params, x, positions, config, key):
    frequencies = THETA ** (-jnp.arange(0, config.d_kv, 2) / config.d_kv)
    return x, (positions[..., None] * frequencies[None, None])[:, :, None]  # [B, T, 1, K / 2]


def layer(x, weights, angles, attend, config, keys):
    normal = rms_norm(x, weights["attention_norm"], EPSILON)
    q, k, v = (project_heads(normal, weights[name]) for name in "qkv")
    mixed, kept = attend(rotate(q, angles) * config.d_kv**-0.5, rotate(k, angles), v, keys[0])
    x = x + merge_heads(mixed, weights["o"])
    hidden = jax.nn.silu(project_up(rms_norm(x, weights["mlp_norm"], EPSILON), weights["up"]))
    return x + project_down(hidden, weights["down"]), kept


def rotate(x, angles):
    first, second = jnp.split(x, 2, axis=-1)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def logits(params, x, config):
    return jnp.einsum("btd,vd->btv", rms_norm(x, params["final_norm"], EPSILON), params["embedding"])
