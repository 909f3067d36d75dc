"""Attention on GPUs: values and gradients with XLA's operations in place of cuDNN's kernel, and lowering for CUDA."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as cudnn

import xla_attention
from adapters import assert_close
from prompt_jax.distributed.costs import takes_kernel
from prompt_jax.models import fused_attention
from prompt_jax.models.attention import KeyValues, attend
from tools.planner.programs import base_config


@pytest.fixture
def calls(monkeypatch):
    """Return the shapes of all calls of the kernel."""
    return xla_attention.use(monkeypatch)


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng([seed, *shape]).normal(size=shape), jnp.bfloat16)


def padded(rows, length):
    """Return a mask of rows of different lengths."""
    return jnp.arange(length)[None] < jnp.arange(length, length - rows, -1)[:, None]


def single(x):
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32) if leaf.dtype == jnp.bfloat16 else leaf, x)


def assert_same(q, key_values, **options):
    """Compare with the plain form in float32: values, and the gradients of queries, keys and values."""

    def mixed(arrays, fused):
        q, pairs = arrays
        blocks = [each._replace(k=k, v=v) for each, (k, v) in zip(key_values, pairs, strict=True)]
        return attend(q, *blocks, fused=fused, **options)

    arrays = q, [(each.k, each.v) for each in key_values]
    expected, pull = jax.vjp(functools.partial(mixed, fused=False), single(arrays))
    actual, pull_fused = jax.vjp(functools.partial(mixed, fused=True), arrays)
    gradient = random(*expected.shape, seed=1)
    same = functools.partial(np.testing.assert_allclose, rtol=0.05, atol=0.05)
    same(single(actual), expected)
    jax.tree.map(same, single(pull_fused(gradient)), pull(single(gradient)))


def test_relative_positions_padding_and_a_prefix(calls):
    """As in T5's encoder. Rows have equal biases; their masks are a channel of the keys."""
    text = KeyValues(random(3, 20, 4, 8), random(3, 20, 4, 8, seed=2), single(random(1, 4, 20, 20)), padded(3, 20))
    prefix = KeyValues(random(5, 4, 8), random(5, 4, 8, seed=2), single(random(1, 4, 20, 5)))
    assert_same(random(3, 20, 4, 8, seed=3), [text])
    assert_same(random(3, 20, 4, 8, seed=3), [text, prefix])
    assert calls[0] == ((3, 20, 4, 16), (3, 20, 4, 16), (4, 20, 20), False)
    assert calls[-1] == ((3, 20, 4, 16), (3, 26, 4, 16), (4, 20, 26), False)


def test_relative_positions_of_a_decoder(calls):
    """An odd number of queries, which see earlier keys."""
    positions = jnp.arange(19)[None]
    text = KeyValues(random(2, 19, 4, 8), random(2, 19, 4, 8, seed=2), single(random(1, 4, 19, 19)), None, positions)
    assert_same(random(2, 19, 4, 8, seed=3), [text], positions=positions)
    assert calls[-1] == ((2, 20, 4, 8), (2, 20, 4, 8), (4, 20, 20), False)


@pytest.mark.slow
@pytest.mark.parametrize(("heads", "groups"), ((6, 3), (8, 2), (4, 4)))
def test_causal_rows_after_a_prefix(calls, heads, groups):
    """As in Llama: without a bias, causality is the kernel's. Rows begin at different positions."""
    positions = jnp.array([[4], [2]]) + jnp.arange(19)[None]
    text = KeyValues(random(2, 19, groups, 8), random(2, 19, groups, 8, seed=2), None, None, positions)
    prefix = KeyValues(random(5, groups, 8), random(5, groups, 8, seed=2))
    q = random(2, 19, heads, 8, seed=3)
    assert_same(q, [text], positions=positions)
    assert_same(q, [text, prefix], positions=positions)
    assert calls[-1] == ((2, 24, heads, 8), (2, 24, groups, 8), None, True)
    used = jnp.array([[True] * 5, [False, True, True, False, True]])
    assert_same(q, [text, prefix._replace(mask=used)], positions=positions)
    assert calls[-1] == ((2, 24, heads, 16), (2, 24, groups, 16), None, True)


def test_windows(calls):
    """As in Gemma 3, where the window of a layer is an array. The bias has one head."""
    positions = 4 + jnp.arange(19)[None]
    text = KeyValues(random(2, 19, 2, 8), random(2, 19, 2, 8, seed=2), None, None, positions)
    prefix = KeyValues(random(4, 2, 8), random(4, 2, 8, seed=2))
    placed = prefix._replace(positions=jnp.arange(4)[None])
    for before in (prefix, placed):
        assert_same(random(2, 19, 4, 8, seed=3), [text, before], positions=positions, window=jnp.int32(6))
        assert calls[-1] == ((2, 20, 4, 8), (2, 24, 2, 8), (1, 20, 24), False)


@pytest.mark.parametrize("biased", (False, True))
def test_members_and_layers(calls, biased):
    """Under vmap the kernel runs once for the rows of all members, also with one row per member and in a scan."""
    q, k, v = (random(3, 1, 16, 2, 8, seed=seed) for seed in range(3))
    bias = single(random(1, 2, 16, 16)) if biased else None

    def member(q, k, v, mask, fused):
        def layer(x, _):
            mixed = attend(x, KeyValues(k, v, bias, mask), fused=fused)
            return x + mixed.astype(x.dtype), None

        return jax.lax.scan(jax.checkpoint(layer), q, None, length=2)[0].astype(jnp.float32).sum()

    def members(*arrays, fused):
        gradients = jax.value_and_grad(functools.partial(member, fused=fused), argnums=(0, 1, 2))
        return jax.vmap(gradients)(*arrays, padded(3, 16)[:, None])

    actual, expected = members(q, k, v, fused=True), members(*single((q, k, v)), fused=False)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=0.05, atol=0.1), single(actual), expected)
    assert {rows for (rows, *_), *_ in calls if rows != 1} == {3}


def test_members_with_their_own_biases(calls):
    q, k, v = (random(3, 2, 16, 2, 8, seed=seed) for seed in range(3))
    bias = single(random(3, 1, 2, 16, 16))
    actual, expected = (
        jax.vmap(lambda q, k, v, bias, fused=fused: attend(q, KeyValues(k, v, bias), fused=fused))(q, k, v, bias)
        for fused in (True, False)
    )
    np.testing.assert_allclose(single(actual), single(expected), rtol=0.05, atol=0.05)


def test_a_row_without_keys_is_finite(calls):
    nothing = KeyValues(random(1, 4, 2, 8), random(1, 4, 2, 8), None, jnp.zeros((1, 4), bool))
    value, gradient = jax.value_and_grad(lambda q: attend(q, nothing, fused=True).sum())(random(1, 4, 2, 8))
    assert np.isfinite(value) and np.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("changes", "options"),
    (
        ({"dtype": jnp.float32}, {}),
        ({"width": 12}, {}),
        ({"width": 136}, {}),
        ({}, {"softcap": 3.0}),
        ({}, {"dropout_rate": 0.5, "key": jax.random.key(0)}),
    ),
)
def test_what_cudnn_does_not_take_is_computed_by_xla(calls, changes, options):
    shape = 2, 16, 2, changes.get("width", 8)
    q, k, v = (random(*shape, seed=seed).astype(changes.get("dtype", jnp.bfloat16)) for seed in range(3))
    assert_close(attend(q, KeyValues(k, v), fused=True, **options), attend(q, KeyValues(k, v), **options))
    assert not calls


def test_estimates_count_scores_where_the_kernel_does_not_apply(calls, monkeypatch):
    config = base_config("meta-llama/Llama-3.2-1B")  # heads of 64
    takes = functools.partial(takes_kernel, config)
    assert takes("bfloat16") and takes("int8") and not takes("float32") and not takes("bfloat16", dropout_rate=0.1)
    assert not takes_kernel(dataclasses.replace(config, attention_softcap=50.0), "bfloat16")
    assert not takes_kernel(dataclasses.replace(config, d_kv=256), "bfloat16")
    monkeypatch.setattr(fused_attention, "platform", lambda: "tpu")
    assert takes("float32", dropout_rate=0.1)


def test_positions_that_differ_between_rows_are_compared_by_xla(calls):
    positions, keys = (jnp.array([[4], [2]]) + jnp.arange(length)[None] for length in (16, 9))
    block = KeyValues(random(2, 9, 2, 8), random(2, 9, 2, 8, seed=2), None, None, keys)
    assert_same(random(2, 16, 2, 8, seed=3), [block], positions=positions)
    assert not calls


def member_on_devices(mesh, mixed):
    """Return a function as in training on several devices, where `mesh.ensemble` is sharded by hand."""
    specs = jax.sharding.PartitionSpec("ensemble")
    names: dict = {"axis_names": {"ensemble"}, "check_vma": False}
    return jax.shard_map(jax.vmap(mixed), mesh=mesh, in_specs=specs, out_specs=specs, **names)


def test_devices(calls):
    mesh = jax.make_mesh((1, 1, 1), ("ensemble", "data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 3)
    q, k, v = (random(2, 3, 16, 2, 8, seed=seed) for seed in range(3))
    bias, mask = single(random(1, 2, 16, 16)), padded(3, 16)

    def mixed(q, k, v, fused=True):
        return attend(q, KeyValues(k, v, bias, mask), fused=fused)

    expected = jax.vmap(functools.partial(mixed, fused=False))(*single((q, k, v)))
    actual = jax.jit(member_on_devices(mesh, mixed))(q, k, v)
    np.testing.assert_allclose(single(actual), expected, rtol=0.05, atol=0.05)
    assert calls[-1] == ((6, 16, 2, 16), (6, 16, 2, 16), (2, 16, 16), False)


def test_each_device_computes_its_rows_and_heads(monkeypatch):
    monkeypatch.setattr(fused_attention, "platform", lambda: "gpu")
    mesh = jax.sharding.AbstractMesh((2, 2, 2), ("ensemble", "data", "model"))
    q, bias = random(2, 4, 256, 8, 64), single(random(1, 8, 256, 256))
    mixed = member_on_devices(mesh, lambda q, k, v: attend(q, KeyValues(k, v, bias), fused=True))
    arrays = ", ".join(["tensor<2x256x4x64xbf16>"] * 3)
    assert f"({arrays}, tensor<1x4x256x256xbf16>)" in lowered("cuda", mixed, q, q, q)


def lowered(platform, function, *arrays):
    """Return the StableHLO of a function's value and gradient for a platform that this machine need not have."""
    gradient = jax.jit(jax.value_and_grad(lambda *arrays: function(*arrays).astype(jnp.float32).sum(), (0, 1, 2)))
    return gradient.trace(*arrays).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize(("platform", "call"), (("cuda", "__cudnn$fmha"), ("tpu", "tpu_custom_call")))
@pytest.mark.parametrize("family", ("t5", "llama"))
def test_lowering_calls_the_kernel_and_has_no_array_of_scores(monkeypatch, platform, call, family):
    monkeypatch.setattr(fused_attention, "platform", lambda: "gpu" if platform == "cuda" else "tpu")
    rows, heads, groups, length, width = 3, 8, 8 if family == "t5" else 2, 256, 64
    q, k, v = random(rows, length, heads, width), *[random(rows, length, groups, width)] * 2
    prefix = random(100, groups, width)
    positions = None if family == "t5" else jnp.arange(length)[None]

    def mixed(q, k, v, fused=True):
        biases = [single(random(1, heads, length, keys)) for keys in (length, 100)] if family == "t5" else [None] * 2
        text = KeyValues(k, v, biases[0], padded(rows, length) if family == "t5" else None, positions)
        return attend(q, text, KeyValues(prefix, prefix, biases[1]), positions=positions, fused=fused)

    def scores(text):
        shapes = re.findall(r"tensor<([\dx]+)x(?:f32|bf16)>", text)
        return [shape for shape in shapes if np.prod([int(n) for n in shape.split("x")]) >= rows * heads * length**2]

    text = lowered(platform, mixed, q, k, v)
    assert text.count(call) >= 2
    assert not scores(text)
    assert scores(lowered(platform, functools.partial(mixed, fused=False), q, k, v))
    if platform == "cuda":
        name = "ScaleBiasSoftmax" if family == "t5" else "Softmax"
        assert f"__cudnn$fmha{name}(" in text and f"__cudnn$fmha{name}Backward(" in text
        assert ("CAUSAL" in text) == (family == "llama")


def test_jax_calls_the_kernel_with_the_same_arguments(monkeypatch):
    """Our call uses JAX's primitives without its public function, which always computes the bias's gradient."""
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)
    q, bias = random(2, 256, 8, 64), single(random(1, 8, 256, 256))
    bias = bias.astype(q.dtype)

    def public(q, k, v):
        return jax.nn.dot_product_attention(q, k, v, bias, scale=1.0, implementation="cudnn")

    monkeypatch.setattr(fused_attention, "platform", lambda: "gpu")
    ours, theirs = (
        {(name, config) for name, config in re.findall(r"@(__cudnn\S+?)\(.*backend_config = \"(.*?)\", ", text)}
        for text in (
            lowered("cuda", lambda q, k, v: attend(q, KeyValues(k, v, bias), fused=True), q, q, q),
            lowered("cuda", public, q, q, q),
        )
    )
    assert len(ours) == 2
    assert ours == theirs
