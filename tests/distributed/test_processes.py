"""Runs on one device, on several devices, and in several processes; preemption, kills and failed writes."""

import dataclasses
import json
import os
import random
import re
import resource
import signal
import subprocess
import time
from collections import Counter

import numpy as np
import pytest

import jax_processes
from experiments import with_name, with_options
from prompt_jax.config.ensemble import EnsembleConfig
from prompt_jax.config.mesh import MeshConfig
from prompt_jax.distributed.processes import exit_if_process_lost, on_first_process
from prompt_jax.errors import SaveError, UserError
from prompt_jax.experiment import Experiment
from prompt_jax.prompt_files.io import read_prompts
from prompt_jax.report.metrics_log import read_log
from prompt_jax.storage.locks import LockHeld, LockLost
from prompt_jax.training import loop
from prompt_jax.training.metrics import Diverged

# Two in all test runs; PROMPT_JAX_KILLS=20 for a thorough one.
KILLS = int(os.environ.get("PROMPT_JAX_KILLS", "2"))


@pytest.fixture
def experiment(experiment: Experiment) -> Experiment:
    return with_options(experiment, "train", steps=4, eval_every=4)


def on(experiment: Experiment, name: str, ensemble: int = 1, data: int = 1, model: int = 1) -> Experiment:
    return dataclasses.replace(with_name(experiment, name), mesh=MeshConfig(ensemble, data, model))


def losses(experiment: Experiment) -> np.ndarray:
    return np.array([line["train/loss"] for line in read_log(experiment.folder) if "train/loss" in line])


def predictions(experiment: Experiment) -> list[dict]:
    """Return the lines of `predictions.jsonl` without scores, which have rounding errors."""
    lines = map(json.loads, (experiment.folder / "predictions.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name != "label_scores"} for line in lines]


def prompts(experiment: Experiment) -> list[np.ndarray]:
    return [np.asarray(prompt.encoder_tokens.embeddings) for prompt, _ in read_prompts(experiment.folder / "last.npz")]


READS = """
import atexit, json, os, pathlib
from prompt_jax.data.stored_rows import StoredTokens
real, read = StoredTokens.__getitem__, []
def spy(rows, row):
    read.append(int(row))
    return real(rows, row)
StoredTokens.__getitem__ = spy
path = pathlib.Path({folder!r}, "read." + os.environ.get("JAX_PROCESS_ID", "0"))
atexit.register(lambda: path.write_text(json.dumps(read)))
"""


@pytest.mark.slow
def test_the_same_run_on_several_devices_and_processes(experiment):
    """Losses and prompts are equal up to reordering error. A process only reads the rows of its devices."""
    experiment = dataclasses.replace(experiment, ensemble=EnsembleConfig(size=2))
    one = on(experiment, "one")
    jax_processes.run(one)
    setup = loop.prepare(one)
    steps, half = experiment.train.steps + 2, experiment.train.batch_size // 2  # two batches are prefetched
    rows = np.array(
        [[plan.rows for plan in next(setup.batches)[0]._plans] for _ in range(steps)]
    )  # [steps, members, B]
    parts = {
        "two processes": [rows[:, :, :half], rows[:, :, half:]],
        "four processes": [rows[:, :1], rows[:, :1], rows[:, 1:], rows[:, 1:]],
        "eight devices": [rows],
    }
    first = [variables["prompt"]["encoder_tokens"] for variables in setup.trainable(setup.states)]
    places = {
        "two processes": (2, 1, (1, -1, 1)),
        "four processes": (4, 1, (2, 1, -1)),
        "eight devices": (1, 8, (2, 2, 2)),
    }
    for name, (processes, devices, mesh) in places.items():
        other = on(experiment, name, *mesh)
        started = jax_processes.start(other, processes, devices, patch=READS.format(folder=str(experiment.runs)))
        assert jax_processes.finish(other, started) == [0] * processes, jax_processes.output(other).read_text()
        for number, part in enumerate(parts[name]):
            read = json.loads((experiment.runs / f"read.{number}").read_text())  # inputs and targets
            assert 2 * part[:-2].size <= len(read) <= 2 * part.size
            assert not Counter(read) - Counter(np.tile(part.ravel(), 2).tolist()), name
        np.testing.assert_allclose(losses(other), losses(one), rtol=2e-4, err_msg=name)
        for ours, theirs, start in zip(prompts(other), prompts(one), first, strict=True):
            movement = theirs - start
            assert np.abs(movement).max() > 1e-3
            np.testing.assert_allclose(ours - start, movement, atol=3e-3 * np.abs(movement).max(), err_msg=name)
        assert predictions(other) == predictions(one), name


@pytest.mark.slow
@pytest.mark.parametrize("processes", (1, 2))
def test_preemption_and_kills(experiment, processes):
    """After SIGTERM to one process all save and end. After SIGKILL of one, during a save or at random, the others exit.
    Each time the same command resumes, and the result is bit-identical to an uninterrupted run."""
    # Enough steps for some seconds: it takes one until both processes agree on the preemption.
    options = {"steps": 600, "checkpoint_every": 20, "eval_every": 10_000, "log_every": 2}
    experiment = with_options(experiment, "train", **options)
    whole, hurt = (on(experiment, name, data=processes) for name in ("whole", "hurt"))
    jax_processes.run(whole, processes)
    started = jax_processes.start(hurt, processes)
    wait_for_step(hurt, 2)
    started[-1].terminate()
    assert jax_processes.finish(hurt, started, timeout=60) == [75] * processes
    assert "preempted; saved at step" in jax_processes.output(hurt).read_text()

    chance = random.Random(0)
    for number in range(KILLS):
        reached = max(line["step"] for line in read_log(hurt.folder))
        started = jax_processes.start(hurt, processes, 1, "--heartbeat", "10")
        wait_for_step(hurt, min(reached + 2, 600))
        if number % 2 == 0:
            wait_for_save(hurt, started[0])
        else:
            time.sleep(chance.uniform(0, 1))
        victim = chance.randrange(processes)
        started[victim].kill()
        statuses = jax_processes.finish(hurt, started, timeout=60)
        assert statuses.pop(victim) in (-signal.SIGKILL, 0)
        # A lost process was noticed, or JAX's heartbeat ended the process, or it had finished.
        assert set(statuses) <= {76, -signal.SIGABRT, 0}, jax_processes.output(hurt, 1 - victim).read_text()
    assert "resuming at step" in jax_processes.run(hurt, processes)
    np.testing.assert_array_equal(prompts(hurt), prompts(whole))
    np.testing.assert_array_equal(losses(hurt), losses(whole))


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="limits of another process can be set on Linux alone")
def test_a_save_that_fails_in_the_first_of_two_processes(experiment):
    """Both exit soon, and the last complete checkpoint is used."""
    options = {"steps": 3000, "checkpoint_every": 5, "eval_every": 10_000, "log_every": 1000}
    experiment = with_options(with_options(experiment, "train", **options), "prompt", length=100)
    experiment = on(dataclasses.replace(experiment, ensemble=EnsembleConfig(size=16)), "failing", data=2)
    started = jax_processes.start(experiment, 2)
    end = time.monotonic() + 200
    while not (experiment.folder / "checkpoints" / "5").exists():
        assert time.monotonic() < end, jax_processes.output(experiment).read_text()
        time.sleep(0.05)
    resource.prlimit(started[0].pid, resource.RLIMIT_FSIZE, (100_000, 100_000))  # like a full disk
    statuses = jax_processes.finish(experiment, started, timeout=60)
    first, second = (jax_processes.output(experiment, number).read_text() for number in range(2))
    assert re.search("prompt-jax: .*(could not be written|File too large)", first.splitlines()[-1])
    assert "Traceback" not in first + second
    assert statuses[0] == 1 and statuses[1] in (76, -signal.SIGABRT)
    again = with_options(experiment, "train", steps=3001)
    started = jax_processes.start(again, 2)
    while "resuming at step" not in jax_processes.output(again).read_text():
        assert started[0].poll() is None, jax_processes.output(again).read_text()
        time.sleep(0.1)
    for process in started:
        process.kill()
        process.wait()


FAILING = """
import resource, shutil
from prompt_jax.training import loop
real = loop._step
def step(run, *arguments):
    if run.progress.step == 3:
        run.checkpoints.wait()
        {}
    return real(run, *arguments)
loop._step = step
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "cause, told",
    [
        # Threads of orbax would then wait five minutes for each other, and Python for them.
        (
            "shutil.rmtree(run.checkpoints.folder); run.checkpoints.folder.touch()",
            r"a checkpoint could not be written to .*checkpoints \(.*Not a directory",
        ),
        # Like a full disk.
        ("resource.setrlimit(resource.RLIMIT_FSIZE, (2000, -1))", r".*/(best|last)\.npz: File too large"),
    ],
)
def test_a_save_that_fails_in_one_process(experiment, cause, told):
    """The process exits soon. Its last line is the reason, without tracebacks of libraries."""
    experiment = with_options(experiment, "train", steps=5, checkpoint_every=2)
    started = jax_processes.start(experiment, patch=FAILING.format(cause))
    assert jax_processes.finish(experiment, started, timeout=120) == [1]
    said = jax_processes.output(experiment).read_text()
    assert re.fullmatch(f"prompt-jax: {told}.*", said.splitlines()[-1]) and "Traceback" not in said, said


@pytest.mark.slow
def test_a_damaged_checkpoint_is_reported_in_one_line(experiment):
    experiment = with_options(experiment, "train", checkpoint_every=2)
    jax_processes.run(experiment)
    for file in (experiment.folder / "checkpoints" / "4" / "state").rglob("d/*"):
        os.truncate(file, 10)
    said = jax_processes.run(experiment)
    assert "warning: checkpoint 4 is damaged; step 2 is used" in said and "Traceback" not in said, said


def wait_for_save(experiment: Experiment, process: subprocess.Popen, timeout: float = 60) -> None:
    """Wait until a checkpoint is being written, under its temporary name, or until the process has ended."""
    end = time.monotonic() + timeout
    while process.poll() is None and not any((experiment.folder / "checkpoints").glob("*tmp*")):
        assert time.monotonic() < end, jax_processes.output(experiment).read_text()
        time.sleep(0.001)


def wait_for_step(experiment: Experiment, step: int, timeout: float = 200) -> None:
    """Wait until a run has logged a step."""
    end = time.monotonic() + timeout
    while not any(line["step"] >= step for line in read_log(experiment.folder) if "train/loss" in line):
        assert time.monotonic() < end, jax_processes.output(experiment).read_text()
        time.sleep(0.05)


def test_all_processes_raise_an_error_of_the_first(monkeypatch):
    agreed = []
    monkeypatch.setattr("prompt_jax.distributed.processes.all_processes", lambda mine: agreed.append(mine) or False)
    monkeypatch.setattr("prompt_jax.distributed.processes.is_first", lambda: True)
    with pytest.raises(LockHeld, match="in use"):
        on_first_process(lambda: (_ for _ in ()).throw(LockHeld("in use")))
    monkeypatch.setattr("prompt_jax.distributed.processes.is_first", lambda: False)
    with pytest.raises(RuntimeError, match="process 0 could not start; its output says why"):
        on_first_process(lambda: pytest.fail("this is the first's"))
    assert agreed == [False, True]


def test_which_errors_end_one_of_several_processes(monkeypatch, capsys):
    """The process exits at once if another process is lost, or after an error that only this process has. Other errors
    are raised, and the process exits with their status after a while."""
    ended: list[int] = []
    monkeypatch.setattr("jax.process_count", lambda: 2)
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setattr("prompt_jax.distributed.processes._END_SECONDS", 0.01)
    saving, address = SaveError("not written"), UserError("not fetched")
    saving.__cause__, address.__cause__ = RuntimeError("Barrier timed out"), ConnectionError("connection refused")
    for error in (ValueError("Gloo all-reduce failed"), saving):
        with exit_if_process_lost():
            raise error
    assert ended == [76, 76]
    for error in (SaveError("the disk is full"), LockLost("taken over")):
        with exit_if_process_lost():
            raise error
        assert capsys.readouterr().err.endswith(f"prompt-jax: {error}\n")
    assert ended == [76, 76, 1, 1]
    for error in (ValueError("shapes do not fit"), address, Diverged("nan")):
        with pytest.raises(type(error)), exit_if_process_lost():
            raise error
        time.sleep(0.2)
    assert ended == [76, 76, 1, 1, 1, 1, 3]
