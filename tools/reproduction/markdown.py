"""A table as Markdown, with the paper's figures beside its own."""

import statistics
from collections.abc import Mapping, Sequence

from prompt_jax.errors import UserError
from tools.reproduction.scores import Scores, observations
from tools.reproduction.table import Printed, Table


def cell(observed: Sequence[float]) -> str:
    """Format the mean and sample standard deviation of the observations."""
    if not observed:
        return ""
    mean = f"{statistics.mean(observed):.2f}"
    return f"{mean} ± {statistics.stdev(observed):.2f}" if len(observed) > 1 else mean


def printed(figure: Printed | None) -> str:
    match figure:
        case None:
            return ""
        case (mean, deviation):
            return f"{mean:g} ± {deviation:g}"
        case _:
            return f"{figure:g}"


def markdown(table: Table, scores: Sequence[Scores], missing: Mapping[str, Sequence[str]], plot: str | None) -> str:
    """Format a table, with the paper's figures beside each column for which it prints any.

    Args:
      table: the table.
      scores: scores of each row.
      missing: reasons for missing figures, by row name.
      plot: path of the plot, relative to the Markdown file's folder.
    """
    printed_columns = [any(column.title in row.paper for row in table.rows) for column in table.columns]
    head, alignment = ["", "n"], ["---", "--:"]
    for column, paper in zip(table.columns, printed_columns, strict=True):
        head += [column.title, f"{column.title}, paper"][: 1 + paper]
        alignment += ["--:"] * (1 + paper)
    lines = [f"### {table.title}", "", table.source, "", _line(head), _line(alignment)]
    for row, of_row in zip(table.rows, scores, strict=True):
        cells = [
            row.name,
            str(max((len(observations(column, table, of_row)) for column in table.columns), default=0) or ""),
        ]
        for column, paper in zip(table.columns, printed_columns, strict=True):
            values = observations(column, table, of_row)
            empty = "not computed" if of_row and column.task is not None else ""
            cells += [cell(values) or empty, printed(row.paper.get(column.title))][: 1 + paper]
        lines.append(_line(cells))
    lines += ["", "Mean ± sample standard deviation of n observations; shares are in percent."]
    lines += [f"\n{note}" for note in table.notes]
    lines += [f"\n{name}: {'; '.join(why)}" for name, why in missing.items()]
    if plot is not None:
        lines += ["", f"![{table.title}]({plot})"]
    return "\n".join(lines) + "\n"


def commands_block(commands: Sequence[str]) -> str:
    lines = "\n".join(f"    {command}" for command in commands)
    return f"\n<details><summary>Commands</summary>\n\n{lines}\n\n</details>\n"


def put(text: str, name: str, table: str) -> str:
    """Return the text with the table between its two marks, replacing what was there.

    Raises:
      UserError: the text has no such marks.
    """
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    before, opened, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not opened or not closed:
        raise UserError(f"--into: the file has no place for the table: expected {begin.strip()} and, below it, {end}")
    return f"{before}{begin}{table}{end}{after}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
