"""Share compiled training steps between runs. Tracing it takes most of a short run's time."""

import dataclasses
from typing import Any

import pytest

from prompt_jax.training import setup, step

# Options of `train` that the step does not depend on.
_OTHERS = {
    *("steps", "epochs", "seed", "eval_every", "eval_examples", "test_examples", "eval_batch_size", "best_by"),
    *("patience", "checkpoint_every", "keep_checkpoints", "log_every", "trackers"),
}


def share(patch: pytest.MonkeyPatch) -> dict[Any, Any]:
    """Make `setup.train_step` return the same jitted function for experiments with the same step. Return the cache."""
    real, made = setup.train_step, {}

    def train_step(experiment: Any, config: Any, steps: int, mesh: Any) -> Any:
        options = {k: v for k, v in dataclasses.asdict(experiment.train).items() if k not in _OTHERS}
        decay = None if experiment.optimizer.schedule == "constant" else steps
        parts = (experiment.model, experiment.prompt, experiment.optimizer, experiment.ensemble.group, config, mesh)
        key = (*parts, *options.items(), decay, step.LARGEST_PARAMETER)
        if key not in made:
            made[key] = real(experiment, config, steps, mesh)
        return made[key]

    patch.setattr(setup, "train_step", train_step)
    return made
