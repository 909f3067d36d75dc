"""What a table of a paper is made of: columns, and rows with the commands that give their figures."""

import dataclasses
import hashlib
import os
from collections.abc import Mapping
from typing import Any, Literal

from prompt_jax.metrics import is_share

# A task of this name is the same one with a sentinel before its targets, and has the other's column.
SENTINEL = "_sentinel"

# Metrics whose models are not part of this package.
NOT_COMPUTED = ("moverscore", "bertscore", "bleurt")

Options = Mapping[str, Any]  # fields as the command line has them: {"prompt.length": 5}


@dataclasses.dataclass(frozen=True)
class Search:
    """A training of one prompt for each of several learning rates, of which the best on validation data is taken."""

    name: str
    config: str
    options: Options
    rates: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Templates:
    """Ways to ask the base in words, of which the best on validation data, without examples, is taken."""

    name: str
    options: Options
    designs: tuple[str, ...]
    metric: str


@dataclasses.dataclass(frozen=True)
class Training:
    """A run of `prompt-jax train`, whose members are the observations of a row."""

    name: str  # of the run; two tables that name the same run share it
    config: str  # a file in configs/
    options: Options = dataclasses.field(default_factory=dict)
    search: Search | None = None  # of its learning rate; None is the configuration's


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A run of `prompt-jax evaluate`: of trained prompts on another task, or of the base asked in words."""

    name: str
    options: Options
    of: Training | None = None
    search: Templates | None = None  # of the words that the base is asked in; None is the options'


@dataclasses.dataclass(frozen=True)
class Column:
    """A metric of one task.

    Attributes:
      title: unique in its table.
      task: its name; None is the mean over the other columns' tasks of the mean of a task's metrics.
      metric: its name, as scores have it.
      split: what it is of; benchmarks keep the answers of their test splits to themselves.
    """

    title: str
    task: str | None
    metric: str
    split: Literal["test", "validation"] = "test"

    @property
    def scale(self) -> int:
        """The factor from the metric's values to the table's: shares are shown in percent, as mostly in the papers."""
        return 100 if is_share(self.metric) and self.metric not in NOT_COMPUTED else 1


# A figure that a paper prints, in the units of the table's cells: its value, and the standard deviation where told.
Printed = float | tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
      name: what it is of.
      steps: commands that give its observations; without any the row has the paper's figures alone.
      of: whose figures they are: each member's, or those of an ensemble: its best, its vote.
      where: settings in which the members of a run differ, if the row is of some of them: {"prompt.init": "vocab"}.
      paper: what the paper prints, by the title of a column.
      series, x: of a plot: the line that it is a point of, and where. Without x the plot is of points.
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
      title: what it shows.
      source: where the paper has it, and what it says there.
      columns: at least one; the first is plotted.
      rows: at least one.
      x: what rows differ in, on the plot's axis; rows without x are points in a line each.
      plotted: what the plot shows, on its other axis; else the column's title.
      notes: sentences below the table.
    """

    title: str
    source: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    x: str = ""
    plotted: str = ""
    notes: tuple[str, ...] = ()


def short(base: str) -> str:
    """A model's name as part of a run's: the last part; of a folder with a sign of where it is."""
    name = base.rstrip("/").rpartition("/")[2].replace(":", "-")
    return f"{name}-{hashlib.sha256(base.encode()).hexdigest()[:6]}" if os.path.isdir(base) else name
