"""Optimizers and schedules from their configuration."""

import optax

from prompt_jax.config import OptimizerConfig


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """The optimizer of the trainable parameters, for a run of `steps` steps.

    With the defaults it is that of Lester et al. 2021: Adafactor with a constant rate of 0.3, decay exponent 0.8,
    no parameter scaling, and a weight decay of 1e-5 a step that is not multiplied by the rate (T5X and optax agree
    on that). Updates are clipped to a root mean square of 1 per tensor, T5X's default.
    """
    rate = make_schedule(config, steps)
    if config.name == "adafactor":
        optimizer = optax.adafactor(
            rate,
            decay_rate=config.decay_rate,
            decay_offset=config.decay_offset,
            multiply_by_parameter_scale=False,
            weight_decay_rate=config.weight_decay or None,
        )
    else:
        optimizer = optax.adamw(rate, b1=config.beta1, b2=config.beta2, weight_decay=config.weight_decay)
    if config.clip_norm is None:
        return optimizer
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate by step: a linear warm-up from zero, then constant or down to zero at the last step."""
    rest = max(steps - config.warmup_steps, 1)
    after = {
        "constant": optax.constant_schedule(config.learning_rate),
        "linear": optax.linear_schedule(config.learning_rate, 0.0, rest),
        "cosine": optax.cosine_decay_schedule(config.learning_rate, rest),
    }[config.schedule]
    if config.warmup_steps == 0:
        return after
    warmup = optax.linear_schedule(0.0, config.learning_rate, config.warmup_steps)
    return optax.join_schedules([warmup, after], [config.warmup_steps])
