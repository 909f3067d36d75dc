"""One run on one device, on several devices of one process, and in several processes; and what ends a run."""

import dataclasses
import os
import random
import resource
import signal
import time

import numpy as np
import pytest

import distributed
from experiments import changed, named
from prompt_jax.config import EnsembleConfig, Experiment, MeshConfig
from prompt_jax.prompts.files import read_prompts
from prompt_jax.training import loop
from prompt_jax.training.logs import read_log

# Of each of the tests that kill. A few in all test runs; PROMPT_JAX_KILLS=20 for a thorough one.
KILLS = int(os.environ.get("PROMPT_JAX_KILLS", "2"))


@pytest.fixture
def experiment(experiment: Experiment) -> Experiment:
    return changed(experiment, "train", steps=4, eval_every=4)


def on(experiment: Experiment, name: str, ensemble: int = 1, data: int = 1, model: int = 1) -> Experiment:
    return dataclasses.replace(named(experiment, name), mesh=MeshConfig(ensemble, data, model))


def losses(experiment: Experiment) -> np.ndarray:
    return np.array([line["train/loss"] for line in read_log(experiment.folder) if "train/loss" in line])


def prompts(experiment: Experiment) -> list[np.ndarray]:
    return [np.asarray(prompt.encoder_tokens.embeddings) for prompt, _ in read_prompts(experiment.folder / "last.npz")]


@pytest.mark.slow
def test_the_same_run_on_devices_and_in_processes(experiment):
    """The same losses and prompts to reordering error, from the same batches."""
    experiment = dataclasses.replace(experiment, ensemble=EnsembleConfig(size=2))
    one = on(experiment, "one")
    distributed.run(one)
    setup = loop.prepare(one)
    first = [variables["prompt"]["encoder_tokens"] for variables in setup.trainable(setup.states)]
    places = {
        "two processes": (2, 1, (1, -1, 1)),
        "four processes": (4, 1, (2, 1, -1)),
        "eight devices": (1, 8, (2, 2, 2)),
    }
    for name, (processes, devices, mesh) in places.items():
        other = on(experiment, name, *mesh)
        distributed.run(other, processes, devices)
        np.testing.assert_allclose(losses(other), losses(one), rtol=2e-4, err_msg=name)
        for ours, theirs, start in zip(prompts(other), prompts(one), first, strict=True):
            movement = theirs - start
            assert np.abs(movement).max() > 1e-3
            np.testing.assert_allclose(ours - start, movement, atol=3e-3 * np.abs(movement).max(), err_msg=name)
        assert (other.folder / "predictions.jsonl").read_text() == (one.folder / "predictions.jsonl").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("processes", (1, 2))
def test_asked_to_leave(experiment, processes):
    """SIGTERM to one process: all save and leave with status 75, and the same command goes on, bit by bit."""
    # Some seconds' worth, since it takes one until all processes know that one of them was asked.
    experiment = changed(experiment, "train", steps=1500, checkpoint_every=10_000, eval_every=10_000, log_every=2)
    whole, left = (on(experiment, name, data=processes) for name in ("whole", "left"))
    distributed.run(whole, processes)
    started = distributed.start(left, processes)
    wait_for_step(left, 2)
    started[-1].terminate()
    assert distributed.finish(left, started, timeout=60) == [75] * processes
    assert "asked to leave; saved at step" in distributed.output(left).read_text()
    said = distributed.run(left, processes)
    assert "resuming at step" in said
    np.testing.assert_array_equal(prompts(left), prompts(whole))
    np.testing.assert_array_equal(losses(left), losses(whole))


@pytest.mark.slow
@pytest.mark.parametrize("processes", (1, 2) if KILLS > 2 else (2,))  # test_loop has one of a single process
def test_killed_at_any_moment(experiment, processes):
    """SIGKILL of one process, at random; the others end by themselves; started again, all ends bit by bit the same."""
    experiment = changed(experiment, "train", steps=12, checkpoint_every=1, eval_every=4)
    whole, killed = (on(experiment, name, data=processes) for name in ("whole", "killed"))
    distributed.run(whole, processes)
    chance = random.Random(processes)
    for _ in range(KILLS):
        started = distributed.start(killed, processes, 1, "--heartbeat", "10")
        wait_for_step(killed, 1)
        time.sleep(chance.uniform(0, 2))
        victim = chance.randrange(processes)
        started[victim].kill()
        statuses = distributed.finish(killed, started, timeout=60)
        if set(statuses) == {0}:  # it was faster
            break
        assert statuses[victim] == -signal.SIGKILL
        # Lost another process; or JAX's heartbeat ended it.
        assert {status for n, status in enumerate(statuses) if n != victim} <= {76, -signal.SIGABRT}
    distributed.run(killed, processes)
    np.testing.assert_array_equal(prompts(killed), prompts(whole))
    np.testing.assert_array_equal(losses(killed), losses(whole))


@pytest.mark.parametrize("policy", ("stop", "continue"))
def test_what_cannot_be_written(experiment, monkeypatch, capfd, policy):
    """As on a disk that gets full: from some step on no file may grow beyond 5,000 bytes, which prompts and checkpoints
    do. The last whole checkpoint stays, and training can go on from it."""
    experiment = changed(experiment, "train", steps=6, checkpoint_every=2, save_errors=policy)
    whole = named(experiment, "whole")
    loop.train(whole)
    before, real = resource.getrlimit(resource.RLIMIT_FSIZE), loop._step

    def step(run, *arguments):
        if run.progress.step == 3:
            run.checkpoints.wait()
            resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))
        return real(run, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_step", step)
        try:
            if policy == "stop":
                with pytest.raises((loop.SaveError, OSError), match="could not be written|File too large"):
                    loop.train(experiment)
            else:
                loop.train(experiment)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    steps = {path.name for path in (experiment.folder / "checkpoints").iterdir() if path.name.isdigit()}
    assert steps == {"2"}
    if policy == "continue":
        assert "not saved, and training goes on" in capfd.readouterr().err
    loop.train(experiment)
    np.testing.assert_array_equal(prompts(experiment), prompts(whole))


def wait_for_step(experiment: Experiment, step: int, timeout: float = 200) -> None:
    """Returns when a run has logged a step."""
    end = time.monotonic() + timeout
    while not any(line["step"] >= step for line in read_log(experiment.folder) if "train/loss" in line):
        assert time.monotonic() < end, distributed.output(experiment).read_text()
        time.sleep(0.05)
