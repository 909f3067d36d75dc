"""The experiment trackers of a run: TensorBoard, those that `train.trackers` names, and others from Python."""

import functools
import importlib.metadata
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tqdm import tqdm

from prompt_jax import experiment as experiments
from prompt_jax.distributed.processes import Preempted, on_first_process
from prompt_jax.errors import MissingPackage, UserError
from prompt_jax.experiment import Experiment
from prompt_jax.report.terminal import escape_control_characters
from prompt_jax.training.metrics import Diverged
from prompt_jax.training.tracker import TrackedRun, Tracker


class TrackerError(UserError, RuntimeError):
    """An experiment tracker cannot start."""


class Trackers:
    """The trackers of a run, whose errors do not end its training. Use as a context manager around the whole run.

    Args:
      experiment: `train.trackers` names trackers.
      others: further trackers.

    Raises:
      MissingPackage: the package of a named tracker is not installed.
    """

    def __init__(self, experiment: Experiment, others: Sequence[Tracker] = ()):
        self._experiment = experiment
        self._started: list[Tracker] = []  # to finish
        self._failed: list[Tracker] = []  # that get no more metrics
        self._waiting = [*map(_named_tracker, experiment.train.trackers), *others]

    def __enter__(self) -> "Trackers":
        return self

    def start(self, history: Sequence[Mapping[str, Any]], first: Sequence[Tracker] = ()) -> None:
        """Start all trackers, and before them the trackers `first`. All processes call this.

        Raises:
          TrackerError: a tracker failed.
        """
        on_first_process(lambda: self._start(history, first))

    def _start(self, history: Sequence[Mapping[str, Any]], first: Sequence[Tracker]) -> None:
        experiment = self._experiment
        run = TrackedRun(
            name=experiment.name,
            folder=experiment.folder,
            config=json.loads(experiments.to_json(experiment)),
            members=experiments.settings(experiments.members(experiment)),
            history=history,
        )
        for tracker in (*first, *self._waiting):
            try:
                tracker.start(run)
            except (UserError, OSError):
                raise
            except Exception as error:
                raise TrackerError(
                    f"the tracker {_name(tracker)} cannot start ({_reason(error)}). Fix this, or train without it"
                ) from error
            self._started.append(tracker)

    def log(self, step: int, member: int, values: Mapping[str, float]) -> None:
        """Pass a member's metrics to the trackers."""
        for tracker in self._started:
            if tracker not in self._failed:
                self._call(tracker, functools.partial(tracker.log, step, member, values))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        status = _status(kind)
        path = self._experiment.folder / "summary.json"
        summary = json.loads(path.read_text()) if self._started and status == "finished" and path.exists() else None
        for tracker in self._started:
            self._call(tracker, functools.partial(tracker.finish, status, summary))

    def _call(self, tracker: Tracker, action: Callable[[], None]) -> None:
        """Call a tracker. Show the first error, after which it gets no more metrics."""
        try:
            action()
        except Exception as error:
            if tracker not in self._failed:
                self._failed.append(tracker)
                text = f"prompt-jax: the tracker {_name(tracker)} failed and is no longer used ({_reason(error)})"
                tqdm.write(escape_control_characters(text), file=sys.stderr)  # above the progress bar


def _status(kind: type[BaseException] | None) -> str:
    if kind is None:
        return "finished"
    known = {Preempted: "preempted", Diverged: "diverged", KeyboardInterrupt: "interrupted"}
    return next((status for each, status in known.items() if issubclass(kind, each)), "failed")


def _name(tracker: Tracker) -> str:
    return type(tracker).__name__


def _reason(error: Exception) -> str:
    """Return the type of an error and the first line of its message."""
    lines = str(error).strip().splitlines()
    return ": ".join([type(error).__name__, *lines[:1]])


def _named_tracker(name: str) -> Tracker:
    """Return a tracker of `train.trackers`."""
    assert name == "wandb", name  # the type of `train.trackers`
    try:
        importlib.metadata.version("wandb")
    except importlib.metadata.PackageNotFoundError as error:
        raise MissingPackage("train.trackers wandb needs the package wandb: pip install '.[wandb]'") from error
    from prompt_jax.training.wandb_tracker import WeightsAndBiases

    return WeightsAndBiases()
