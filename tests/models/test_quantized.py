"""Bases of 8 and 4 bits: quantized matrices, their gradients, and that no float copies are kept."""

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
from prompt_jax.models.quantized import Quantized, quantize, quantized_shape, weighted_einsum
from prompt_jax.models.t5 import T5Config

DTYPES = ("int8", "fp8", "int4")
BASES = (
    *(("t5_v11", dtype) for dtype in DTYPES),
    ("gpt2", "int4"),
    *(pytest.param(pair, marks=pytest.mark.slow) for pair in (("gpt2", "int8"), ("bart", "int8"), ("bart", "int4"))),
)


def is_quantized(leaf: Any) -> bool:
    return isinstance(leaf, Quantized)


def floats(matrix: Quantized) -> np.ndarray:
    """Return the weights of a quantized matrix."""
    values, scale = np.asarray(matrix.values), np.asarray(matrix.scale, np.float32)
    values = (values.view(ml_dtypes.float8_e4m3fn) if values.dtype == np.uint8 else values).astype(np.float32)
    for axis, (size, width) in enumerate(zip(scale.shape, values.shape, strict=True)):
        scale = np.repeat(scale, width // size, axis)
    return values * scale


def dequantized(params: Any) -> Any:
    """Return the weights as float32 arrays."""
    return jax.tree.map(
        lambda leaf: jnp.asarray(floats(leaf)) if is_quantized(leaf) else leaf.astype(jnp.float32),
        params,
        is_leaf=is_quantized,
    )


def in_float32(params: Any) -> Any:
    """Convert all but quantized matrices, and thereby the activations, to float32."""
    return jax.tree.map(
        lambda leaf: leaf if is_quantized(leaf) else leaf.astype(jnp.float32), params, is_leaf=is_quantized
    )


@pytest.fixture(scope="module", params=BASES, ids="-".join)
def base(request, fixtures):
    """Return a quantized model and its dtype."""
    name, dtype = request.param
    return prompt_jax.load_model(fixtures / name / "base", dtype), dtype


@pytest.fixture
def model(base):
    return base[0]


# --------------------------------------------------------------------------------------------------------------
# A matrix


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("inputs, dtype", [(6, "int8"), (6, "fp8"), (6, "int4"), (128, "int4")])
def test_a_weight_that_is_not_finite_makes_its_output_so(value, inputs, dtype):
    """Only this output: its scale is not finite, because quantized values always are."""
    matrix = np.random.default_rng(0).normal(size=(inputs, 4)).astype(np.float32)
    matrix[2, 1] = value
    made = quantize(matrix, 1, dtype)
    products = np.asarray(weighted_einsum("i,io->o", jnp.ones(inputs), made))
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


def test_fp8_values_are_qwixs():
    matrix = np.random.default_rng(0).standard_t(3, size=(192, 5)).astype(np.float32)
    expected = qwix.quantize(jnp.asarray(matrix), jnp.float8_e4m3fn, channelwise_axes=(1,))
    actual = quantize(matrix, 1, "fp8")
    np.testing.assert_array_equal(actual.values.view(ml_dtypes.float8_e4m3fn), expected.qvalue)
    np.testing.assert_allclose(actual.scale, expected.scale, rtol=1e-6)


def test_int4_values_are_those_of_gguf():
    """Q4_0 has groups of 32. Its scales are float16, so they are powers of two here."""
    gguf = pytest.importorskip("gguf")
    rng = np.random.default_rng(0)
    matrix = rng.uniform(-7.4, 7.4, size=(32, 50)).astype(np.float32)
    matrix[rng.integers(32, size=50), np.arange(50)] = rng.choice([-8, 8], size=50)
    matrix *= rng.choice([0.25, 1, 2], size=50).astype(np.float32)
    kind = gguf.GGMLQuantizationType.Q4_0
    expected = gguf.dequantize(gguf.quantize(matrix.T.copy(), kind), kind).T
    np.testing.assert_array_equal(floats(quantize(matrix, 1, "int4")), expected)


def test_int4_by_hand():
    """Two heads of width 96 have groups of 48 inputs."""
    matrix = np.random.default_rng(0).standard_t(3, size=(2, 96, 5)).astype(np.float32)
    actual = quantize(matrix, 2, "int4")
    assert actual.values.dtype == ml_dtypes.int4 and actual.scale.dtype == ml_dtypes.bfloat16
    assert actual.scale.shape == (2, 2, 5)
    for head in range(2):
        for group in range(2):
            inputs = slice(48 * group, 48 * group + 48)
            for output in range(5):
                weights = matrix[head, inputs, output]
                largest = max(weights, key=abs)
                other = max(0, *(weight for weight in -np.sign(largest) * weights))
                scale = np.float32(-np.sign(largest) * max(abs(largest) / 8, other / 7.5)).astype(ml_dtypes.bfloat16)
                assert actual.scale[head, group, output] == scale
                expected = np.clip(np.rint(weights / np.float32(scale)), -8, 7)
                np.testing.assert_array_equal(actual.values[head, inputs, output].astype(np.float32), expected)


def test_fp8_values_are_the_nearest():
    """All finite numbers of four exponent bits with bias 7 and three mantissa bits."""
    normal = [2.0 ** (exponent - 7) * (1 + mantissa / 8) for exponent in range(1, 16) for mantissa in range(8)]
    positive = [2.0**-6 * mantissa / 8 for mantissa in range(8)] + normal[:-1]  # the last one is NaN
    numbers = np.array([sign * number for sign in (1, -1) for number in positive])
    matrix = np.random.default_rng(0).standard_t(2, size=(200, 3)).astype(np.float32)
    actual = quantize(matrix, 1, "fp8")
    np.testing.assert_allclose(actual.scale[0], np.abs(matrix).max(axis=0) / 448, rtol=1e-6)
    nearest = numbers[np.abs((matrix / actual.scale)[..., None] - numbers).argmin(axis=-1)]
    np.testing.assert_array_equal(actual.values.view(ml_dtypes.float8_e4m3fn).astype(np.float64), nearest)


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=100)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 5, 80, 128, 134]), st.floats(1e-6, 1e6))
def test_no_error_is_larger_than_half_a_step(dtype, seed, rows, size):
    """A step of fp8 is 1/8 of the next lower power of two, and at least 2^-9."""
    matrix = size * np.random.default_rng(seed).standard_cauchy((rows, 4)).astype(np.float32)
    matrix[:, 0] = 0
    actual = quantize(matrix, 1, dtype)
    groups = 2 if dtype == "int4" and rows in (80, 128) else 1
    assert actual.scale.shape == (groups, 4) and not floats(actual)[:, 0].any()
    scale = np.repeat(np.abs(actual.scale.astype(np.float64)), rows // groups, axis=0)
    step = 1 + 2 * 7.5 * 2**-8 if dtype == "int4" else 1.0  # the error of a bfloat16 scale, times up to 7.5
    if dtype == "fp8":
        step = np.maximum(2.0 ** np.floor(np.log2(np.maximum(np.abs(matrix / scale), 1e-9))) / 8, 2.0**-9)
    assert (np.abs(floats(actual).astype(np.float64) - matrix) <= scale * step * 0.50001).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1e-38, 1e-40, 1e-44])
def test_weights_close_to_zero_stay_so(dtype, size):
    """Their scale may be rounded to zero, or much in relation to the weights."""
    matrix = np.random.default_rng(0).uniform(-size, size, (6, 50)).astype(np.float32)
    made = floats(quantize(matrix, 1, dtype))
    assert (np.abs(made) <= 1.1 * np.abs(matrix).max()).all()


def test_groups_of_int4():
    """Whole axes of up to 64 inputs, and otherwise the largest divisor from 32 to 64; int8 if there is none."""
    for shape, inputs, expected in (
        ((2048, 32, 64), 1, (32, 32, 64)),
        ((32, 64, 2048), 2, (32, 1, 2048)),
        ((4, 80, 7), 2, (4, 2, 7)),
        ((16, 7), 1, (1, 7)),
        ((63, 7), 1, (1, 7)),
        ((96, 7), 1, (2, 7)),
    ):
        made = quantized_shape(shape, inputs, "int4")
        assert made.values.dtype == jnp.int4 and made.scale.shape == expected
    matrix = np.random.default_rng(0).normal(size=(134, 7)).astype(np.float32)
    for ours, theirs in zip(
        jax.tree.leaves(quantize(matrix, 1, "int4")), jax.tree.leaves(quantize(matrix, 1, "int8")), strict=True
    ):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


EQUATIONS = {  # all that models use, with the axes of inputs of the matrix
    "btd,dhk->bthk": 1,
    "bthk,hkd->btd": 2,
    "btd,df->btf": 1,
    "bthk,dhk->bthd": 1,
    "bthd,dhk->bthk": 1,
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("equation", EQUATIONS)
@pytest.mark.parametrize("wide", [False, True])
def test_products_and_gradients_are_those_of_the_weights(equation, dtype, wide):
    """With narrow axes, a single group has all inputs."""
    sizes = {"b": 2, "t": 3, "h": 2, "f": 7} | ({"d": 128, "k": 96} if wide else {"d": 6, "k": 4})
    left, right = equation.split("->")[0].split(",")
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=[sizes[axis] for axis in left]), jnp.float32)
    made = quantize(rng.normal(size=[sizes[axis] for axis in right]), EQUATIONS[equation], dtype)
    weights = floats(made)
    np.testing.assert_allclose(weighted_einsum(equation, x, made), jnp.einsum(equation, x, weights), 1e-4, 1e-4)
    ours = jax.grad(lambda x: jnp.sin(weighted_einsum(equation, x, made)).sum())(x)
    np.testing.assert_allclose(ours, jax.grad(lambda x: jnp.sin(jnp.einsum(equation, x, weights)).sum())(x), 1e-3, 1e-3)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_dtype_of_the_result_is_that_of_the_activations(dtype):
    for inputs in (3, 128):
        matrix = quantize(np.ones((inputs, 2), np.float32), 1, dtype)
        for of_activations in (jnp.bfloat16, jnp.float32):
            product = weighted_einsum("td,df->tf", jnp.ones((1, inputs), of_activations), matrix)
            assert product.dtype == of_activations and np.allclose(product, inputs, 0.02)


# --------------------------------------------------------------------------------------------------------------
# A model


def test_quantized_parameters(base):
    """Each layer's matrices are quantized as they would be alone; all else is as with bfloat16."""
    model, dtype = base
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
        values = {"int8": jnp.int8, "fp8": jnp.uint8, "int4": jnp.int4}[dtype]
        assert leaf.values.dtype == values and leaf.shape == exact.shape
        for layer in range(len(exact)):
            one = quantize(np.asarray(exact[layer]), inputs, dtype)
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


@pytest.mark.parametrize("dtype", [pytest.param("int8", marks=pytest.mark.slow), "int4"])
def test_targets_longer_than_a_head_is_wide(fixtures, dtype):
    """T5's cross-attention takes another path for shorter targets."""
    assert_as_with_float_weights(prompt_jax.load_model(fixtures / "t5_v11" / "base", dtype), 20)


def test_logits_are_near_those_of_the_base(base):
    """With int8, the error is twice that of bfloat16 activations alone."""
    model, dtype = base
    full = prompt_jax.load_model(model.name)
    batch = whole(random_text(model, 3, 9)) | {"decoder_inputs": random_text(model, 3, 5, seed=1)}
    logits, exact = (prompt_jax.forward(each.params, each.config, batch) for each in (model, full))
    assert logits.dtype == jnp.float32
    assert (
        np.sqrt(np.square(logits - exact).mean() / np.square(exact).mean())
        < {"int8": 0.1, "fp8": 0.2, "int4": 0.8}[dtype]
    )


# --------------------------------------------------------------------------------------------------------------
# Memory and placement


LARGE = {  # nearly all weights are in the layers
    "t5": T5Config(40, 128, 32, 512, 4, 6, 6),
    "gpt2": GPT2Config(40, 64, 128, 512, 4, 12),
    "bart": BartConfig(40, 64, 128, 6, 4, 512, 6, 4, 512),
}


QUICK = [("t5", "int4"), ("gpt2", "fp8"), ("bart", "int8")]


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *QUICK,
        *(
            pytest.param(name, dtype, marks=pytest.mark.slow)
            for name in LARGE
            for dtype in DTYPES
            if (name, dtype) not in QUICK
        ),
    ],
)
def test_no_float_copy_of_the_base(name, dtype):
    """A gradient and generation each need less memory than a quarter of the float32 weights."""
    config, table = LARGE[name], family(LARGE[name]).parameters(LARGE[name])
    tensors = {
        stored: TensorInFile(weights.stored_shape(row), lambda row=row: np.ones(weights.stored_shape(row), np.float32))
        for row in table
        for stored in weights._names(row)
    }
    params = in_float32(weights.assemble(table, tensors, dtype)[0])
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

    # XLA's CPU compiler converts whole stacks of int4 to int8, other compilers do not.
    integers = values if dtype == "int4" else 0
    assert temporary(gradient.lower(params)) - integers < values
    assert temporary(gradient.lower(plain)) < values  # nor are the quantized values copied
    if name != "gpt2":  # GPT-2 has no cross-attention
        assert temporary(generation(params)) - integers < values / 2


@pytest.mark.parametrize("dtype", DTYPES)
def test_placement(fixtures, dtype):
    """The scale is sharded like the matrix, except for its axes of size 1."""
    mesh = jax.make_mesh((1, 1), ("data", "model"))
    over = {"embed": None, "heads": "model", "kv": None, "mlp": "model", "vocab": "model", "buckets": None}

    def placement(row):
        stacked = [] if row.layers is None else [None]
        return NamedSharding(mesh, PartitionSpec(*stacked, *(over[axis] for axis in row.axes)))

    folder = fixtures / "t5_v11" / "base"
    placed, plain = (prompt_jax.load_model(folder, dtype, sharding=each) for each in (placement, None))
    layer = placed.params["decoder"]["layers"][0]
    grouped = "model" if dtype == "int4" else None  # inputs that have a scale for each group
    for site, name, values, scale in (
        ("cross", "q", (None, None, "model", None), (None, None, "model", None)),
        ("cross", "o", (None, "model", None, None), (None, grouped, None, None)),
        ("mlp", "up", (None, None, "model"), (None, None, "model")),
        ("mlp", "down", (None, "model", None), (None, grouped, None)),
    ):
        matrix = layer[site][name]
        assert matrix.values.sharding == NamedSharding(mesh, PartitionSpec(*values))
        assert matrix.scale.sharding == NamedSharding(mesh, PartitionSpec(*scale))
    jax.tree.map(np.testing.assert_array_equal, placed.params, plain.params)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    alone = prompt_jax.load_model(folder, dtype, sharding=device)
    assert {leaf.sharding for leaf in jax.tree.leaves(alone.params)} == {device}
