"""The interface of experiment trackers, which receive a run's configuration, metrics and results."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class TrackedRun:
    """A run, as trackers see it before the first step.

    Attributes:
      name: the run's name.
      folder: its folder, which may be on a bucket. A tracker can keep a file there for the next process.
      config: the configuration, as in `config.json`.
      members: for each member the settings in which members differ. A single prompt is one member without settings.
      history: the lines of `metrics.jsonl` that earlier processes wrote, up to the step at which the run resumes.
    """

    name: str
    folder: Path
    config: Mapping[str, Any]
    members: Sequence[Mapping[str, Any]]
    history: Sequence[Mapping[str, Any]]


class Tracker:
    """Receives what a run logs. Override the methods that you need. Only the first process calls them.

    An error in `start` ends the run before it trains. After an error in `log`, the run continues without the tracker.
    """

    def start(self, run: TrackedRun) -> None:
        """Act before the first step of this process."""

    def log(self, step: int, member: int, values: Mapping[str, float]) -> None:
        """Receive a member's metrics at a step, such as `train/loss` or `validation/accuracy`.

        Steps do not decrease, except that a resumed run repeats those after its last checkpoint.
        """

    def finish(self, status: str, summary: Mapping[str, Any] | None) -> None:
        """Act when this process ends the run.

        Args:
          status: `finished`, `preempted`, `interrupted`, `diverged` or `failed`.
          summary: the content of `summary.json`; None if the run did not finish.
        """
