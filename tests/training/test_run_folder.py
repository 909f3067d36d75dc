"""A run's folder: its lock, its configuration, killed processes and deleted files."""

import contextlib
import dataclasses
import json
import os
import re
import shutil
import signal
import socket
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import jax_processes
from experiments import with_name, with_options
from interruptions import Interrupted, before_step
from launching import wait_for
from prompt_jax import experiment as experiments
from prompt_jax.config.optimizer import OptimizerConfig
from prompt_jax.errors import ConfigError
from prompt_jax.experiment import Experiment
from prompt_jax.methods.prefix import PrefixTuning
from prompt_jax.prompt_files.io import read_prompt
from prompt_jax.report.metrics_log import read_log
from prompt_jax.storage.locks import LockHeld, LockLost
from prompt_jax.training.checkpoints import Checkpoints
from prompt_jax.training.loop import train
from prompt_jax.training.run_folder import check_folder, run_lock
from prompt_jax.training.summary import finish

TRACEBACK = "Traceback (most recent call last)"


def tokens(experiment: Experiment, file: str) -> np.ndarray:
    return np.load(experiment.folder / file)["encoder_tokens"]


def log(experiment: Experiment) -> list[dict[str, float]]:
    return [{name: value for name, value in line.items() if name != "seconds"} for line in read_log(experiment.folder)]


def events(experiment: Experiment) -> list[tuple[int, str, float]]:
    """Return what TensorBoard shows, without times."""
    reader = EventAccumulator(str(experiment.folder / "tensorboard" / "member_0"))
    reader.Reload()
    names = [name for name in reader.Tags()["scalars"] if name != "seconds"]
    return sorted((each.step, name, each.value) for name in names for each in reader.Scalars(name))


def assert_same_files(run: Experiment, whole: Experiment) -> None:
    """Check that two runs have the same files with the same contents."""
    assert names(run.folder) == names(whole.folder)
    assert names(run.folder / "checkpoints") == names(whole.folder / "checkpoints")
    for file in ("best.npz", "last.npz"):
        np.testing.assert_array_equal(tokens(run, file), tokens(whole, file))
        assert read_prompt(run.folder / file)[1] == read_prompt(whole.folder / file)[1]
    assert log(run) == log(whole) and events(run) == events(whole)
    logged = [(each["step"], name, each[name]) for each in log(run) for name in each if name not in ("step", "member")]
    np.testing.assert_allclose([value for *_, value in events(run)], [value for *_, value in sorted(logged)], rtol=1e-6)
    predictions = [(each.folder / "predictions.jsonl").read_text() for each in (run, whole)]
    members = [json.loads((each.folder / "summary.json").read_text())["members"] for each in (run, whole)]
    assert predictions[0] == predictions[1] and members[0] == members[1]
    assert experiments.load_experiment(run.folder / "config.json") == run


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --------------------------------------------------------------------------------------------------------------
# Kills

KILL = """
import os, shutil, signal
from prompt_jax.training import saving, summary
def kill(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
"""

# Where a process is killed, and a file that exists only then.
WINDOWS = {
    "before config.json has its name": ("os.replace = kill", r"\.config\.json\.\d+\.tmp"),
    "before best.npz has its name, at step 3": (
        """
real = saving._save_prompts
def save(run, name, trainable):
    if run.progress.step == 3:
        os.replace = kill
    real(run, name, trainable)
saving._save_prompts = save
""",
        r"\.best\.npz\.\d+\.tmp",
    ),
    "before checkpoint 4 has its name": (
        """
real = os.rename
os.rename = lambda old, new, **options: kill() if str(new).endswith("checkpoints/4") else real(old, new, **options)
""",
        r"checkpoints/4\.orbax-checkpoint-tmp",
    ),
    "after the last checkpoint, before last.npz is written": (
        """
real = saving._save_prompts
def save(run, name, trainable):
    if name == "last.npz" and run.progress.step == 6:
        run.checkpoints.wait()
        kill()
    real(run, name, trainable)
saving._save_prompts = save
""",
        r"checkpoints/6",
    ),
    "before report.html is written": ("summary.write_report = kill", r"summary\.json"),
}


def kill_run(experiment: Experiment, patch: str, *options: str) -> None:
    """Run the experiment in a process that a patch kills."""
    statuses = jax_processes.finish(experiment, jax_processes.start(experiment, 1, 1, *options, patch=KILL + patch))
    assert statuses == [-signal.SIGKILL], jax_processes.output(experiment).read_text()


@pytest.mark.slow
def test_a_killed_run_has_the_files_of_an_uninterrupted_one_at_its_end(experiment, whole):
    for number, (window, (patch, left)) in enumerate(WINDOWS.items()):
        run = with_name(experiment, f"run{number}")
        kill_run(run, patch)
        files = [str(path.relative_to(run.folder)) for path in run.folder.rglob("*")]
        assert ".lock" in files and any(re.fullmatch(left, file) for file in files), (window, files)
        jax_processes.run(run)
        assert_same_files(run, whole)


@pytest.mark.slow
def test_a_kill_while_overwriting(experiment, whole):
    """The run can be overwritten again."""
    other = with_options(experiment, "prompt", length=5)
    train(with_options(other, "train", steps=2))
    kill_run(experiment, "shutil.rmtree = kill", "--overwrite")
    assert {".lock", "config.json"} < set(names(experiment.folder))
    with pytest.raises(ConfigError, match="holds a run with another configuration"):
        train(experiment)
    jax_processes.run(experiment, 1, 1, "--overwrite")
    assert_same_files(experiment, whole)


@pytest.mark.slow
def test_overwriting_through_a_link(experiment, tmp_path):
    """The files are deleted. The link to a larger disk stays."""
    target = tmp_path / "large disk"
    target.mkdir()
    experiment.runs.mkdir(exist_ok=True)
    experiment.folder.symlink_to(target)
    train(with_options(with_options(experiment, "prompt", length=5), "train", steps=2))
    (target / "link").symlink_to(tmp_path)
    (target / ".x.1.tmp").mkdir()
    train(with_options(experiment, "train", steps=1), overwrite=True)
    assert experiment.folder.is_symlink() and tmp_path.exists()
    files = ["best.npz", "checkpoints", "config.json", "last.npz", "metrics.jsonl", "report.html", "tensorboard"]
    assert names(target) == files
    assert tokens(experiment, "best.npz").shape[0] == experiment.prompt.length


@pytest.mark.slow
def test_results_are_deleted_before_a_run_trains_further(experiment):
    short = with_options(experiment, "train", steps=3)
    finish(short, *train(short))
    results = {"summary.json", "predictions.jsonl", "report.html"}
    assert results < set(names(short.folder))
    train(short)  # no step is left
    assert results < set(names(short.folder))
    during: list[set[str]] = []
    with before_step(4, lambda run: during.append(results & set(names(run.experiment.folder)))):
        train(experiment)
    assert during == [{"report.html"}], "the page of the run that trains"


# --------------------------------------------------------------------------------------------------------------
# The record


def test_config_json_is_written_when_it_changes(experiment):
    record = experiment.folder / "config.json"
    train(with_options(experiment, "train", steps=2))
    before = record.stat()
    train(with_options(experiment, "train", steps=2))
    assert record.stat().st_ino == before.st_ino and record.stat().st_mtime_ns == before.st_mtime_ns
    more = with_options(experiment, "train", steps=3)
    train(more)
    assert experiments.load_experiment(record) == more
    with pytest.raises(ConfigError, match="was trained to step 3, and this configuration ends at step 2"):
        train(with_options(experiment, "train", steps=2))
    assert experiments.load_experiment(record) == more


def test_the_default_rate_that_earlier_versions_wrote(experiment):
    train(with_options(experiment, "train", steps=2))
    record = experiment.folder / "config.json"
    text = record.read_text()
    for rate, same in ((0.3, True), (0.1, False)):
        earlier = json.loads(text)
        del earlier["optimizer"]["rate_unit"]
        record.write_text(json.dumps(earlier | {"optimizer": earlier["optimizer"] | {"learning_rate": rate}}))
        with contextlib.nullcontext() if same else pytest.raises(ConfigError, match="changed: optimizer.learning_rate"):
            check_folder(with_options(experiment, "train", steps=2), overwrite=False)


def test_the_default_initialization_of_prefixes_that_earlier_versions_wrote(experiment):
    rate = OptimizerConfig(learning_rate=0.3)
    prefix = dataclasses.replace(experiment, prompt=PrefixTuning(length=2), optimizer=rate)
    (prefix.folder).mkdir(parents=True)
    for init, same in (("normal", True), ("zero", False)):
        earlier = json.loads(experiments.to_json(prefix))
        del earlier["optimizer"]["rate_unit"]
        earlier["prompt"]["init"] = init
        (prefix.folder / "config.json").write_text(json.dumps(earlier))
        with contextlib.nullcontext() if same else pytest.raises(ConfigError, match="changed: prompt.init"):
            check_folder(prefix, overwrite=False)


@pytest.mark.slow
def test_a_default_rate_that_changed(experiment, monkeypatch):
    """The configuration says None both times. The optimizer's state shows what was meant."""
    prefix = dataclasses.replace(experiment, prompt=PrefixTuning(length=2))
    with monkeypatch.context() as patch:
        patch.setattr(PrefixTuning, "default_rate", 0.3)
        train(with_options(prefix, "train", steps=2))
        train(with_options(prefix, "train", steps=3))
    told = "was trained with the learning rate 0.3, and this configuration has 0.005: another version had another"
    with pytest.raises(ConfigError, match=told):
        train(with_options(prefix, "train", steps=4))
    earlier = json.loads((prefix.folder / "config.json").read_text())  # before the rate had a unit
    earlier["optimizer"]["learning_rate"] = 0.3
    del earlier["optimizer"]["rate_unit"]
    (prefix.folder / "config.json").write_text(json.dumps(earlier))
    with pytest.raises(ConfigError, match=r"changed: optimizer.learning_rate"):
        train(with_options(prefix, "train", steps=4))


def test_a_value_that_became_the_default_is_another_configuration(experiment):
    """A run that began with a rate of 0.3 is not resumed with the base's default."""
    experiment.folder.mkdir(parents=True)
    (experiment.folder / "config.json").write_text(
        experiments.to_json(with_options(experiment, "optimizer", learning_rate=0.3))
    )
    with pytest.raises(ConfigError, match="changed: optimizer.learning_rate"):
        check_folder(experiment, overwrite=False)


@pytest.mark.parametrize("text", ["[" * 5000, '{"name": 3', "3"])
def test_text_that_is_no_configuration(text):
    with pytest.raises(ConfigError):
        experiments.from_json(text)


@pytest.mark.parametrize("content", [b"", b"\0" * 4096])
def test_an_empty_config_json_leaves_checkpoints_usable(experiment, whole, content):
    """A power failure may empty the file. Checkpoints record the configuration too."""
    with before_step(5), pytest.raises(Interrupted):
        train(experiment)
    record = experiment.folder / "config.json"
    record.write_bytes(content)
    for other in (
        with_options(experiment, "prompt", placement="after"),
        with_options(experiment, "optimizer", learning_rate=1.0),
    ):
        with pytest.raises(ConfigError, match=r"another configuration \(changed: (prompt.placement|optimizer.learn)"):
            train(other)
    assert record.read_bytes() == content
    with pytest.warns(UserWarning, match=f"{record} was empty; it is written again, from this command"):
        finish(experiment, *train(experiment))
    assert_same_files(experiment, whole)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"{", b"[]"])
def test_a_damaged_config_json(experiment, content):
    experiment.folder.mkdir(parents=True)
    (experiment.folder / "config.json").write_bytes(content)
    with pytest.raises(ConfigError, match=f"{experiment.folder / 'config.json'} is not the record of a run"):
        train(experiment)
    assert names(experiment.folder) == ["config.json"]


def test_a_log_with_invalid_lines(tmp_path):
    """A crash may leave them."""
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1, "train/loss": null}\n3\nnull\n[]\n\0\0\n\xff\n{"step": 2')
    (line,) = read_log(tmp_path)
    assert line["step"] == 1 and np.isnan(line["train/loss"])


# --------------------------------------------------------------------------------------------------------------
# Deleted and shared folders


def test_a_folder_that_is_deleted_during_training(experiment, whole, capfd):
    def delete(run):
        run.checkpoints.wait()
        shutil.rmtree(run.experiment.folder)

    told = f"^{experiment.folder} was deleted while this process used it; start the same command again$"
    with before_step(4, delete), pytest.raises(LockLost, match=told):
        train(experiment)
    assert not experiment.folder.exists()
    assert TRACEBACK not in capfd.readouterr().err
    finish(experiment, *train(experiment))
    assert_same_files(experiment, whole)


def test_a_folder_that_is_deleted_during_a_save(experiment, whole, monkeypatch):
    """The save recreates the folder. What it leaves there must not look like a run."""
    real = Checkpoints.save

    def save(checkpoints, step, *arguments):
        real(checkpoints, step, *arguments)
        checkpoints.wait()
        content = experiment.runs / "kept"
        shutil.move(experiment.folder / "checkpoints" / str(step), content)
        shutil.rmtree(experiment.folder)
        shutil.move(content, experiment.folder / "checkpoints" / str(step))

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save)
        with pytest.raises(LockLost, match="was deleted while this process used it.*; start the same command again"):
            train(experiment)
    assert not experiment.folder.exists()
    finish(experiment, *train(experiment))
    assert_same_files(experiment, whole)


def test_a_folder_that_is_deleted_before_the_results_are_written(experiment):
    with run_lock(experiment) as lock:
        setup, progress = train(experiment, lock=lock)
        best = (experiment.folder / "best.npz").read_bytes()
        shutil.rmtree(experiment.folder)
        experiment.folder.mkdir()
        (experiment.folder / "best.npz").write_bytes(best)
        with pytest.raises(LockLost, match="was deleted while this process used it"):
            finish(experiment, setup, progress, lock)
        assert names(experiment.folder) == ["best.npz"]


def test_an_incomplete_save_in_a_deleted_folder(experiment):
    """A run can begin there, but not beside a complete checkpoint, which may be wanted."""
    left = experiment.folder / "checkpoints" / "4.orbax-checkpoint-tmp"
    left.mkdir(parents=True)
    short = with_options(experiment, "train", steps=2)
    train(short)
    assert names(left.parent) == ["2"]
    shutil.copytree(left.parent / "2", experiment.runs / "other" / "checkpoints" / "2")
    with pytest.raises(ConfigError, match="is not empty and holds no run"):
        train(with_name(short, "other"))


def test_a_folder_in_use_is_left_alone(experiment):
    """The error comes before anything is loaded."""
    missing = with_options(experiment, "model", name="nobody/nothing")
    with run_lock(experiment) as lock:
        train(with_options(experiment, "train", steps=2), lock=lock)
        before = {path: path.read_bytes() for path in experiment.folder.rglob("*") if path.is_file()}
        told = f"{experiment.folder} is in use by process {os.getpid()} on {socket.gethostname()}, started"
        for overwrite in (False, True):
            with pytest.raises(LockHeld, match=told):
                train(experiment, overwrite=overwrite)
        with pytest.raises(LockHeld, match=told):
            train(missing, overwrite=True)
        assert {path: path.read_bytes() for path in experiment.folder.rglob("*") if path.is_file()} == before
    train(experiment)


@pytest.mark.slow
def test_two_processes_with_one_name(experiment):
    """They start together with different configurations. One trains, and all files are its own."""
    lengths = (4, 5)
    runs = [with_options(experiment, "prompt", length=length) for length in lengths]
    started = []
    for run, place in zip(runs, ("a", "b"), strict=True):
        # The configuration and the output are in different folders; the run's folder is the same.
        elsewhere = dataclasses.replace(run, runs=experiment.runs / place)
        started += jax_processes.start(elsewhere, 1, 1, "--runs", str(experiment.runs))
    statuses = [process.wait(300) for process in started]
    said = [(experiment.runs / place / f"{experiment.name}.0.txt").read_text() for place in ("a", "b")]
    assert sorted(statuses) == [0, 1], said
    winner, loser = statuses.index(0), statuses.index(1)
    holder = rf"{experiment.folder} is in use by process {started[winner].pid} on {socket.gethostname()}, started"
    assert re.search(rf"{holder}|holds a run with another configuration", said[loser]) and TRACEBACK not in said[loser]
    assert experiments.load_experiment(experiment.folder / "config.json") == runs[winner]
    assert {len(tokens(experiment, file)) for file in ("best.npz", "last.npz")} == {lengths[winner]}
    assert [line["step"] for line in log(experiment) if "train/loss" in line] == [1, 2, 3, 4, 5, 6]


WAITING = """
import time
from pathlib import Path
from prompt_jax.training import loop, saving
from prompt_jax.training.checkpoints import Checkpoints
real = loop._step
def step(run, *arguments):
    while run.progress.step == 3 and not Path({!r}).exists():
        time.sleep(0.05)
    return real(run, *arguments)
loop._step = step
"""


@pytest.mark.slow
def test_a_second_process_is_refused(experiment, whole, tmp_path):
    """Its error names the first process, which is not disturbed."""
    signal_file = tmp_path / "continue"
    (first,) = jax_processes.start(experiment, patch=WAITING.format(str(signal_file)))
    wait_for(lambda: (experiment.folder / "checkpoints" / "2").exists(), 200)
    elsewhere = dataclasses.replace(experiment, runs=experiment.runs / "elsewhere")  # where its output goes
    for options in ((), ("--overwrite",)):
        (second,) = jax_processes.start(elsewhere, 1, 1, "--runs", str(experiment.runs), *options)
        assert second.wait(300) == 1
        said = jax_processes.output(elsewhere).read_text()
        holder = rf"process {first.pid} on {socket.gethostname()}, started 2\d{{3}}-\d\d-\d\d [\d:]{{8}} UTC"
        told = rf"prompt-jax: {experiment.folder} is in use by {holder}; wait for its end\n"
        assert re.fullmatch(told, said), said
    assert first.poll() is None
    signal_file.touch()
    assert first.wait(300) == 0, jax_processes.output(experiment).read_text()
    assert_same_files(experiment, whole)
