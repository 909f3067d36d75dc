"""Rotary positions: their algebra, invalid parameters, and Transformers' frequencies for the parameters of models."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from prompt_jax.errors import CheckpointError
from prompt_jax.models.hugging_face import ConfigValues
from prompt_jax.models.rope import Rope, angles, frequencies, read_rope, rope_parameters, rotate

# `rope_parameters` of published models, the width of their heads, and their number of positions.
PUBLISHED = {
    "Llama 2": ({"rope_theta": 10000.0}, 128, 4096),
    "Llama 3.1": (
        {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        128,
        131072,
    ),
    "Gemma 3": ({"rope_type": "linear", "rope_theta": 1000000.0, "factor": 8.0}, 256, 131072),
    "Qwen 2.5": (
        {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 32768},
        128,
        131072,
    ),
    "yarn with all parameters": (
        {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 40.0,
            "original_max_position_embeddings": 4096,
            "beta_fast": 16,
            "beta_slow": 2,
            "mscale": 0.7,
            "mscale_all_dim": 1.0,
            "truncate": False,
        },
        64,
        163840,
    ),
    "Phi 4 mini": (
        {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "original_max_position_embeddings": 4096,
            "partial_rotary_factor": 0.75,
            "short_factor": [1.0] * 48,
            "long_factor": [1 + i / 3 for i in range(48)],
        },
        128,
        131072,
    ),
}


def values(positions: int = 64) -> ConfigValues:
    return ConfigValues(SimpleNamespace(max_position_embeddings=positions, model_type="phi3"), "a/config.json")


def rope_of(name: str) -> Rope:
    raw, width, positions = PUBLISHED[name]
    return read_rope(raw, values(positions), width)


def test_a_rotation_multiplies_complex_numbers():
    """A head's first and second half are real and imaginary parts. The rest is not rotated."""
    x = np.random.default_rng(0).normal(size=(2, 5, 3, 10)).astype(np.float32)
    rope, positions = Rope(100.0, partial_rotary_factor=0.8), np.array([[0, 1, 2, 3, 7], [4, 5, 6, 7, 8]])
    speeds = 100.0 ** (-np.arange(0, 8, 2) / 8)
    expected = (x[..., :4] + 1j * x[..., 4:8]) * np.exp(1j * positions[..., None] * speeds)[:, :, None]
    actual = rotate(jnp.asarray(x), *angles(rope, 10, jnp.asarray(positions), jnp.float32))
    np.testing.assert_allclose(
        actual, np.concatenate([expected.real, expected.imag, x[..., 8:]], axis=-1), rtol=1e-5, atol=1e-6
    )


def test_llama3_slows_only_slow_rotations():
    plain, _ = frequencies(Rope(500000.0), 128)
    scaled, _ = frequencies(rope_of("Llama 3.1"), 128)
    periods = 2 * np.pi / plain
    np.testing.assert_allclose(scaled[periods < 8192 / 4], plain[periods < 8192 / 4], rtol=1e-6)
    np.testing.assert_allclose(scaled[periods > 8192], plain[periods > 8192] / 8, rtol=1e-6)
    assert (np.diff(scaled) < 0).all()


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_written_as_they_were_read(name):
    _, width, positions = PUBLISHED[name]
    rope = rope_of(name)
    assert read_rope(rope_parameters(rope), values(positions), width) == rope


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"rope_theta": 1e4, "rope_type": "dynamic", "factor": 2.0}, "'dynamic', dynamic NTK, which is not supported"),
        ({"rope_theta": 1e4, "rope_type": "proportional"}, "'proportional', not supported; supported: 'default'"),
        ({"rope_theta": -1.0}, "rope_theta is -1.0; expected positive numbers"),
        ({"rope_theta": 1e4, "rope_type": "linear"}, "the type 'linear' and no factor"),
        ({"rope_theta": 1e4, "rope_type": "llama3", "factor": 8.0}, "no low_freq_factor and high_freq_factor"),
        (
            PUBLISHED["Phi 4 mini"][0] | {"short_factor": [1.0] * 5},
            "short_factor or long_factor has 5 numbers; expected 6",
        ),
        (PUBLISHED["Phi 4 mini"][0] | {"long_factor": 2}, "long_factor is 2; expected positive numbers"),
        ({"rope_theta": 1e4, "partial_rotary_factor": 0.3}, "5 dimensions of a head are rotated; expected an even"),
    ],
)
def test_invalid_parameters_are_refused(raw, message):
    with pytest.raises(CheckpointError, match=f"^a/config.json: .*{message}"):
        read_rope(raw, values(), 18 if "partial" in str(raw) and "longrope" not in str(raw) else 16)


@pytest.mark.interop
@pytest.mark.parametrize("long", (False, True))
@pytest.mark.parametrize("name", PUBLISHED)
def test_frequencies_are_transformers(name, long):
    import dataclasses

    import transformers
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding

    raw, width, positions = PUBLISHED[name]
    config = transformers.LlamaConfig(
        hidden_size=2 * width, num_attention_heads=2, max_position_embeddings=positions, rope_parameters=dict(raw)
    )
    kind = raw.get("rope_type", "default")
    compute = ROPE_INIT_FUNCTIONS.get(kind, Phi3RotaryEmbedding.compute_default_rope_parameters)
    expected, factor = compute(config, None, seq_len=positions if long else 8)
    actual, our_factor = frequencies(dataclasses.replace(rope_of(name), long=long), width)
    np.testing.assert_allclose(actual, expected.numpy(), rtol=2e-6)
    assert our_factor == pytest.approx(factor, rel=1e-7)
