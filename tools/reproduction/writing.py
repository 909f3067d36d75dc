"""A table as Markdown, with the paper's figures beside its own, and as a plot."""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from prompt_jax.metrics import benchmark_average, is_share

from .running import Scores
from .table import Column, Printed, Table

# For people who cannot tell red from green (Okabe and Ito 2008).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")

# Metrics whose models are not part of this package.
NOT_COMPUTED = ("moverscore", "bertscore", "bleurt")


def values(column: Column, table: Table, scores: Scores) -> list[float]:
    """The observations of a cell, in percent where they are shares; none where there are no scores."""
    if column.task is not None:
        scale = 100 if is_share(column.metric) else 1
        return [scale * value for value in scores.get((column.task, column.split, column.metric), [])]
    parts = [part for part in table.columns if part.task is not None]
    if any((part.task, part.split, part.metric) not in scores for part in parts):
        return []
    averages = []
    for number in range(min(len(scores[str(part.task), part.split, part.metric]) for part in parts)):
        tasks: dict[str, dict[str, float]] = {}
        for part in parts:
            tasks.setdefault(str(part.task), {})[part.metric] = scores[str(part.task), part.split, part.metric][number]
        averages.append(100 * benchmark_average(tasks))
    return averages


def cell(observed: Sequence[float]) -> str:
    """Mean and sample standard deviation; how many observations there are is in the row."""
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


def markdown(table: Table, scores: Sequence[Scores], missing: Mapping[str, str], plot: str | None) -> str:
    """The table: each column of its own figures, beside that of the paper where it prints any.

    Args:
      table: what is written.
      scores: of each row.
      missing: why rows have none, by their names.
      plot: the plot's path, as seen from the text's folder.
    """
    told = [any(column.title in row.paper for row in table.rows) for column in table.columns]
    head, alignment = ["", "n"], ["---", "--:"]
    for column, paper in zip(table.columns, told, strict=True):
        head += [column.title, f"{column.title}, paper"][: 1 + paper]
        alignment += ["--:"] * (1 + paper)
    lines = [f"### {table.title}", "", table.source, "", _line(head), _line(alignment)]
    for row, own in zip(table.rows, scores, strict=True):
        cells = [row.name, str(max(map(len, own.values()))) if own else ""]
        for column, paper in zip(table.columns, told, strict=True):
            found = values(column, table, own)
            empty = "not computed" if column.metric in NOT_COMPUTED and own else ""
            cells += [cell(found) or empty, printed(row.paper.get(column.title))][: 1 + paper]
        lines.append(_line(cells))
    lines += ["", "Means and sample standard deviations of n prompts; shares are in percent."]
    lines += [f"\n{note}" for note in table.notes]
    lines += [f"\n{name}: not run, {why}" for name, why in missing.items()]
    if plot is not None:
        lines += ["", f"![{table.title}]({plot})"]
    return "\n".join(lines) + "\n"


def draw(table: Table, scores: Sequence[Scores], path: Path) -> bool:
    """Writes the plot of the first column as SVG; not where there is nothing to draw. Returns whether it did."""
    column = table.columns[0]
    own = [values(column, table, each) for each in scores]
    figures = [row.paper.get(column.title) for row in table.rows]
    if not any(own) and all(figure is None for figure in figures):
        return False
    figure = Figure(figsize=(6.4, 3.6 if table.x else 0.9 + 0.36 * len(table.rows)), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#dddddd", linewidth=0.8, axis="y" if table.x else "x")
    axes.set_axisbelow(True)
    (_draw_lines if table.x else _draw_points)(axes, table, own, figures)
    unit = f"{column.title} (%)" if column.task is None or is_share(column.metric) else column.title
    (axes.set_ylabel if table.x else axes.set_xlabel)(unit)
    figure.savefig(path, format="svg", metadata={"Date": None})
    return True


def _draw_lines(axes, table: Table, own: Sequence[Sequence[float]], figures: Sequence[Printed | None]) -> None:
    for number, series in enumerate(dict.fromkeys(row.series for row in table.rows)):
        colour = COLOURS[number % len(COLOURS)]
        points = [(row.x, o, f) for row, o, f in zip(table.rows, own, figures, strict=True) if row.series == series]
        drawn = [(x, statistics.mean(o), _deviation(o)) for x, o, _ in points if o]
        if drawn:
            x, mean, deviation = zip(*drawn, strict=True)
            axes.errorbar(x, mean, deviation, color=colour, marker="o", capsize=3, label=series or "here")
        paper = [(x, f[0] if isinstance(f, tuple) else f) for x, _, f in points if f is not None]
        if paper:
            label = f"{series}, paper".strip(", ")
            axes.plot(*zip(*paper, strict=True), color=colour, marker="D", markersize=4, linestyle=":", label=label)
    axes.set_xlabel(table.x)
    places = sorted({row.x for row in table.rows if row.x is not None})
    if places[0] > 0 and places[-1] / places[0] > 20:
        axes.set_xscale("log")
    axes.set_xticks(places, [f"{place:g}" for place in places])
    axes.minorticks_off()
    axes.legend(frameon=False, fontsize=8)


def _draw_points(axes, table: Table, own: Sequence[Sequence[float]], figures: Sequence[Printed | None]) -> None:
    rows = range(len(table.rows))
    drawn = [(row, statistics.mean(own[row]), _deviation(own[row])) for row in rows if own[row]]
    if drawn:
        y, mean, deviation = zip(*drawn, strict=True)
        axes.errorbar(mean, y, xerr=deviation, color=COLOURS[0], marker="o", linestyle="", capsize=3, label="here")
    paper = [(f[0] if isinstance(f, tuple) else f, row) for row, f in zip(rows, figures, strict=True) if f is not None]
    if paper:
        axes.plot(*zip(*paper, strict=True), color=COLOURS[1], marker="D", linestyle="", label="paper")
    axes.set_yticks(list(rows), [row.name for row in table.rows])
    axes.set_ylim(len(table.rows) - 0.5, -0.5)
    axes.legend(frameon=False, fontsize=8)


def _deviation(observed: Sequence[float]) -> float:
    return statistics.stdev(observed) if len(observed) > 1 else math.nan


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
