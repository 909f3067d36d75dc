"""The fused kernel in Pallas's interpreter, compared with the plain form: values, gradients and dropout masks."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl

from adapters import assert_close
from prompt_jax.models import fused_attention
from prompt_jax.models.attention import KeyValues, attend


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    monkeypatch.setattr(fused_attention.pl, "pallas_call", functools.partial(pl.pallas_call, interpret=True))
    monkeypatch.setattr(fused_attention, "LEAST_QUERIES", 1)


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng([seed, *shape]).normal(size=shape), jnp.float32)


def assert_same(q, key_values, **options):
    """Compare values, and the gradients of queries, keys and values, for queries that see a key."""
    arrays = q, [(each.k, each.v) for each in key_values]

    def mixed(arrays, fused):
        q, pairs = arrays
        blocks = [each._replace(k=k, v=v) for each, (k, v) in zip(key_values, pairs, strict=True)]
        return attend(q, *blocks, fused=fused, **options)

    expected, pull = jax.vjp(functools.partial(mixed, fused=False), arrays)
    actual, pull_fused = jax.vjp(functools.partial(mixed, fused=True), arrays)
    assert_close(actual, expected)
    gradient = random(*expected.shape, seed=1)
    jax.tree.map(assert_close, pull_fused(gradient), pull(gradient))


def padded(rows, length):
    """Return a mask of rows of different lengths."""
    return jnp.arange(length)[None] < jnp.arange(length, length - rows, -1)[:, None]


@pytest.mark.parametrize(
    ("scores", "rate"), [(2**19, 0.3), (16 * 20, 0.0), (16 * 20, 0.3), pytest.param(2**19, 0.0, marks=pytest.mark.slow)]
)
def test_relative_positions_padding_and_a_prefix(monkeypatch, scores, rate):
    """As in T5's encoder. With few scores at a time, the queries take several steps, the last of them incomplete."""
    monkeypatch.setattr(fused_attention, "_SCORES", scores)
    monkeypatch.setattr(fused_attention, "_LANES", 16)
    text = KeyValues(random(3, 20, 4, 8), random(3, 20, 4, 8, seed=2), random(1, 4, 20, 20), padded(3, 20))
    prefix = KeyValues(random(5, 4, 8), random(5, 4, 8, seed=2), random(1, 4, 20, 5))
    options = {"dropout_rate": rate, "key": jax.random.key(0)}
    for blocks in ([text], [text, prefix]):
        assert_same(random(3, 20, 4, 8, seed=3), blocks, **options)


@pytest.mark.parametrize(
    ("heads", "groups", "window"),
    [(6, 3, None), (6, 3, 6), (8, 2, 6), pytest.param(8, 2, None, marks=pytest.mark.slow)],
)
def test_causal_positions_windows_and_grouped_queries(monkeypatch, heads, groups, window):
    """As in Gemma: rows begin at different positions, after a prefix that leaves the window, or stays visible."""
    monkeypatch.setattr(fused_attention, "_SCORES", 2**8)
    monkeypatch.setattr(fused_attention, "_LANES", 16)
    first = jnp.array([[4], [2]])
    positions = first + jnp.arange(19)[None]
    q, text = (
        random(2, 19, heads, 8),
        KeyValues(random(2, 19, groups, 8), random(2, 19, groups, 8), None, None, positions),
    )
    used = jnp.array([[True] * 4, [False, True, True, False]])
    prefix = KeyValues(random(2, 4, groups, 8), random(2, 4, groups, 8), None, used)
    placed = prefix._replace(positions=jnp.maximum(jnp.cumsum(used, axis=1) - 1, 0))
    window = None if window is None else jnp.int32(window)
    for before in (prefix, placed):
        assert_same(q, [text, before], positions=positions, window=window, softcap=3.0)


def test_members_and_layers():
    """Under vmap and in a scan; each member has its own keys and dropout."""
    q, k, v = (random(3, 2, 16, 2, 8, seed=seed) for seed in range(3))

    def member(q, k, v, key, fused):
        def layer(x, key):
            mixed = attend(x, KeyValues(k, v), fused=fused, dropout_rate=0.2, key=key)
            return x + mixed, None

        return jax.lax.scan(jax.checkpoint(layer), q, jax.random.split(key, 2))[0].sum()

    keys = jax.random.split(jax.random.key(0), 3)
    plain, fused = (
        jax.vmap(jax.value_and_grad(functools.partial(member, fused=fused), argnums=(0, 1, 2)))(q, k, v, keys)
        for fused in (False, True)
    )
    jax.tree.map(assert_close, fused, plain)


def test_a_row_without_keys_is_finite():
    nothing = KeyValues(random(1, 4, 2, 8), random(1, 4, 2, 8), None, jnp.zeros((1, 4), bool))
    q = random(1, 4, 2, 8)
    value, gradient = jax.value_and_grad(lambda q: attend(q, nothing, fused=True).sum())(q)
    assert np.isfinite(value) and np.isfinite(gradient).all()


@dataclasses.dataclass(frozen=True)
class Chip:
    """Stands in for a TPU."""

    device_kind: str
    platform: str = "tpu"


@pytest.mark.parametrize(
    ("chip", "width", "groups", "keys"),
    # A key needs 24 bytes for each element of the heads that fill 128 lanes, and 10 x 4 for each of 64 queries.
    [("TPU v4", 64, 8, 2681), ("TPU v4", 128, 8, 2681), ("TPU v5 lite", 64, 8, 10724), ("TPU v5p", 256, 1, 6939)],
)
def test_keys_that_do_not_fit_on_the_chip_are_plain(chip, width, groups, keys):
    def suits(keys):
        q, k = (jax.ShapeDtypeStruct((1, n, groups, width), jnp.bfloat16) for n in (1024, keys))
        return fused_attention.suits(q, [KeyValues(k, k)])

    with fused_attention.compiling_for(Chip(chip)):
        assert suits(keys) and not suits(keys + 1)


def test_blocks_are_smaller_for_a_chip_with_less_memory():
    sizes = []
    for chip in ("TPU v4", "TPU v6 lite"):
        with fused_attention.compiling_for(Chip(chip)):
            sizes.append(fused_attention._queries(2048, 1024))
    assert sizes == [128, 512]
    assert fused_attention.platform() == "cpu"
