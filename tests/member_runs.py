"""Ensembles in tests, and comparisons of a member with the same prompt trained alone."""

import dataclasses
from pathlib import Path

import numpy as np

from prompt_jax.config.ensemble import EnsembleConfig
from prompt_jax.experiment import Experiment
from prompt_jax.prompt_files.io import read_prompts
from prompt_jax.report.metrics_log import read_log
from prompt_jax.training import loop


def ensemble(experiment: Experiment, **values) -> Experiment:
    return dataclasses.replace(experiment, ensemble=EnsembleConfig(**values))


def tokens(experiment: Experiment, file: str = "last.npz") -> list[np.ndarray]:
    return [np.asarray(prompt.encoder_tokens.embeddings) for prompt, _ in read_prompts(experiment.folder / file)]


def losses(experiment: Experiment, member: int = 0) -> list[float]:
    lines = read_log(experiment.folder)
    return [line["train/loss"] for line in lines if line["member"] == member and "train/loss" in line]


def starts(experiment: Experiment, tasks: Path | None = None) -> list[np.ndarray]:
    """Return the initial prompt of each member."""
    setup = loop.prepare(experiment, tasks)
    return [variables["prompt"]["encoder_tokens"] for variables in setup.trainable(setup.states)]


def assert_same_movement(one: np.ndarray, other: np.ndarray, first: np.ndarray) -> None:
    """Compare movements, because the initial values are much larger."""
    movement = other - first
    assert np.abs(movement).max() > 1e-3
    np.testing.assert_allclose(one - first, movement, atol=2e-3 * np.abs(movement).max())


def assert_same_training(alone: Experiment, together: Experiment, member: int, tasks: Path | None = None) -> None:
    """Check that a member trained as it does alone."""
    np.testing.assert_allclose(losses(together, member), losses(alone), rtol=2e-4)
    first = starts(together, tasks)[member]
    np.testing.assert_array_equal(first, starts(alone, tasks)[0])
    assert_same_movement(tokens(together)[member], tokens(alone)[0], first)
