"""The training step: frozen means frozen, and the arithmetic of its loss."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import prompt_jax
from prompt_jax.config.optimizer import OptimizerConfig
from prompt_jax.methods.prefix import PrefixTuning
from prompt_jax.methods.soft_prompt import PromptTuning
from prompt_jax.models import family
from prompt_jax.training import step as steps
from prompt_jax.training.optimizers import make_optimizer

METHOD = PromptTuning()


@pytest.fixture(scope="module")
def setup(tiny):
    """Return state, base parameters, batch and optimizer of a small run."""
    rng = np.random.default_rng(0)
    length = rng.integers(4, 13, 8)
    mask = np.arange(12)[None] < length[:, None]
    target_mask = np.arange(3)[None] < rng.integers(1, 4, 8)[:, None]
    targets = np.where(target_mask, rng.integers(3, 256, (8, 3)), 0).astype(np.int32)
    batch = {
        "inputs": np.where(mask, rng.integers(3, 256, (8, 12)), 0).astype(np.int32),
        "inputs_mask": mask,
        "decoder_inputs": np.concatenate([np.zeros((8, 1), np.int32), targets[:, :-1]], axis=1),
        "targets": targets,
        "target_mask": target_mask,
    }
    trainable = PromptTuning(length=6, init="vocab", init_vocab=200).initialize(jax.random.key(0), tiny)
    optimizer = steps.frozen_base(make_optimizer(OptimizerConfig(), 100))
    state = steps.TrainState.create(trainable, optimizer)
    return state, tiny.params, jax.tree.map(jnp.asarray, batch), optimizer


def make(tiny, optimizer, **options):
    """Return a jitted step. Tests share it if their options are equal."""
    return jitted(tiny.config, optimizer, **options)


@functools.cache
def jitted(config, optimizer, **options):
    return jax.jit(steps.make_train_step(config, METHOD, optimizer, **options))


def test_loss_is_the_mean_over_target_tokens(tiny, setup):
    state, params, batch, optimizer = setup
    _, metrics = make(tiny, optimizer, z_loss=0.01)(state, params, batch, jax.random.key(0))
    prompt = METHOD.apply(state.trainable["prompt"])
    logits = np.asarray(prompt_jax.forward(tiny.params, tiny.config, batch, prompt), np.float64)
    log_normalizer = np.log(np.exp(logits).sum(-1))
    mask, targets = np.asarray(batch["target_mask"]), np.asarray(batch["targets"])
    nll = log_normalizer - np.take_along_axis(logits, targets[..., None], -1)[..., 0]
    assert metrics["loss"] == pytest.approx(nll[mask].mean(), rel=1e-5)
    assert metrics["z_loss"] == pytest.approx(0.01 * (log_normalizer[mask] ** 2).mean(), rel=1e-5)
    assert metrics["accuracy"] == pytest.approx((logits.argmax(-1) == targets)[mask].mean())
    assert metrics["tokens"] == mask.sum() and not metrics["diverged"]


def test_frozen_slots_of_a_prefix_stay(tiny, setup):
    """Not even weight decay changes them, and they have no optimizer state."""
    _, params, batch, _ = setup
    method = PrefixTuning(length=4, frozen_tokens=2, init="text", init_text="a good film, and a bad film")
    trainable = method.initialize(jax.random.key(0), tiny)
    optimizer = steps.frozen_base(make_optimizer(OptimizerConfig(weight_decay=0.1), 100))
    state = steps.TrainState.create(trainable, optimizer)
    step = jax.jit(steps.make_train_step(tiny.config, method, optimizer))
    after, metrics = step(state, params, batch, jax.random.key(0))
    for site, before in trainable.items():
        now = after.trainable["prompt"][site]
        jax.tree.map(np.testing.assert_array_equal, now["frozen"], before["frozen"])
        assert (now["keys"] != before["keys"]).any()
    assert metrics["grad_norm"] > 0
    trained = {leaf.shape for site in trainable.values() for leaf in (site["keys"], site["values"])}
    states = {leaf.shape for leaf in jax.tree.leaves(state.opt_state) if np.ndim(leaf) == 4}
    assert states == trained


def test_the_two_normalizations_of_the_loss(tiny, setup):
    """The gradient of the mean over sentences is that of the mean over tokens, times the tokens per sentence."""
    state, params, batch, optimizer = setup
    batch = batch | {"target_mask": batch["target_mask"].at[7].set(False)}  # a row of padding
    per_token = make(tiny, optimizer, z_loss=0.01)(state, params, batch, jax.random.key(0))[1]
    per_sentence = make(tiny, optimizer, z_loss=0.01, loss="sentence")(state, params, batch, jax.random.key(0))[1]
    ratio = np.asarray(batch["target_mask"]).sum() / 7
    assert per_sentence["grad_norm"] == pytest.approx(ratio * float(per_token["grad_norm"]), rel=1e-4)
    assert per_sentence["loss"] == per_token["loss"]  # both are reported per token


def test_a_prefix_drops_out_without_the_base(tiny, setup):
    """The prefix's dropout has a different key in each step, even if the base has no dropout."""
    _, params, batch, optimizer = setup
    losses = {}
    for rate in (0.0, 0.5):
        config = PrefixTuning(length=6, init="normal", dropout=rate)
        state = steps.TrainState.create(config.initialize(jax.random.key(0), tiny), optimizer)
        step = jax.jit(steps.make_train_step(tiny.config, config, optimizer))
        losses[rate] = [float(step(state, params, batch, jax.random.key(n))[1]["loss"]) for n in range(2)]
    assert losses[0.0][0] == losses[0.0][1] != losses[0.5][0] != losses[0.5][1]


def test_the_base_stays_and_the_prompt_moves(tiny, setup):
    state, params, batch, optimizer = setup
    before = jax.tree.map(np.array, params)
    first, key = np.array(state.trainable["prompt"]["encoder_tokens"]), jax.random.key(0)
    step = make(tiny, optimizer)
    for _ in range(3):
        state, _ = step(state, params, batch, key)
    jax.tree.map(np.testing.assert_array_equal, params, before)
    moved = np.abs(np.asarray(state.trainable["prompt"]["encoder_tokens"]) - first)
    assert moved.max() > 0.1 and int(state.step) == 3


def test_no_gradient_of_the_base_is_computed(tiny, setup):
    """By the compiler's count, the step costs as much as the prompt's gradient, and less than the base's."""
    state, params, batch, optimizer = setup
    step = make(tiny, optimizer).lower(state, params, batch, jax.random.key(0)).compile()

    def loss(prompt_tokens, base):
        prompt = METHOD.apply({"encoder_tokens": prompt_tokens})
        logits = family(tiny.config).forward(base, tiny.config, batch, prompt)
        return steps.token_sums(logits, batch["targets"], batch["target_mask"]).loss

    tokens = state.trainable["prompt"]["encoder_tokens"]
    prompt_alone = jax.jit(jax.grad(loss)).lower(tokens, tiny.params).compile()
    both = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(tokens, tiny.params).compile()

    def flops(compiled):
        return compiled.cost_analysis()["flops"]

    assert flops(step) < 1.02 * flops(prompt_alone)
    assert flops(both) > 1.3 * flops(step)

    # The step's outputs are smaller than the base, and its temporaries contain no gradient of the base.
    base_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(tiny.params))
    memory = step.memory_analysis()
    assert memory.output_size_in_bytes < 0.02 * base_bytes
    assert memory.temp_size_in_bytes < 1.1 * prompt_alone.memory_analysis().temp_size_in_bytes
    assert both.memory_analysis().output_size_in_bytes > base_bytes


def test_the_optimizer_has_no_state_for_the_base(tiny, setup):
    state, _, _, optimizer = setup
    whole = {"base": tiny.params, "prompt": state.trainable["prompt"]}
    with_base, without = optimizer.init(whole), state.opt_state
    assert sum(leaf.size for leaf in jax.tree.leaves(with_base)) == sum(leaf.size for leaf in jax.tree.leaves(without))
    gradients = jax.tree.map(jnp.ones_like, whole)
    updates, _ = optimizer.update(gradients, with_base, whole)
    assert all(not leaf.any() for leaf in jax.tree.leaves(updates["base"]))
    assert all(leaf.all() for leaf in jax.tree.leaves(updates["prompt"]))


@pytest.mark.parametrize("parts", (2, 4))
def test_accumulation_is_the_whole_batch(tiny, setup, parts):
    """Parts may have different numbers of target tokens. The mean is still over all tokens."""
    state, params, batch, _ = setup
    optimizer = steps.frozen_base(optax.sgd(1.0))
    state = steps.TrainState.create(state.trainable["prompt"], optimizer)
    whole, whole_metrics = make(tiny, optimizer, z_loss=0.1)(state, params, batch, jax.random.key(0))
    split, metrics = make(tiny, optimizer, z_loss=0.1, accumulate=parts)(state, params, batch, jax.random.key(0))
    for name in metrics:
        assert float(metrics[name]) == pytest.approx(float(whole_metrics[name]), rel=1e-5), name
    old, new, expected = (s.trainable["prompt"]["encoder_tokens"] for s in (state, split, whole))
    np.testing.assert_allclose(new - old, expected - old, rtol=1e-3, atol=1e-6)


def test_dropout_is_a_function_of_key_and_step(tiny, setup):
    state, params, batch, optimizer = setup
    step = make(tiny, optimizer, dropout=True)
    first, again = (step(state, params, batch, jax.random.key(1))[1]["loss"] for _ in range(2))
    other = step(state, params, batch, jax.random.key(2))[1]["loss"]
    later = step(dataclasses.replace(state, step=state.step + 1), params, batch, jax.random.key(1))[1]["loss"]
    assert first == again and len({float(x) for x in (first, other, later)}) == 3


def test_a_batch_of_padding_is_harmless(tiny, setup):
    state, params, batch, optimizer = setup
    empty = {**batch, "target_mask": jnp.zeros_like(batch["target_mask"])}
    _, metrics = make(tiny, optimizer)(state, params, empty, jax.random.key(0))
    assert metrics["loss"] == 0 and not metrics["diverged"]


@pytest.mark.parametrize(
    "scale, diverged", [(1.0, False), (1400.0, False), (1e6, False), (1e8, True), (1e30, True), (np.inf, True)]
)
def test_divergence_is_of_parameters_that_are_too_large(tiny, setup, scale, diverged):
    """1400 is the largest norm of a row in the prompts that Lester et al. published. At 1e30 the loss is finite."""
    state, params, batch, optimizer = setup
    tokens = state.trainable["prompt"]["encoder_tokens"]
    rows = scale * tokens / jnp.linalg.norm(tokens, axis=-1, keepdims=True)
    large = dataclasses.replace(state, trainable={**state.trainable, "prompt": {"encoder_tokens": rows}})
    after, metrics = make(tiny, optimizer)(large, params, batch, jax.random.key(0))
    assert metrics["diverged"] == diverged and np.isfinite(metrics["loss"]) == np.isfinite(scale)
    assert after.active == (not diverged) and after.step == (0 if diverged else 1)
    if np.isfinite(scale):
        np.testing.assert_allclose(metrics["largest"], jnp.abs(rows).max(), rtol=1e-2, atol=0.31)


def test_the_step_compiles_once_a_shape(tiny, setup):
    state, params, batch, optimizer = setup
    step = jax.jit(steps.make_train_step(tiny.config, METHOD, optimizer))
    for key in (0, 1):
        state, _ = step(state, params, batch, jax.random.key(key))
    assert step._cache_size() == 1


def test_the_methods_placement_reaches_the_model(tiny, setup):
    state, params, batch, optimizer = setup
    losses = set()
    for placement in ("before", "after"):
        method = PromptTuning(placement=placement)
        step = jax.jit(steps.make_train_step(tiny.config, method, optimizer))
        losses.add(float(step(state, params, batch, jax.random.key(0))[1]["loss"]))
    assert len(losses) == 2
