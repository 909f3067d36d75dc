"""Optimizers and learning rate schedules."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from prompt_jax.checkpoints.load import Model
from prompt_jax.config.optimizer import PAPER_RATE, PAPER_RATE_IN_RMS, OptimizerConfig, RateUnit
from prompt_jax.distributed.sharding import to_host
from prompt_jax.methods import Method
from prompt_jax.models import Config, is_in_papers


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Return the optimizer of the trainable parameters, for a run of `steps` steps.

    The defaults are those of Lester et al. 2021: Adafactor with a constant learning rate of 0.3, decay exponent 0.8, no
    parameter scaling (T5's fine-tuning uses it), and a weight decay of 1e-5 per step that is not multiplied by
    the learning rate, as in T5X. Updates are clipped to a root mean square of 1 per tensor, T5X's default.

    The optimizer's state holds the learning rate and the weight decay. So members of an ensemble can differ in them and
    share one compiled step.
    """
    schedule = make_schedule(config, steps)

    def build(learning_rate: Any, weight_decay: Any) -> optax.GradientTransformation:
        def rate(count: Any) -> Any:
            return learning_rate * schedule(count)

        if config.name == "adafactor":
            optimizer = optax.adafactor(
                rate,
                decay_rate=config.decay_rate,
                decay_offset=config.decay_offset,
                multiply_by_parameter_scale=config.parameter_scale,
                weight_decay_rate=weight_decay,
            )
        else:
            optimizer = optax.adamw(rate, b1=config.beta1, b2=config.beta2, weight_decay=weight_decay)
        if config.clip_norm is None:
            return optimizer
        return optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)

    rate = PAPER_RATE if config.learning_rate is None else config.learning_rate
    return optax.inject_hyperparams(build)(rate, config.weight_decay)


def rate_unit(config: OptimizerConfig, method: Method, base: Config) -> RateUnit:
    """Return the unit of the learning rate. The default is embedding_rms for soft prompts of newer families."""
    if config.rate_unit is not None:
        return config.rate_unit
    return "embedding_rms" if method.trains_virtual_tokens and not is_in_papers(base) else "absolute"


def absolute_rate(config: OptimizerConfig, method: Method, rms: float | None) -> OptimizerConfig:
    """Return the options with an absolute learning rate.

    Args:
      config: the options.
      method: what is trained, which has a default rate.
      rms: the root mean square of the base's embeddings, if it is the rate's unit; None for an absolute rate.
    """
    default = method.default_rate if rms is None else PAPER_RATE_IN_RMS
    rate = default if config.learning_rate is None else config.learning_rate
    return dataclasses.replace(config, learning_rate=rate if rms is None else rate * rms, rate_unit="absolute")


def embedding_rms(model: Model) -> float:
    """Return the root mean square of a base's embeddings, scaled as its layers and virtual tokens are."""
    mean = jax.jit(lambda table: jnp.square(table.astype(jnp.float32)).mean())(model.params["embedding"])
    return float(to_host(mean)) ** 0.5 * getattr(model.config, "embedding_scale", 1.0)


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Return the factor of the learning rate by step: a linear warm-up to 1, then constant or decaying to 0."""
    rest = max(steps - config.warmup_steps, 1)
    after = {
        "constant": optax.constant_schedule(1.0),
        "linear": optax.linear_schedule(1.0, 0.0, rest),
        "cosine": optax.cosine_decay_schedule(1.0, rest),
    }[config.schedule]
    if config.warmup_steps == 0:
        return after
    warmup = optax.linear_schedule(0.0, 1.0, config.warmup_steps)
    return optax.join_schedules([warmup, after], [config.warmup_steps])


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """Return the learning rate of a step, numbered from 1: `make_schedule` on the host, without a device.

    `config` is a result of `absolute_rate`.
    """
    assert config.learning_rate is not None
    count = step - 1
    if count < config.warmup_steps:
        return config.learning_rate * count / config.warmup_steps
    share = min((count - config.warmup_steps) / max(steps - config.warmup_steps, 1), 1.0)
    factor = {"constant": 1.0, "linear": 1 - share, "cosine": (1 + math.cos(math.pi * share)) / 2}[config.schedule]
    return config.learning_rate * factor
