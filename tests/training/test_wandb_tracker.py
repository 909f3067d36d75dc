"""Weights & Biases in offline mode, read back from the files that `wandb sync` uploads."""

import dataclasses
import json
import struct
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from experiments import with_options
from prompt_jax.config.ensemble import EnsembleConfig
from prompt_jax.report.metrics_log import read_log
from prompt_jax.training.run_experiment import run_experiment
from prompt_jax.training.tracker import Tracker
from prompt_jax.training.trackers import TrackerError

wandb = pytest.importorskip("wandb")

_HEADER, _BLOCK = 7, 32768


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    wandb.teardown()  # it reads the environment once


def records(path: Path) -> list[Any]:
    """Return the records of a `.wandb` file: a header of 7 bytes, then LevelDB's log format."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, parts, found = path.read_bytes(), _HEADER, b"", []
    while place + _HEADER <= len(data):
        if _BLOCK - place % _BLOCK < _HEADER:  # padding
            place += _BLOCK - place % _BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + _HEADER])
        parts += data[place + _HEADER : place + _HEADER + length]
        place += _HEADER + length
        if kind in (1, 4):  # whole, or the last part
            found.append(Record.FromString(parts))
            parts = b""
    return found


class Logged:
    """What a `.wandb` file holds."""

    def __init__(self, path: Path):
        self.history: dict[int, dict[str, Any]] = defaultdict(dict)
        self.config: dict[str, Any] = {}
        self.summary: dict[str, Any] = {}
        for record in records(path):
            match record.WhichOneof("record_type"):
                case "run":
                    self.run = record.run
                    self.config |= _values(record.run.config.update)
                case "config":
                    self.config |= _values(record.config.update)
                case "history":
                    values = _values(record.history.item)
                    self.history[record.history.step.num] |= {k: v for k, v in values.items() if k[0] != "_"}
                case "summary":
                    self.summary |= _values(record.summary.update)
                case "exit":
                    self.exit_code = record.exit.exit_code


def _values(items) -> dict[str, Any]:
    return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}


def logged(folder: Path) -> list[Logged]:
    return [Logged(path) for path in sorted(folder.glob("wandb/offline-run-*/*.wandb"))]


def test_a_run(experiment, tmp_path, capfd):
    short = with_options(experiment, "train", steps=2, eval_every=2, trackers=("wandb",))
    run_experiment(short)
    (written,) = logged(tmp_path)
    assert (written.run.project, written.run.display_name) == ("prompt_jax", "run")
    assert written.run.run_id == (short.folder / "wandb_run_id").read_text().strip()
    assert written.config["train"]["steps"] == 2 and written.config["prompt"]["method"] == "soft_prompt"
    expected: dict[int, dict[str, float]] = defaultdict(dict)
    for line in read_log(short.folder):
        expected[line.pop("step")] |= {name: value for name, value in line.items() if name != "member"}
    assert written.history == expected and set(expected) == {0, 1, 2}
    (test,) = json.loads((short.folder / "summary.json").read_text())["tests"]
    scores = {f"test/files/prompt/{name}": value for name, value in test["scores"][0].items()}
    scores |= {f"test/files/base/{name}": value for name, value in test["before"].items()}
    assert scores and scores.items() <= written.summary.items() and written.summary["status"] == "finished"
    assert written.exit_code == 0


class _Interrupt(Tracker):
    def log(self, step, *_):
        if step == 5:
            raise KeyboardInterrupt


def test_a_resumed_ensemble_continues_the_run(experiment, tmp_path, monkeypatch):
    """The second part has the same id. `wandb sync` joins them."""
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    ensemble = dataclasses.replace(experiment, ensemble=EnsembleConfig(size=2))
    with pytest.raises(KeyboardInterrupt):
        run_experiment(with_options(ensemble, "train", trackers=("wandb",)), trackers=[_Interrupt()])
    more = with_options(ensemble, "train", trackers=("wandb",), steps=7)
    run_experiment(more)
    first, second = logged(tmp_path)
    assert first.run.run_id == second.run.run_id and first.run.project == "mine"
    assert (first.exit_code, second.exit_code) == (1, 0)
    assert (first.summary["status"], second.summary["status"]) == ("interrupted", "finished")
    assert (first.config["train"]["steps"], second.config["train"]["steps"]) == (6, 7)
    assert second.config["members"] == [{"train.seed": 0}, {"train.seed": 1}]
    joined = first.history | second.history
    lines = [line for line in read_log(ensemble.folder) if "train/loss" in line]
    assert {line["step"] for line in lines} == set(range(1, 8))
    assert all(joined[line["step"]][f"member_{line['member']}/train/loss"] == line["train/loss"] for line in lines)
    assert {"test/files/vote/accuracy", "test/files/member_1/accuracy"} <= set(second.summary)


def test_steps_that_wandb_has_are_not_logged_again(experiment, monkeypatch):
    """Online, a resumed run starts with the number of steps that W&B has, and W&B would warn about each earlier one."""
    from prompt_jax.training.wandb_tracker import WeightsAndBiases

    steps = []
    tracker = WeightsAndBiases()
    tracker._first, tracker._several = 3, False
    tracker._run = type("Run", (), {"log": lambda self, values, step: steps.append(step)})()
    for step in range(5):
        tracker.log(step, 0, {"x": 1.0})
    assert steps == [3, 4]


def test_no_credentials(experiment, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", "")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    wandb.teardown()
    with pytest.raises(TrackerError, match=r"the tracker WeightsAndBiases cannot start \(UsageError: .*login"):
        run_experiment(with_options(experiment, "train", trackers=("wandb",)))
    assert not (experiment.folder / "best.npz").exists()
