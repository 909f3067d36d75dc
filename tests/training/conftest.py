"""Finished runs that tests compare with."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from prompt_jax.experiment import Experiment


@pytest.fixture(scope="session")
def finish_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Experiment], Experiment]:
    """Return a function that trains and finishes an experiment in another folder, once for equal experiments.

    The run is named `whole`. Tests only read its files.
    """
    from prompt_jax.training.loop import train
    from prompt_jax.training.summary import finish

    done: dict[tuple, Experiment] = {}

    def finished(experiment: Experiment) -> Experiment:
        files = {name: getattr(experiment.data, name) for name in ("train", "validation", "test")}
        contents = tuple(path.read_bytes() for path in files.values())
        data = dataclasses.replace(experiment.data, **dict.fromkeys(files))
        key = (dataclasses.replace(experiment, name="whole", runs=Path(), data=data), contents)
        if key not in done:
            whole = dataclasses.replace(experiment, name="whole", runs=tmp_path_factory.mktemp("runs"))
            finish(whole, *train(whole))
            done[key] = whole
        return done[key]

    return finished


@pytest.fixture
def whole(experiment: Experiment, finish_once: Callable[[Experiment], Experiment]) -> Experiment:
    """Return the finished run of the experiment, never interrupted."""
    return finish_once(experiment)
