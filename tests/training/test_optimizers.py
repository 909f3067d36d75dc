"""Optimizers compared with their definitions in NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_jax.config.optimizer import OptimizerConfig
from prompt_jax.methods import (
    AdapterTuning,
    FullTuning,
    LastLayersTuning,
    MultitaskPromptTuning,
    PrefixTuning,
    PromptTuning,
    PTuning,
)
from prompt_jax.training import optimizers
from prompt_jax.training.optimizers import (
    absolute_rate,
    embedding_rms,
    learning_rate,
    make_optimizer,
    make_schedule,
    rate_unit,
)


def run(config: OptimizerConfig, start: np.ndarray, gradients: list[np.ndarray]) -> np.ndarray:
    optimizer = make_optimizer(config, len(gradients))
    params = jnp.asarray(start)
    state = optimizer.init(params)
    for gradient in gradients:
        updates, state = optimizer.update(jnp.asarray(gradient), state, params)
        params = jax.tree.map(jnp.add, params, updates)
    return np.asarray(params)


def adafactor(start, gradients, rate=0.3, decay_rate=0.8, decay=1e-5, offset=0, scaled=False):
    """Adafactor (Shazeer and Stern 2018) as in T5X, for a matrix too small to be factored."""
    params, second = start.astype(np.float64), np.zeros_like(start, np.float64)
    for step, gradient in enumerate(gradients):
        keep = 1.0 - (step - offset + 1.0) ** -decay_rate
        second = keep * second + (1.0 - keep) * (gradient.astype(np.float64) ** 2 + 1e-30)
        update = gradient / np.sqrt(second)
        update /= max(1.0, np.sqrt((update**2).mean()))
        size = max(1e-3, np.sqrt((params**2).mean())) if scaled else 1.0
        params = params - rate * size * update - decay * params  # the decay is not multiplied by the rate
    return params


@pytest.fixture(scope="module")
def gradients():
    return list(np.random.default_rng(0).normal(size=(6, 5, 7)).astype(np.float32))


@pytest.fixture(scope="module")
def start():
    return np.random.default_rng(1).normal(size=(5, 7)).astype(np.float32)


def test_adafactor(start, gradients):
    np.testing.assert_allclose(run(OptimizerConfig(), start, gradients), adafactor(start, gradients), rtol=2e-5)


def test_updates_relative_to_the_parameters(start, gradients):
    """T5's setting. Parameters near zero move by the rate times 1e-3."""
    config = OptimizerConfig(learning_rate=0.01, parameter_scale=True, weight_decay=0.0)
    for scale in (10.0, 1e-6):
        begin = start * np.float32(scale)
        expected = adafactor(begin, gradients, rate=0.01, decay=0.0, scaled=True)
        np.testing.assert_allclose(run(config, begin, gradients), expected, rtol=2e-5, atol=1e-9)


def test_weight_decay_is_not_scaled_by_the_rate(start):
    still = [np.zeros_like(start)] * 3
    config = OptimizerConfig(weight_decay=0.01)
    np.testing.assert_allclose(run(config, start, still), start * 0.99**3, rtol=1e-5)


def test_decay_offset_keeps_updates_clipped(start, gradients):
    """Used to reproduce the paper: the second moment hardly changes, so each update is clipped to 0.3."""
    config = OptimizerConfig(decay_offset=-1_100_000)
    result = run(config, start, gradients)
    np.testing.assert_allclose(result, adafactor(start, gradients, offset=-1_100_000), rtol=2e-4)
    first = run(config, start, gradients[:1]) - start * (1 - 1e-5)
    assert np.sqrt((first**2).mean()) == pytest.approx(0.3, rel=1e-3)


def test_adamw(start, gradients):
    config = OptimizerConfig(name="adamw", learning_rate=0.01, weight_decay=0.1)
    params, m, v = start.astype(np.float64), 0.0, 0.0
    for step, gradient in enumerate(gradients, 1):
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient.astype(np.float64) ** 2
        update = (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
        params = params - 0.01 * (update + 0.1 * params)
    np.testing.assert_allclose(run(config, start, gradients), params, rtol=2e-5)


def test_clipping_is_of_the_global_norm(start, gradients):
    """Adam ignores a gradient's constant scale but not a change of scale."""
    config = OptimizerConfig(name="adamw", learning_rate=0.1, weight_decay=0.0, clip_norm=1.0)
    clipped = [g / max(1.0, np.linalg.norm(g)) for g in gradients]
    unclipped = OptimizerConfig(name="adamw", learning_rate=0.1, weight_decay=0.0)
    np.testing.assert_allclose(run(config, start, gradients), run(unclipped, start, clipped), rtol=1e-4)
    assert np.abs(run(config, start, gradients) - run(unclipped, start, gradients)).max() > 1e-3


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.0, 0.5, 1.0, 1.0, 1.0]),
        ("linear", [0.0, 0.5, 1.0, 0.5, 0.0]),
        ("cosine", [0, 0.5, 1.0, 0.5, 0]),
    ],
)
def test_schedules(schedule, expected):
    rates = make_schedule(OptimizerConfig(learning_rate=0.5, schedule=schedule, warmup_steps=10), 30)
    np.testing.assert_allclose([rates(step) for step in (0, 5, 10, 20, 30)], expected, atol=1e-6)
    assert make_schedule(OptimizerConfig(learning_rate=0.5), 30)(0) == 1.0


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [0, 3, 10])
def test_the_learning_rate_on_the_host(schedule, warmup):
    """It equals the optimizer's schedule, also if the warm-up takes all steps."""
    config = OptimizerConfig(learning_rate=0.5, schedule=schedule, warmup_steps=warmup)
    expected = [0.5 * float(make_schedule(config, 8)(count)) for count in range(8)]
    np.testing.assert_allclose([learning_rate(config, step, 8) for step in range(1, 9)], expected, atol=1e-6)


# --------------------------------------------------------------------------------------------------------------
# Learning rates in units of the embeddings


def test_a_rate_in_units_of_the_embeddings(tiny):
    table = np.asarray(tiny.params["embedding"], np.float64)
    rms = np.sqrt((table**2).sum() / table.size)
    np.testing.assert_allclose(embedding_rms(tiny), rms, rtol=1e-6)
    prompt, rate = PromptTuning(), OptimizerConfig(learning_rate=0.5, rate_unit="embedding_rms")
    absolute = absolute_rate(rate, prompt, embedding_rms(tiny))
    np.testing.assert_allclose(absolute.learning_rate, 0.5 * rms, rtol=1e-6)
    assert absolute.rate_unit == "absolute"
    assert absolute_rate(OptimizerConfig(learning_rate=0.5), prompt, None).learning_rate == 0.5


def test_the_default_rates_are_the_papers_on_t5():
    """Its embeddings have a standard deviation of 13.5."""
    relative, absolute = (absolute_rate(OptimizerConfig(), PromptTuning(), rms) for rms in (13.5, None))
    assert absolute.learning_rate == 0.3
    assert relative.learning_rate == pytest.approx(0.3, rel=0.02)


@pytest.mark.parametrize(
    ("method", "rate"),
    [
        (PromptTuning(), 0.3),
        (PromptTuning(mlp_width=8), 5e-5),
        (MultitaskPromptTuning(), 0.3),
        (PrefixTuning(), 5e-3),
        (PrefixTuning(mlp_width=8), 5e-5),
        (PTuning(), 1e-4),
        (AdapterTuning(), 1e-4),
        (LastLayersTuning(), 5e-5),
        (FullTuning(), 5e-5),
    ],
)
def test_the_default_rate_of_each_method(method, rate):
    assert absolute_rate(OptimizerConfig(), method, None).learning_rate == rate
    assert absolute_rate(OptimizerConfig(learning_rate=0.5), method, None).learning_rate == 0.5


def test_scaled_embeddings(tiny):
    """Virtual tokens of Gemma are in the space of scaled embeddings."""

    class Scaled:
        embedding_scale = 8.0

    scaled = dataclasses.replace(tiny, config=Scaled())
    assert embedding_rms(scaled) == 8 * embedding_rms(tiny)


def test_units_by_method_and_family(tiny, monkeypatch):
    prompt, config = PromptTuning(), OptimizerConfig()
    assert rate_unit(config, prompt, tiny.config) == "absolute"
    assert rate_unit(OptimizerConfig(rate_unit="embedding_rms"), prompt, tiny.config) == "embedding_rms"
    monkeypatch.setattr(optimizers, "is_in_papers", lambda config: False)
    assert rate_unit(config, prompt, tiny.config) == rate_unit(config, MultitaskPromptTuning(), tiny.config)
    assert rate_unit(config, prompt, tiny.config) == "embedding_rms"
    for method in (PrefixTuning(), PromptTuning(mlp_width=8), PTuning(), FullTuning()):
        assert rate_unit(config, method, tiny.config) == "absolute"
    assert rate_unit(OptimizerConfig(rate_unit="absolute"), prompt, tiny.config) == "absolute"
