"""A whole run from Python. test_trackers.py tests its trackers, and tests/cli the same from the command line."""

import json

import pytest

from experiments import with_options
from prompt_jax import run_experiment
from prompt_jax.errors import ConfigError
from prompt_jax.storage.locks import LockHeld
from prompt_jax.training.run_folder import run_lock


def test_a_run_in_python(experiment):
    """It trains, tests and writes the results. It resumes, and starts anew only if asked to."""
    short = with_options(experiment, "train", steps=2, eval_every=2)
    printed = run_experiment(short)
    assert "best prompt: step" in printed and "rank/accuracy" in printed
    summary = json.loads((short.folder / "summary.json").read_text())
    assert summary["steps"] == 2 and len(summary["tests"]) == 1
    assert run_experiment(short) == printed, "nothing is left to train"
    other = with_options(short, "train", seed=1)
    with pytest.raises(ConfigError, match=r"changed: train.seed"):
        run_experiment(other)
    run_experiment(other, overwrite=True)
    assert json.loads((short.folder / "config.json").read_text())["train"]["seed"] == 1


def test_a_run_in_use(experiment):
    experiment.folder.mkdir(parents=True)
    with run_lock(experiment) as lock:
        lock.acquire()
        with pytest.raises(LockHeld):
            run_experiment(experiment)
