"""8-bit bases: quantized matrices, their gradients, and that no float copies are kept."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import qwix
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

import prompt_jax
from adapters import assert_close, random_prefix, random_text, random_tokens, whole
from prompt_jax.checkpoints import weights
from prompt_jax.checkpoints.files import TensorInFile
from prompt_jax.inference.decoding import generate_scored
from prompt_jax.models import family
from prompt_jax.models.bart import BartConfig
from prompt_jax.models.gpt2 import GPT2Config
from prompt_jax.models.quantized import Quantized, quantize, weighted_einsum
from prompt_jax.models.t5 import T5Config

BASES = ("t5_v11", "gpt2", pytest.param("bart", marks=pytest.mark.slow))


def is_quantized(leaf: Any) -> bool:
    return isinstance(leaf, Quantized)


def dequantized(params: Any) -> Any:
    """Return the weights as float32 arrays."""
    return jax.tree.map(
        lambda leaf: leaf.values * leaf.scale if is_quantized(leaf) else leaf.astype(jnp.float32),
        params,
        is_leaf=is_quantized,
    )


def in_float32(params: Any) -> Any:
    """Convert all but quantized matrices, and thereby the activations, to float32."""
    return jax.tree.map(
        lambda leaf: leaf if is_quantized(leaf) else leaf.astype(jnp.float32), params, is_leaf=is_quantized
    )


@pytest.fixture(scope="module", params=BASES)
def model(request, fixtures):
    return prompt_jax.load_model(fixtures / request.param / "base", "int8")


# --------------------------------------------------------------------------------------------------------------
# A matrix


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_makes_its_output_so(value):
    """Only this output: its scale is not finite, because int8 values always are."""
    matrix = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    matrix[2, 1] = value
    made = quantize(matrix, 1)
    products = np.asarray(weighted_einsum("i,io->o", jnp.ones(6), made))
    np.testing.assert_array_equal(np.isfinite(products), [True, False, True, True])


@pytest.mark.parametrize(("shape", "inputs"), [((6, 2, 5), 1), ((2, 5, 6), 2), ((7, 9), 1), ((6, 3, 2, 5), 1)])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_values_are_qwixs(shape, inputs, dtype):
    matrix = np.random.default_rng(0).normal(size=shape).astype(dtype)
    actual, outputs = quantize(matrix, inputs), range(inputs, len(shape))
    # Its largest value would be 127.5, clipped to 127.
    method = f"absmax,{127.5 / 127}"
    exact = jnp.asarray(matrix, jnp.float32)
    expected = qwix.quantize(exact, jnp.int8, channelwise_axes=outputs, calibration_method=method)
    assert actual.values.dtype == np.int8 and actual.scale.dtype == np.float32
    np.testing.assert_array_equal(actual.values, expected.qvalue)
    np.testing.assert_allclose(actual.scale, expected.scale, rtol=1e-6)

    x = np.random.default_rng(1).normal(size=(3, *shape[:inputs])).astype(np.float32)
    axes = "abcd"[: len(shape)]
    equation = f"x{axes[:inputs]},{axes}->x{axes[inputs:]}"
    assert_close(weighted_einsum(equation, jnp.asarray(x), actual), qwix.einsum(equation, jnp.asarray(x), expected))


@settings(max_examples=100)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.floats(1e-6, 1e6))
def test_no_error_is_larger_than_half_a_step(seed, rows, size):
    matrix = size * np.random.default_rng(seed).standard_cauchy((rows, 4)).astype(np.float32)
    matrix[:, 0] = 0
    actual = quantize(matrix, 1)
    assert actual.scale.shape == (1, 4) and not actual.values[:, 0].any()
    error = np.abs(actual.values * actual.scale.astype(np.float64) - matrix)
    assert (error <= actual.scale * 0.50001).all()


def test_the_dtype_of_the_result_is_that_of_the_activations():
    matrix = quantize(np.ones((3, 2), np.float32), 1)
    for dtype in (jnp.bfloat16, jnp.float32):
        assert weighted_einsum("td,df->tf", jnp.ones((1, 3), dtype), matrix).dtype == dtype


# --------------------------------------------------------------------------------------------------------------
# A model


def test_quantized_parameters(model):
    """Each layer's matrices are quantized as they would be alone; all else is as with bfloat16."""
    expected = {"self/q", "self/k", "self/v", "self/o", "mlp/up", "mlp/down"}
    if not isinstance(model.config, GPT2Config):
        expected |= {"cross/q", "cross/k", "cross/v", "cross/o"}
    if isinstance(model.config, T5Config):
        expected.add("mlp/gate")
    full, half = (prompt_jax.load_model(model.name, dtype) for dtype in ("float32", "bfloat16"))
    assert model.fingerprint == full.fingerprint
    result = set()
    leaves, tree = jax.tree.flatten_with_path(model.params, is_leaf=is_quantized)
    assert tree == jax.tree.structure(jax.tree.map(lambda leaf: 0, half.params))
    for (path, leaf), exact, rounded in zip(
        leaves, jax.tree.leaves(full.params), jax.tree.leaves(half.params), strict=True
    ):
        if not is_quantized(leaf):
            assert leaf.dtype == jnp.bfloat16
            np.testing.assert_array_equal(leaf, rounded)
            continue
        name = "/".join(str(key.key) for key in path[-2:])
        result.add(name)
        inputs = 2 if name.endswith("/o") else 1
        assert leaf.values.dtype == jnp.int8 and leaf.scale.dtype == jnp.float32 and leaf.shape == exact.shape
        for layer in range(len(exact)):
            one = quantize(np.asarray(exact[layer]), inputs)
            np.testing.assert_array_equal(leaf.values[layer], one.values)
            np.testing.assert_array_equal(leaf.scale[layer], one.scale)
    assert result == expected


def assert_as_with_float_weights(model: Any, length: int) -> None:
    """Logits and a prompt's gradient agree up to float32 rounding."""
    batch = whole(random_text(model, 3, 9)) | {"decoder_inputs": random_text(model, 3, length, seed=1)}
    prompt = random_tokens(model, 4).replace(**random_prefix(model, 2).parts)
    weight = np.random.default_rng(2).normal(size=model.config.vocab_size).astype(np.float32)

    @jax.jit
    def run(params):
        def loss(prompt):
            logits = family(model.config).forward(params, model.config, batch, prompt)
            return (logits * weight[None, None]).mean(), logits

        return jax.grad(loss, has_aux=True)(prompt)

    (gradient, logits), expected = run(in_float32(model.params)), run(dequantized(model.params))
    assert_close(logits, expected[1])
    for ours, theirs in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected[0]), strict=True):
        assert np.abs(theirs).max() > 0
        assert_close(ours, theirs, 1e-4)


def test_outputs_and_gradients_are_those_of_the_float_weights(model):
    assert_as_with_float_weights(model, 4)
    prompt, text = random_prefix(model, 2), whole(random_text(model, 3, 9))
    tokens = [
        prompt_jax.generate(params, model.config, text, prompt, max_new_tokens=4)
        for params in (in_float32(model.params), dequantized(model.params))
    ]
    np.testing.assert_array_equal(*tokens)


def test_targets_longer_than_a_head_is_wide(fixtures):
    """T5's cross-attention takes another path for shorter targets."""
    assert_as_with_float_weights(prompt_jax.load_model(fixtures / "t5_v11" / "base", "int8"), 20)


def test_logits_are_near_those_of_the_base(model):
    """With bfloat16 activations, the error is that of 8 bits, twice that of bfloat16."""
    full = prompt_jax.load_model(model.name)
    batch = whole(random_text(model, 3, 9)) | {"decoder_inputs": random_text(model, 3, 5, seed=1)}
    logits, exact = (prompt_jax.forward(each.params, each.config, batch) for each in (model, full))
    assert logits.dtype == jnp.float32
    assert np.sqrt(np.square(logits - exact).mean() / np.square(exact).mean()) < 0.1


# --------------------------------------------------------------------------------------------------------------
# Memory and placement


LARGE = {  # nearly all weights are in the layers
    "t5": T5Config(40, 128, 32, 512, 4, 6, 6),
    "gpt2": GPT2Config(40, 64, 128, 512, 4, 12),
    "bart": BartConfig(40, 64, 128, 6, 4, 512, 6, 4, 512),
}


@pytest.mark.parametrize("name", LARGE)
def test_no_float_copy_of_the_base(name):
    """A gradient and generation each need less memory than a quarter of the float32 weights."""
    config, table = LARGE[name], family(LARGE[name]).parameters(LARGE[name])
    tensors = {
        stored: TensorInFile(weights.stored_shape(row), lambda row=row: np.ones(weights.stored_shape(row), np.float32))
        for row in table
        for stored in weights._names(row)
    }
    params = in_float32(weights.assemble(table, tensors, "int8")[0])
    matrices = [leaf for leaf in jax.tree.leaves(params, is_leaf=is_quantized) if is_quantized(leaf)]
    values = sum(leaf.values.size for leaf in matrices)
    plain = dequantized(params)
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(plain)) < 4.2 * values
    batch = whole(np.ones((1, 4), np.int32)) | {"decoder_inputs": np.ones((1, 4), np.int32)}
    prompt = prompt_jax.Prompt(prompt_jax.VirtualTokens(jnp.ones((2, config.d_model))))

    @jax.jit
    def gradient(params):
        return jax.grad(lambda prompt: family(config).forward(params, config, batch, prompt).sum())(prompt)

    def temporary(lowered: Any) -> int:
        return lowered.compile().memory_analysis().temp_size_in_bytes

    def generation(params: Any) -> Any:
        run = jax.jit(generate_scored, static_argnames=("config", "max_new_tokens"))
        return run.lower(params, config, batch, prompt, max_new_tokens=3)

    assert temporary(gradient.lower(params)) < values
    assert temporary(gradient.lower(plain)) < values  # nor are the int8 values copied
    if name != "gpt2":  # GPT-2 has no cross-attention
        assert temporary(generation(params)) < values / 2


def test_placement(fixtures):
    """The scale is sharded like the matrix, except for its axes of size 1."""
    mesh = jax.make_mesh((1, 1), ("data", "model"))
    over = {"embed": None, "heads": "model", "kv": None, "mlp": "model", "vocab": "model", "buckets": None}

    def placement(row):
        stacked = [] if row.layers is None else [None]
        return NamedSharding(mesh, PartitionSpec(*stacked, *(over[axis] for axis in row.axes)))

    folder = fixtures / "t5_v11" / "base"
    placed, plain = (prompt_jax.load_model(folder, "int8", sharding=each) for each in (placement, None))
    layer = placed.params["decoder"]["layers"][0]
    for site, name, values, scale in (
        ("cross", "q", (None, None, "model", None), (None, None, "model", None)),
        ("cross", "o", (None, "model", None, None), (None, None, None, None)),
        ("mlp", "up", (None, None, "model"), (None, None, "model")),
        ("mlp", "down", (None, "model", None), (None, None, None)),
    ):
        matrix = layer[site][name]
        assert matrix.values.sharding == NamedSharding(mesh, PartitionSpec(*values))
        assert matrix.scale.sharding == NamedSharding(mesh, PartitionSpec(*scale))
    jax.tree.map(np.testing.assert_array_equal, placed.params, plain.params)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    alone = prompt_jax.load_model(folder, "int8", sharding=device)
    assert {leaf.sharding for leaf in jax.tree.leaves(alone.params)} == {device}
