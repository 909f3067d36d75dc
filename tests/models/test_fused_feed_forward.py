"""The fused kernel in Pallas's interpreter, compared with XLA's operations: values, gradients and dropout masks."""

import dataclasses
import functools
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl

from adapters import assert_close, random_text, random_tokens, whole
from prompt_jax.checkpoints.load import load_model
from prompt_jax.models import family, fused_attention, fused_feed_forward
from prompt_jax.models.layers import exact_gelu, feed_forward
from prompt_jax.models.quantized import quantize


@dataclasses.dataclass(frozen=True)
class Config:
    """The fields of a configuration that decide whether the kernel computes a sublayer."""

    fused_attention: bool = True
    remat: str = "full"


@pytest.fixture(autouse=True)
def calls(monkeypatch) -> list[str]:
    """Interpret kernels for small matrices. Return the names of the kernels."""
    names = []

    real = pl.pallas_call

    def interpreted(kernel: Any, **options: Any) -> Any:
        names.append(options["name"])
        return real(kernel, interpret=True, **options)

    monkeypatch.setattr(fused_feed_forward.pl, "pallas_call", interpreted)
    monkeypatch.setattr(fused_feed_forward, "LEAST_TOKENS", 1)
    monkeypatch.setattr(fused_feed_forward, "_LANES", 8)
    return names


def random(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng([seed, *shape]).normal(size=shape), jnp.float32)


def weights(width: int = 16, hidden: int = 40, *, gate: bool = True, bias: bool = False) -> dict[str, jax.Array]:
    made = {"up": random(width, hidden), "down": random(hidden, width)}
    if gate:
        made["gate"] = random(width, hidden, seed=1)
    if bias:
        made |= {f"{name}_bias": random(each.shape[1], seed=2) for name, each in made.items()}
    return made


plain = functools.partial(feed_forward, config=Config(fused_attention=False))
fused = functools.partial(feed_forward, config=Config())


def values_and_gradients(x, own, activate):
    """Return a sum of the outputs and its gradient for the input, of both forms."""
    return [jax.value_and_grad(lambda x, form=form: form(x, own, activate).sum())(x) for form in (fused, plain)]


@pytest.mark.parametrize("gate", (True, False))
@pytest.mark.parametrize("bias", (True, False))
@pytest.mark.parametrize("hidden", (2**19, 8 * 40))
@pytest.mark.parametrize("rate", (0.0, 0.3))
def test_the_kernel_is_the_plain_form(monkeypatch, calls, gate, bias, hidden, rate):
    """For gradients of the input and of the matrices. In small blocks, the last one is incomplete."""
    monkeypatch.setattr(fused_feed_forward, "_HIDDEN", hidden)
    x, own = random(3, 7, 16, seed=3), weights(gate=gate, bias=bias)
    options: Any = {"activate": jax.nn.gelu, "dropout_rate": rate, "key": jax.random.key(0)}
    expected, pull = jax.vjp(functools.partial(plain, **options), x, own)
    assert not calls
    actual, pull_fused = jax.vjp(functools.partial(fused, **options), x, own)
    assert_close(actual, expected)
    gradient = random(*x.shape, seed=4)
    jax.tree.map(assert_close, pull_fused(gradient), pull(gradient))
    assert calls == ["feed_forward", "feed_forward_gradient"]


ACTIVATIONS = {"relu": jax.nn.relu, "silu": jax.nn.silu, "exact gelu": exact_gelu}


@pytest.mark.parametrize("activate", ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_activation_functions(activate):
    jax.tree.map(assert_close, *values_and_gradients(random(2, 8, 16), weights(), activate))


def test_members_and_layers():
    """Under vmap and in a scan with recomputation. Each member has its own dropout."""
    x, stack = random(3, 2, 8, 16), jax.tree.map(lambda leaf: jnp.stack([leaf, leaf[::-1]]), weights())

    def member(x, key, form):
        def layer(x, scanned):
            own, key = scanned
            return x + form(x, own, jax.nn.gelu, dropout_rate=0.2, key=key), None

        checkpointed = jax.checkpoint(layer, prevent_cse=False)
        return jax.lax.scan(checkpointed, x, (stack, jax.random.split(key, 2)))[0].sum()

    keys = jax.random.split(jax.random.key(0), 3)
    found = (jax.vmap(jax.value_and_grad(functools.partial(member, form=form)))(x, keys) for form in (fused, plain))
    jax.tree.map(assert_close, *found)


def test_bfloat16():
    x, own = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), (random(2, 8, 16), weights()))
    actual, expected = jax.tree.map(lambda leaf: leaf.astype(float), values_and_gradients(x, own, jax.nn.gelu))
    jax.tree.map(functools.partial(assert_close, tolerance=0.05), actual, expected)


def test_without_gradients_of_matrices_only_kernels_remain():
    """As for a frozen base: the compiled backward pass has no product with hidden activations."""
    x, own = random(2, 8, 16), weights()
    text = jax.jit(jax.grad(lambda x: fused(x, own, jax.nn.gelu).sum())).lower(x).compile().as_text()
    both = jax.jit(jax.grad(lambda x, own: fused(x, own, jax.nn.gelu).sum(), (0, 1))).lower(x, own).compile().as_text()
    assert text.count(" dot(") < both.count(" dot(")


@pytest.mark.parametrize(
    ("change", "config"),
    [
        ({}, Config(remat="none")),
        ({}, Config(fused_attention=False)),
        ({"up": quantize(np.asarray(weights()["up"]), 1)}, Config()),
        (weights(16, 36), Config()),
    ],
    ids=["kept activations", "plain", "int8", "widths of other lanes"],
)
def test_other_sublayers_are_plain(calls, change, config):
    own, x = weights() | change, random(2, 8, 16)
    assert_close(feed_forward(x, own, jax.nn.gelu, config=config), plain(x, own, jax.nn.gelu))
    assert not calls


def test_large_matrices_and_few_tokens_are_plain(monkeypatch, calls):
    x, own = random(2, 8, 16), weights()
    for name, value in (("_MOST_WEIGHTS", 100), ("LEAST_TOKENS", 17)):
        with monkeypatch.context() as changed:
            changed.setattr(fused_feed_forward, name, value)
            fused(x, own, jax.nn.gelu)
    assert not calls


def prompt_gradient(folder, fused):
    """Return a soft prompt, and the function that returns its gradient in a model with dropout."""
    model = load_model(folder)
    batch = whole(random_text(model, 2, 6)) | {"decoder_inputs": random_text(model, 2, 3, seed=1)}
    config = dataclasses.replace(model.config, fused_attention=fused, remat="full", dropout_rate=0.1)

    def loss(prompt):
        return jnp.tanh(family(config).forward(model.params, config, batch, prompt, key=jax.random.key(0))).sum()

    return random_tokens(model, 3), jax.grad(loss)


@pytest.mark.parametrize("name", ("t5_v10", "t5_v11", "gpt2", "bart", "llama"))
def test_models_use_the_kernel(monkeypatch, calls, fixtures, name):
    monkeypatch.setattr(fused_feed_forward, "_LANES", 1)
    prompt, gradient = prompt_gradient(fixtures / name / "base", fused=True)
    jax.eval_shape(gradient, prompt)
    assert set(calls) == {"feed_forward", "feed_forward_gradient"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ("t5_v11", "gpt2", "bart"))
def test_the_gradients_of_models_are_those_of_the_plain_form(fixtures, name):
    (prompt, fused), (_, plain) = (prompt_gradient(fixtures / name / "base", fused) for fused in (True, False))
    jax.tree.map(functools.partial(assert_close, tolerance=1e-4), jax.jit(fused)(prompt), jax.jit(plain)(prompt))


@pytest.mark.parametrize("activate", (*ACTIVATIONS.values(), jax.nn.gelu), ids=(*ACTIVATIONS, "gelu"))
def test_lowering_for_tpus_has_no_hidden_activations(monkeypatch, activate):
    monkeypatch.undo()
    x, own = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), (random(4, 384, 128), weights(128, 256)))

    def lowered(form):
        gradient = jax.jit(jax.value_and_grad(lambda x: form(x, own, activate).astype(jnp.float32).sum()))
        return gradient.trace(x).lower(lowering_platforms=("tpu",)).as_text()

    text = lowered(fused)
    assert text.count("tpu_custom_call") == 2
    assert "4x384x256x" in lowered(plain)
    assert "4x384x256x" not in text


def test_a_chip_with_little_memory_is_plain(calls):
    with fused_attention.compiling_for(types.SimpleNamespace(platform="tpu", device_kind="TPU v4")):
        fused(random(2, 8, 16), weights(), jax.nn.gelu)
    assert not calls
