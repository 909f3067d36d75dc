"""Rotary positions (Su et al. 2021) and their extensions to longer texts.

A head's first half and second half are the real and imaginary parts of complex numbers. They are rotated by an angle
that is the position times a frequency. The frequencies follow `modeling_rope_utils.py` of Transformers.
"""

import dataclasses
import math
import reprlib
from collections.abc import Mapping
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from prompt_jax.models.hugging_face import ConfigValues

RopeType = Literal["default", "linear", "llama3", "yarn", "longrope"]
# The parameters that each type needs. The others are optional.
REQUIRED: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings"),
    "longrope": ("factor", "original_max_position_embeddings", "short_factor", "long_factor"),
}


@dataclasses.dataclass(frozen=True)
class Rope:
    """The rotary positions of a layer. Fields are named as in `rope_parameters` of config.json.

    `long` chooses longrope's `long_factor`, for texts longer than `original_max_position_embeddings`.
    """

    rope_theta: float
    rope_type: RopeType = "default"
    partial_rotary_factor: float = 1.0  # share of a head that is rotated
    factor: float | None = None
    original_max_position_embeddings: int | None = None
    attention_factor: float | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    short_factor: tuple[float, ...] | None = None
    long_factor: tuple[float, ...] | None = None
    long: bool = False


def read_rope(raw: Mapping[str, Any], values: ConfigValues, width: int) -> Rope:
    """Return the rotary positions of `rope_parameters` in config.json, for heads of `width` dimensions.

    Raises:
      CheckpointError: a value is missing, invalid or not supported.
    """
    raw = {name: value for name, value in raw.items() if value is not None}
    kind = raw.get("rope_type", "default")
    if kind not in REQUIRED:
        what = "dynamic NTK, which is " if kind == "dynamic" else ""
        values.fail(f"rope_type is {kind!r}, {what}not supported; supported: {', '.join(map(repr, REQUIRED))}")
    if "factor" in REQUIRED[kind] and "original_max_position_embeddings" in raw:
        raw.setdefault("factor", values.integer("max_position_embeddings") / raw["original_max_position_embeddings"])
    if missing := [name for name in ("rope_theta", *REQUIRED[kind]) if name not in raw]:
        values.fail(f"rope_parameters has the type {kind!r} and no {' and '.join(missing)}")
    rope = Rope(**{name: _checked(name, raw[name], values) for name in _FIELDS & raw.keys()})
    if rope.partial_rotary_factor != 1 and values.config.model_type != "phi3":
        values.fail(f"partial_rotary_factor is {rope.partial_rotary_factor}; only phi3 supports it")
    pairs = rotary_width(rope, width) // 2
    for factors in (rope.short_factor, rope.long_factor):
        if factors is not None and len(factors) != pairs:
            values.fail(f"short_factor or long_factor has {len(factors)} numbers; expected {pairs}")
    if rotary_width(rope, width) % 2 or pairs == 0:
        values.fail(f"{rotary_width(rope, width)} dimensions of a head are rotated; expected an even number")
    return rope


def _checked(name: str, value: Any, values: ConfigValues) -> Any:
    """Return a checked value of `rope_parameters`."""
    if name == "rope_type":
        return value
    if name == "truncate":
        good = isinstance(value, bool)
    elif name in ("short_factor", "long_factor"):
        good = isinstance(value, list) and all(type(each) in (int, float) and each > 0 for each in value)
        value = tuple(map(float, value)) if good else value
    else:
        good = type(value) in (int, float) and 0 < value < math.inf
    if not good:
        values.fail(f"{name} is {reprlib.repr(value)}; expected positive numbers")
    return value


def rope_parameters(rope: Rope) -> dict[str, Any]:
    """Return `rope_parameters` of config.json."""
    fields = {name: getattr(rope, name) for name in sorted(_FIELDS)}
    if rope.rope_type != "yarn":
        del fields["truncate"]
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in fields.items() if value is not None
    }


_FIELDS = {field.name for field in dataclasses.fields(Rope)} - {"long"}


def rotary_width(rope: Rope, width: int) -> int:
    """Return the number of a head's dimensions that are rotated."""
    return int(width * rope.partial_rotary_factor)


def frequencies(rope: Rope, width: int) -> tuple[Float[np.ndarray, "R"], float]:
    """Return the rotation per position for each pair of a head's `width` dimensions, and a factor of sine and cosine.

    The factor scales queries and keys of longer texts (Peng et al. 2023, section 3.4).
    """
    dim = rotary_width(rope, width)
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    plain = (1.0 / np.float32(rope.rope_theta) ** exponents).astype(np.float32)
    match rope.rope_type:
        case "linear":
            return plain / np.float32(rope.factor), 1.0
        case "llama3":
            return _llama3(rope, plain), 1.0
        case "yarn":
            return _yarn(rope, plain, dim), _yarn_attention_factor(rope)
        case "longrope":
            longer = np.array(rope.long_factor if rope.long else rope.short_factor, np.float32)
            return plain / longer, _longrope_attention_factor(rope)
    return plain, 1.0


def long_rope(config: Any) -> bool | None:
    """Return whether a model's config has longrope's factors for long texts; None if it has no longrope."""
    return next((rope.long for rope in getattr(config, "ropes", ()) if rope.rope_type == "longrope"), None)


def _llama3(rope: Rope, plain: np.ndarray) -> np.ndarray:
    """Divide low frequencies by `factor`, keep high ones, and interpolate in between."""
    factor, low, high = rope.factor, rope.low_freq_factor, rope.high_freq_factor
    assert factor is not None and low is not None and high is not None
    periods = rope.original_max_position_embeddings * plain / np.float32(2 * math.pi)  # in the pretrained context
    share = np.clip((periods - low) / (high - low), 0, 1)
    return ((1 - share) * plain / factor + share * plain).astype(np.float32)


def _yarn(rope: Rope, plain: np.ndarray, dim: int) -> np.ndarray:
    """Divide low frequencies by `factor`, keep high ones, and interpolate over the dimensions in between."""
    original = rope.original_max_position_embeddings
    assert original is not None

    def dimension(rotations: float) -> float:
        """Return the dimension that makes so many rotations in the pretrained context."""
        return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(rope.rope_theta))

    low, high = dimension(rope.beta_fast or 32), dimension(rope.beta_slow or 1)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    span = high - low or 0.001
    share = 1 - np.clip((np.arange(dim // 2, dtype=np.float32) - low) / np.float32(span), 0, 1)
    return ((1 - share) * plain / np.float32(rope.factor) + share * plain).astype(np.float32)


def _yarn_attention_factor(rope: Rope) -> float:
    factor = rope.factor
    assert factor is not None
    if rope.attention_factor is not None:
        return rope.attention_factor

    def mscale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if rope.mscale and rope.mscale_all_dim:
        return mscale(rope.mscale) / mscale(rope.mscale_all_dim)
    return mscale(1.0)


def _longrope_attention_factor(rope: Rope) -> float:
    factor, original = rope.factor, rope.original_max_position_embeddings
    assert factor is not None and original is not None
    if rope.attention_factor is not None:
        return rope.attention_factor
    return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))


def angles(
    rope: Rope, width: int, positions: Int[Array, "#B #T"], dtype: Any
) -> tuple[Float[Array, "#B #T 1 R"], Float[Array, "#B #T 1 R"]]:
    """Return the cosine and sine of each position's angles."""
    speeds, factor = frequencies(rope, width)
    turned = (positions[..., None].astype(jnp.float32) * speeds[None, None])[:, :, None]
    return (jnp.cos(turned) * factor).astype(dtype), (jnp.sin(turned) * factor).astype(dtype)


def rotate(
    x: Float[Array, "B T H K"], cos: Float[Array, "#B #T 1 R"], sin: Float[Array, "#B #T 1 R"]
) -> Float[Array, "B T H K"]:
    """Rotate the first 2 R dimensions of each head."""
    half = cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)
