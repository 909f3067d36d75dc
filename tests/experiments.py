"""Helpers that derive one experiment from another."""

import dataclasses

from prompt_jax.experiment import Experiment


def with_options(experiment: Experiment, section: str, **values) -> Experiment:
    """Return the experiment with other values in a section, such as `train`."""
    return dataclasses.replace(experiment, **{section: dataclasses.replace(getattr(experiment, section), **values)})


def with_name(experiment: Experiment, name: str) -> Experiment:
    return dataclasses.replace(experiment, name=name)
