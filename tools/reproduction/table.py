"""The parts of a table: columns, and rows with the commands that produce their figures."""

import dataclasses
import hashlib
import os
from collections.abc import Mapping
from typing import Any, Literal

from prompt_jax.metrics import is_share

# A task with this suffix has a sentinel before its targets, and shares the column of the task without it.
SENTINEL = "_sentinel"

# Metrics whose models are not part of this package.
NOT_COMPUTED = ("moverscore", "bertscore", "bleurt")

Options = Mapping[str, Any]  # fields by their command-line names: {"prompt.length": 5}


@dataclasses.dataclass(frozen=True)
class Search:
    """A search for the learning rate: one prompt per rate is trained, and the best on validation data wins."""

    name: str
    config: str
    options: Options
    rates: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Templates:
    """Text templates for prompt design, of which the best zero-shot one on validation data is used."""

    name: str
    options: Options
    designs: tuple[str, ...]
    metric: str


@dataclasses.dataclass(frozen=True)
class Training:
    """A run of `prompt-jax train`. Its members are the observations of a row."""

    name: str  # of the run, which tables that use the same name share
    config: str  # a file in configs/
    options: Options = dataclasses.field(default_factory=dict)
    search: Search | None = None  # for the learning rate; None uses the configuration's


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A run of `prompt-jax evaluate`: of trained prompts on another task, or of prompt design with the base."""

    name: str
    options: Options
    of: Training | None = None  # None is prompt design
    search: Templates | None = None  # for the template; None uses the one in `options`


@dataclasses.dataclass(frozen=True)
class Column:
    """A metric of one task.

    Attributes:
      title: unique in its table.
      task: name of the task; None is the mean over the other columns' tasks, after averaging each task's metrics.
      metric: name of the metric, as in the scores.
      split: benchmarks whose test answers are hidden use "validation".
    """

    title: str
    task: str | None
    metric: str
    split: Literal["test", "validation"] = "test"

    @property
    def scale(self) -> int:
        """The factor from the metric's values to the table's: shares are shown in percent, as mostly in the papers."""
        return 100 if is_share(self.metric) and self.metric not in NOT_COMPUTED else 1


# A figure printed in a paper, in the table's units: the value, or value and standard deviation.
Printed = float | tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
      name: first cell of the row.
      steps: commands that produce its observations; a row without steps only shows the paper's figures.
      of: whose figures to show: all members', the ensemble's best member's, or its vote's.
      where: settings that select some of a run's members: {"prompt.init": "vocab"}.
      paper: the paper's figures by column title.
      series, x: line and x position in the plot.
    """

    name: str
    steps: tuple[Training | Evaluation, ...] = ()
    of: Literal["members", "best", "vote"] = "members"
    where: Options = dataclasses.field(default_factory=dict)
    paper: Mapping[str, Printed] = dataclasses.field(default_factory=dict)
    series: str = ""
    x: float | None = None


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of a paper, or of its small edition.

    Attributes:
      title: heading.
      source: place in the paper, and the paper's claim.
      columns: at least one; the first is plotted.
      rows: at least one.
      x: label of the x axis; without it, the plot shows points with one line of the axis per row.
      plotted: label of the plotted value; by default the column's title.
      notes: paragraphs below the table.
    """

    title: str
    source: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    x: str = ""
    plotted: str = ""
    notes: tuple[str, ...] = ()


def short(base: str) -> str:
    """Return a model's name for use in a run's name: the last part, for a folder with a hash of its path."""
    name = base.rstrip("/").rpartition("/")[2].replace(":", "-")
    return f"{name}-{hashlib.sha256(base.encode()).hexdigest()[:6]}" if os.path.isdir(base) else name
