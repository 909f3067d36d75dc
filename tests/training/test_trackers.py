"""Experiment trackers: what they are told, and their errors."""

import dataclasses
import importlib.metadata
import json

import pytest

from experiments import with_options
from prompt_jax import cli
from prompt_jax import experiment as experiments
from prompt_jax.config.ensemble import EnsembleConfig
from prompt_jax.distributed.processes import Preempted
from prompt_jax.errors import ConfigError, MissingPackage
from prompt_jax.report.metrics_log import read_log
from prompt_jax.training import loop, run_folder, trackers
from prompt_jax.training.run_experiment import run_experiment
from prompt_jax.training.tracker import TrackedRun, Tracker
from prompt_jax.training.trackers import TrackerError, Trackers


class Recorder(Tracker):
    """Keeps what it is told."""

    def __init__(self):
        self.run, self.lines, self.end = None, [], None

    def start(self, run: TrackedRun) -> None:
        assert self.run is None
        self.run = run

    def log(self, step, member, values) -> None:
        self.lines.append({"step": step, "member": member, **values})

    def finish(self, status, summary) -> None:
        assert self.end is None
        self.end = status, summary


class Failing(Tracker):
    """Fails in one of its methods."""

    def __init__(self, method: str):
        self.calls: list[str] = []
        self.method = method

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if name == self.method:
            raise ValueError("\nno connection\nto the server")

    def start(self, run):
        self._called("start")

    def log(self, *_):
        self._called("log")

    def finish(self, *_):
        self._called("finish")


@pytest.fixture
def short(experiment):
    return with_options(experiment, "train", steps=2, eval_every=2)


def test_a_tracker_gets_configuration_metrics_and_results(short):
    """The metrics are those of metrics.jsonl."""
    ensemble = dataclasses.replace(short, ensemble=EnsembleConfig(size=2))
    recorder = Recorder()
    printed = run_experiment(ensemble, trackers=[recorder])
    assert "majority vote" in printed and "wrote" in printed
    assert recorder.run == TrackedRun(
        name="run",
        folder=short.folder,
        config=json.loads((short.folder / "config.json").read_text()),
        members=[{"train.seed": 0}, {"train.seed": 1}],
        history=[],
    )
    assert recorder.lines == read_log(short.folder) and {line["member"] for line in recorder.lines} == {0, 1}
    assert {"train/loss", "validation/accuracy"} <= {name for line in recorder.lines for name in line}
    status, summary = recorder.end
    assert status == "finished" and summary == json.loads((short.folder / "summary.json").read_text())


@pytest.mark.slow
def test_a_resumed_run(experiment):
    """It gets the lines before the checkpoint, and then the others."""
    with pytest.raises(KeyboardInterrupt):
        run_experiment(experiment, trackers=[first := Recorder(), _Interrupting(5)])
    second = Recorder()
    run_experiment(experiment, trackers=[second])
    assert first.end == ("interrupted", None)
    assert {line["step"] for line in second.run.history} == {0, 1, 2, 3, 4}
    assert [*second.run.history, *second.lines] == read_log(experiment.folder)


class _Interrupting(Tracker):
    def __init__(self, step: int):
        self._step = step

    def log(self, step, *_):
        if step == self._step:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("error", "status"), [(Preempted("x"), "preempted"), (loop.LockLost("x"), "failed"), (OSError(), "failed")]
)
def test_a_run_that_fails(short, monkeypatch, error, status):
    def fail(run):
        raise error

    monkeypatch.setattr(loop, "fit", fail)
    recorder = Recorder()
    with pytest.raises(type(error)):
        run_experiment(short, trackers=[recorder])
    assert recorder.end == (status, None)


def test_a_run_that_diverges(short):
    recorder = Recorder()
    with pytest.raises(trackers.Diverged):
        run_experiment(with_options(short, "optimizer", learning_rate=1e30), trackers=[recorder])
    assert recorder.end == ("diverged", None)


def test_an_error_of_a_tracker_does_not_end_the_run(short, capsys):
    """It is shown once. The tracker gets no more metrics, and only `finish` is called."""
    tracker, others, other = Failing("log"), Failing("finish"), Recorder()
    with Trackers(short, [tracker, others, other]) as all_trackers:
        loop.train(short, trackers=all_trackers)
    assert tracker.calls == ["start", "log", "finish"]
    assert other.lines == read_log(short.folder) and other.end[0] == "finished"
    err = capsys.readouterr().err
    assert err.count("the tracker Failing failed and is no longer used (ValueError: no connection)") == 2


def test_a_tracker_that_cannot_start_ends_the_run_before_it_trains(short):
    tracker, earlier = Failing("start"), Recorder()
    with pytest.raises(TrackerError, match=r"tracker Failing cannot start \(ValueError: no connection\). Fix this"):
        run_experiment(short, trackers=[earlier, tracker])
    assert tracker.calls == ["start"] and earlier.lines == [] and earlier.end == ("failed", None)


def test_other_processes_call_no_tracker(short, monkeypatch):
    monkeypatch.setattr("prompt_jax.distributed.processes.is_first", lambda: False)
    recorder = Recorder()
    with Trackers(short, [recorder]) as all_trackers:
        all_trackers.start([])
        all_trackers.log(0, 0, {"x": 1.0})
    assert (recorder.run, recorder.lines, recorder.end) == (None, [], None)


# --------------------------------------------------------------------------------------------------------------
# Names in configurations


def test_a_missing_package_is_reported_first(short, monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    monkeypatch.setattr(loop, "prepare", None)  # would fail
    with pytest.raises(MissingPackage, match=r"train.trackers wandb needs the package wandb: pip install '.\[wandb\]'"):
        run_experiment(with_options(short, "train", trackers=("wandb",)))
    assert not short.folder.exists()


def test_the_option(short, tmp_path, capsys):
    config = tmp_path / "c.json"
    config.write_text(experiments.to_json(short))
    parsed = cli.parse("train", [str(config), "--train.trackers", "wandb"])
    assert parsed.experiment.train.trackers == ("wandb",)
    with pytest.raises(SystemExit):
        cli.parse("train", [str(config), "--train.trackers", "mlflow"])
    assert "wandb" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"train.trackers must be .*'wandb'.*, not \['mlflow'\]"):
        experiments.from_json(config.read_text().replace('"trackers": []', '"trackers": ["mlflow"]'))


def test_a_run_can_resume_with_other_trackers(short):
    run_folder.check_same(json.loads(experiments.to_json(short)), with_options(short, "train", trackers=("wandb",)))
