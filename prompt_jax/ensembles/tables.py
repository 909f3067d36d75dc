"""An ensemble's scores as tables: members, average, best and vote, as in table 3 of Lester et al. 2021."""

import dataclasses
import re
from collections.abc import Mapping, Sequence

from prompt_jax.ensembles.comparison import CONFIDENCE
from prompt_jax.ensembles.evaluation import EnsembleEvaluation


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of text cells. The first row has the column heads, the first column the row names."""

    title: str
    rows: list[list[str]]

    def text(self) -> str:
        """Return aligned, indented text, one line per row."""
        rows = [[" ".join(cell.split()) for cell in row] for row in self.rows]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [self.title]
        for name, *cells in rows if any(rows[0]) else rows[1:]:
            padded = [f"{cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True)]
            lines.append("  ".join([f"  {name:<{widths[0]}}", *padded]).rstrip())
        return "\n".join(lines)

    def markdown(self) -> str:
        """Return a Markdown heading and table."""
        heads, *rows = [[_escape(cell) for cell in row] for row in self.rows]
        lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
        return "\n".join([f"## {_escape(self.title)}", "", *(f"| {' | '.join(cells)} |" for cells in lines), ""])


def ensemble_tables(
    result: EnsembleEvaluation,
    title: str,
    names: Sequence[str],
    labels: Sequence[str],
    numbers: Sequence[int] | None = None,
    before: Mapping[str, float] | None = None,
) -> list[Table]:
    """Return tables of scores, the vote's gain, agreement and, for a task with labels, the vote's confusion.

    Args:
      result: the result of `evaluate_ensemble`.
      title: the title of the table of scores.
      names: the file or settings of each member.
      labels: the task's labels.
      numbers: the members' numbers. The default is 0, 1 and so on.
      before: the scores of the base alone.
    """
    numbers = range(len(names)) if numbers is None else numbers
    called = [f"member {number}" for number in numbers]
    same = [[name, *(f"{share:.4f}" for share in row)] for name, row in zip(called, result.agreement, strict=True)]
    tables = [
        _scores(result, title, names, called, before),
        _gains(result, called[result.best]),
        Table("share of the same answers", [["", *map(str, numbers)], *same]),
    ]
    if result.confusion is not None:
        counts = [[label, *map(str, row)] for label, row in zip(labels, result.confusion[-1], strict=True)]
        tables.append(
            Table("the vote's answers (columns) to what was expected (rows)", [["", *labels, "other"], *counts])
        )
    return tables


def member_rows(called: Sequence[str], names: Sequence[str]) -> list[str]:
    """Return row names such as `member 0 (seed 0)`."""
    return [f"{number} ({name})" if name else number for number, name in zip(called, names, strict=True)]


def score_table(title: str, rows: Mapping[str, Mapping[str, float]]) -> Table:
    """Return a table with a row for each name and a column for each metric; `-` marks a missing score."""
    metrics = list(dict.fromkeys(metric for scores in rows.values() for metric in scores))
    cells = [[name, *(_number(scores.get(metric)) for metric in metrics)] for name, scores in rows.items()]
    return Table(title, [["", *metrics], *cells])


def score_list(title: str, scores: Mapping[str, float]) -> Table:
    """Return a table with a row for each metric."""
    return Table(title, [["", ""], *([metric, _number(value)] for metric, value in scores.items())])


def _scores(
    result: EnsembleEvaluation,
    title: str,
    names: Sequence[str],
    called: Sequence[str],
    before: Mapping[str, float] | None,
) -> Table:
    members = dict(zip(member_rows(called, names), (member.scores for member in result.members), strict=True))
    return score_table(
        title,
        ({"base": before} if before else {})
        | members
        | {
            "average": result.average,
            f"best ({called[result.best]})": result.members[result.best].scores,
            "vote": result.vote.scores,
        },
    )


def _gains(result: EnsembleEvaluation, best: str) -> Table:
    vote, metric = result.vote.scores[result.metric], result.metric
    gains = {
        f"vote minus best ({best})": (vote - result.members[result.best].scores[metric], *result.intervals["best"]),
        "vote minus average": (vote - result.average[metric], *result.intervals["average"]),
    }
    rows = [[name, *(f"{value:+.4f}" for value in values)] for name, values in gains.items()]
    heads = ["", metric, f"{100 * CONFIDENCE:.0f} % from", "to"]
    return Table("the vote's gain", [heads, *rows, ["oracle: a member is right", f"{result.oracle:.4f}", "", ""]])


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _escape(text: str) -> str:
    """Escape a text for a Markdown cell or heading."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(text.split()))
