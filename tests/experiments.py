"""Experiments, and others made of them."""

import dataclasses

from prompt_jax.experiment import Experiment


def changed(experiment: Experiment, part: str, **values) -> Experiment:
    """With other values in one of its parts, such as `train`."""
    return dataclasses.replace(experiment, **{part: dataclasses.replace(getattr(experiment, part), **values)})


def named(experiment: Experiment, name: str) -> Experiment:
    return dataclasses.replace(experiment, name=name)
