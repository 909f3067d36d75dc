"""Fingerprints: equal for the same model, different for another."""

import dataclasses
import shutil

import ml_dtypes
import numpy as np
import pytest

from prompt_jax.checkpoints.fingerprint import SAMPLED, fingerprint, positions, sample
from prompt_jax.checkpoints.load import load_model
from prompt_jax.models.t5 import T5Config


@pytest.fixture
def of(model_folder):
    """Return the fingerprint of a model folder with these tensors and changes to the config."""

    def load(tensors, **changes) -> str:
        folder = model_folder(tensors, **changes)
        actual = load_model(folder).fingerprint
        shutil.rmtree(folder)
        return actual

    return load


def test_fingerprints_are_stable(fixtures):
    """Prompts and checkpoints record the fingerprint. If this fails, existing ones no longer match their base."""
    actual = {name: load_model(fixtures / name / "base").fingerprint for name in ("t5_v10", "t5_v11", "t5_deep")}
    assert actual == {
        "t5_v10": "sha256:bcf23ba2cd859a1e1ec935451a9eae9cb36152b7cb117ae43c3300a0b6a8f8ff",
        "t5_v11": "sha256:1dfd3921b01b4b810ee174e70ddbb88c4b0d6c0ae06e52343f0938a2357f50c7",
        "t5_deep": "sha256:c397028ce7ac59edda208ecb5aac8b31887b2742ee818efcabc54503465c31bd",
    }


def test_every_tensor_counts(of, deep_tensors):
    actual = {of(deep_tensors)}
    for name, tensor in deep_tensors.items():
        actual.add(of(deep_tensors | {name: tensor * np.float32(1.001)}))
    assert len(actual) == 1 + len(deep_tensors)


def test_swapped_layers_count(of, deep_tensors):
    swapped = {
        name: deep_tensors[
            name.replace("decoder.block.1", "decoder.block.x")
            .replace("decoder.block.2", "decoder.block.1")
            .replace("decoder.block.x", "decoder.block.2")
        ]
        for name in deep_tensors
    }
    assert of(swapped) != of(deep_tensors)


@pytest.mark.parametrize(
    "changes",
    [
        {"relative_attention_max_distance": 21},
        {"layer_norm_epsilon": 1e-5},
        {"feed_forward_proj": "gated-relu"},
        {"scale_decoder_outputs": True},
        {"decoder_start_token_id": 1},
        {"num_heads": 4, "d_kv": 9},
    ],
)
def test_the_architecture_counts(of, deep_tensors, changes):
    if "num_heads" in changes:
        bias = "SelfAttention.relative_attention_bias.weight"
        other = {name: np.zeros((16, 4), np.float32) for name in deep_tensors if name.endswith(bias)}
        assert of(deep_tensors | other, **changes) != of(deep_tensors)
    else:
        assert of(deep_tensors, **changes) != of(deep_tensors)


def test_how_it_is_run_does_not_count(of, deep_tensors):
    assert of(deep_tensors, dropout_rate=0.0) == of(deep_tensors)
    config = T5Config(8, 4, 2, 8, 2, 1, 1)
    rerun = dataclasses.replace(config, remat="full", dropout_rate=0.5)
    assert fingerprint(config, {}) == fingerprint(rerun, {}) != fingerprint(dataclasses.replace(config, d_ff=9), {})


def test_the_stored_dtype_is_seen_through_exact_values(of, deep_tensors):
    """Equal values in another dtype are the same model; rounded values are not."""
    half = {name: tensor.astype(ml_dtypes.bfloat16) for name, tensor in deep_tensors.items()}
    widened = {name: tensor.astype(np.float32) for name, tensor in half.items()}
    assert of(half) == of(widened) != of(deep_tensors)


@pytest.mark.parametrize("size", [1, 5, 32, 33, 1000, 32128 * 512, 250112 * 4096])
def test_positions_are_distinct_and_spread(size):
    places = positions(size)
    assert len(places) == min(size, SAMPLED)
    assert len(set(places)) == len(places) or SAMPLED < size < 2 * SAMPLED  # then a few may coincide
    assert 0 <= min(places) <= max(places) < size
    if size > SAMPLED:
        assert np.diff(sorted([*places, size])).max() < 3 * size / SAMPLED


def test_positions_are_in_many_columns():
    """Equal steps through a matrix of 512 x 1024 would sample only one column."""
    assert len({place % 1024 for place in positions(512 * 1024)}) > 28


def test_sample_is_of_the_logical_order():
    array = np.arange(24.0, dtype=np.float32).reshape(4, 6)
    assert sample(np.asfortranarray(array)) == sample(array) != sample(array.T)
    assert sample(array)[0] == (4, 6)
    np.testing.assert_array_equal(np.frombuffer(sample(array)[1], "<f4"), array.ravel()[positions(24)])
