"""Rotary positions and their extensions, by hand. `test_llama.py` compares models with Transformers."""

import dataclasses
import math
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from prompt_jax.errors import CheckpointError
from prompt_jax.models.hugging_face import ConfigValues
from prompt_jax.models.rope import Rope, angles, frequencies, read_rope, rope_parameters, rotary_width, rotate

WIDTH = 8
PLAIN = 100.0 ** -(np.arange(4) / 4)  # with rope_theta 100: 1, 0.316, 0.1, 0.0316


def test_rotation_is_a_product_of_complex_numbers():
    """The first 2 R of a head's dimensions are R complex numbers; the others are unchanged."""
    rope = Rope(100.0, partial_rotary_factor=0.5)
    assert rotary_width(rope, WIDTH) == 4
    x = np.random.default_rng(0).normal(size=(2, 3, 1, WIDTH)).astype(np.float32)
    positions = np.array([[0, 1, 5], [2, 2, 7]])
    turned = np.asarray(rotate(jnp.asarray(x), *angles(rope, WIDTH, jnp.asarray(positions), jnp.dtype("float32"))))
    expected = (x[..., :2] + 1j * x[..., 2:4]) * np.exp(1j * positions[..., None, None] * 100.0 ** -(np.arange(2) / 2))
    np.testing.assert_allclose(turned[..., :2] + 1j * turned[..., 2:4], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(turned[..., 4:], x[..., 4:])


def test_linear_positions_are_closer():
    speeds, factor = frequencies(Rope(100.0, "linear", factor=4.0), WIDTH)
    np.testing.assert_allclose(speeds, PLAIN / 4, rtol=1e-6)
    assert factor == 1


def test_llama3_slows_only_low_frequencies():
    """Dimensions make 10, 3.16, 1 and 0.316 rotations in the pretrained context; from 2 down to 0.5 it interpolates."""
    limits = {"low_freq_factor": 0.5, "high_freq_factor": 2.0}
    original = round(20 * math.pi)
    rope = Rope(100.0, "llama3", factor=8.0, original_max_position_embeddings=original, **limits)
    speeds, _ = frequencies(rope, WIDTH)
    share = (original / (2 * math.pi) * 0.1 - 0.5) / 1.5
    middle = PLAIN[2] * (share + (1 - share) / 8)
    np.testing.assert_allclose(speeds, [PLAIN[0], PLAIN[1], middle, PLAIN[3] / 8], rtol=1e-5)


def test_yarn_interpolates_over_dimensions():
    """Dimensions up to the first that makes fewer than 32 rotations are kept; those below one rotation are slowed."""
    rope = Rope(100.0, "yarn", factor=4.0, original_max_position_embeddings=64, beta_fast=4.0, beta_slow=1.0)
    low, high = (WIDTH * math.log(64 / (count * 2 * math.pi)) / (2 * math.log(100)) for count in (4, 1))
    assert (math.floor(low), math.ceil(high)) == (0, 3)
    speeds, factor = frequencies(rope, WIDTH)
    kept = np.array([1, 2 / 3, 1 / 3, 0])
    np.testing.assert_allclose(speeds, PLAIN * (kept + (1 - kept) / 4), rtol=1e-5)
    assert factor == pytest.approx(0.1 * math.log(4) + 1)


def test_longrope_has_factors_for_short_and_long_texts():
    fields = {"factor": 4.0, "original_max_position_embeddings": 16}
    fields |= {"short_factor": (1.0, 2.0, 3.0, 4.0), "long_factor": (5.0, 6.0, 7.0, 8.0)}
    for long, divisors in ((False, fields["short_factor"]), (True, fields["long_factor"])):
        speeds, factor = frequencies(Rope(100.0, "longrope", long=long, **fields), WIDTH)
        np.testing.assert_allclose(speeds, PLAIN / divisors, rtol=1e-6)
        assert factor == pytest.approx(math.sqrt(1 + 2 / 4))  # log 4 / log 16 is 1 / 2
    assert frequencies(Rope(100.0, "longrope", attention_factor=1.5, **fields), WIDTH)[1] == 1.5


def values(**fields) -> ConfigValues:
    return ConfigValues(
        SimpleNamespace(**{"model_type": "llama", "max_position_embeddings": 64, **fields}), "config.json"
    )


def test_parameters_are_written_as_they_were_read():
    raw = {"rope_theta": 100.0, "rope_type": "longrope", "factor": 2.0, "original_max_position_embeddings": 16}
    raw |= {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    rope = read_rope(raw, values(), WIDTH)
    assert read_rope(rope_parameters(rope), values(), WIDTH) == rope
    del raw["factor"]
    assert read_rope(raw, values(), WIDTH).factor == 4, "64 positions are four times 16"


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"rope_type": "dynamic"}, "rope_type is 'dynamic', dynamic NTK, which is not supported; supported: 'default'"),
        ({"rope_type": "linear"}, "rope_parameters has the type 'linear' and no factor"),
        ({"rope_theta": -1}, "rope_theta is -1; expected positive numbers"),
        ({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 8, "truncate": 1}, "truncate is 1"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5; only phi3 supports it"),
    ],
)
def test_unsupported_parameters_are_refused(raw, message):
    with pytest.raises(CheckpointError, match=message):
        read_rope({"rope_theta": 100.0, **raw}, values(), WIDTH)


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


@pytest.mark.interop
@pytest.mark.parametrize("long", (False, True))
@pytest.mark.parametrize("name", PUBLISHED)
def test_frequencies_are_transformers(name, long):
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
    rope = read_rope(raw, values(max_position_embeddings=positions, model_type="phi3"), width)
    actual, our_factor = frequencies(dataclasses.replace(rope, long=long), width)
    np.testing.assert_allclose(actual, expected.numpy(), rtol=2e-6)
    assert our_factor == pytest.approx(factor, rel=1e-7)
