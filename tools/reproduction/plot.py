"""Plots a table."""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tools.reproduction.scores import Scores, observations
from tools.reproduction.table import Printed, Table

# A palette for color-blind readers (Okabe and Ito 2008).
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


def draw(table: Table, scores: Sequence[Scores], path: Path) -> bool:
    """Write the plot as SVG: lines if rows have an x, otherwise points. Returns whether there was anything to draw.

    The plot shows the first column. With few rows it shows all columns of the same metric, as groups of points.
    """
    columns = [column for column in table.columns if column.metric == table.columns[0].metric]
    if table.x or len(table.rows) > GROUPED:
        columns = columns[:1]
    ours = [[observations(column, table, each) for column in columns] for each in scores]
    paper = [[row.paper.get(column.title) for column in columns] for row in table.rows]
    if not any(map(any, ours)) and all(figure is None for row in paper for figure in row):
        return False
    series = [Series(*each) for each in zip([row.name for row in table.rows], ours, paper, strict=True)]
    points = max(len(columns) * len(series), 2) if len(columns) > 1 else len(series)
    figure = Figure(figsize=(6.4, 3.6 if table.x else 1.1 + 0.3 * points), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#dddddd", linewidth=0.8, axis="y" if table.x else "x")
    axes.set_axisbelow(True)
    if table.x:
        _draw_lines(axes, table, series)
    elif len(columns) > 1:
        _draw_groups(axes, [column.title for column in columns], series)
    else:
        _draw_points(axes, series)
    first = columns[0]
    name = table.plotted or (first.title if len(columns) == 1 else first.metric)
    unit = f"{name} (%)" if first.scale == 100 else name
    several = any(len(each) > 1 for row in ours for each in row)
    (axes.set_ylabel if table.x else axes.set_xlabel)(f"{unit}, mean ± std." if several else unit)
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > 1:
        axes.legend(handles, labels, frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    figure.savefig(path, format="svg", metadata={"Date": None})
    return True


GROUPED = 3  # most rows that are drawn as groups of points


class Series(NamedTuple):
    """The figures of a row that are drawn, per column."""

    name: str
    ours: list[list[float]]
    paper: list[Printed | None]


def _draw_lines(axes: Axes, table: Table, drawn: Sequence[Series]) -> None:
    places = sorted({row.x for row in table.rows if row.x is not None})
    low, high = places[0], places[-1]
    logarithmic = low > 0 and high / low >= 10
    names = list(dict.fromkeys(row.series for row in table.rows))
    for number, name in enumerate(names):
        color = COLORS[number % len(COLORS)]
        of_line = [(row.x, each) for row, each in zip(table.rows, drawn, strict=True) if row.series == name]
        ours = [(x, each.ours[0]) for x, each in of_line if each.ours[0]]
        if ours:
            aside = 0.01 * (number - (len(names) - 1) / 2)  # offset along the axis, so that error bars do not overlap
            at = [x * (high / low) ** aside if logarithmic else x + (high - low) * aside for x, _ in ours]
            means = [statistics.mean(each) for _, each in ours]
            deviations = [_deviation(each) for _, each in ours]
            axes.errorbar(at, means, deviations, color=color, marker="o", capsize=3, label=name)
        paper = [(x, _mean(each.paper[0])) for x, each in of_line if each.paper[0] is not None]
        if paper:
            axes.plot(*zip(*paper, strict=True), color=color, linestyle=":", label=f"{name}, paper", **PAPER)
    axes.set_xlabel(table.x)
    if logarithmic:
        axes.set_xscale("log")
    if len(places) <= 8:
        axes.set_xticks(places, [f"{place:,g}" for place in places])
        axes.minorticks_off()


def _draw_points(axes: Axes, drawn: Sequence[Series]) -> None:
    for place, series in enumerate(drawn):
        _point(axes, place, series, 0, COLORS[0], COLORS[1], "here", "paper")
    axes.set_yticks(range(len(drawn)), [series.name for series in drawn])
    axes.set_ylim(len(drawn) - 0.5, -0.5)


def _draw_groups(axes: Axes, titles: Sequence[str], drawn: Sequence[Series]) -> None:
    for number, series in enumerate(drawn):
        color, offset = COLORS[number], 0.5 * ((number + 0.5) / len(drawn) - 0.5)
        for group in range(len(titles)):
            _point(axes, group + offset, series, group, color, color, series.name, f"{series.name}, paper")
    axes.set_yticks(range(len(titles)), titles)
    axes.set_ylim(len(titles) - 0.5, -0.5)


def _point(
    axes: Axes, place: float, series: Series, column: int, color: str, color_of_paper: str, name: str, paper: str
) -> None:
    """Draw a row's mean and deviation, and the paper's figure, in one column. Each name enters the legend once."""
    in_legend = axes.get_legend_handles_labels()[1]
    if ours := series.ours[column]:
        label = None if name in in_legend else name
        mean, deviation = [statistics.mean(ours)], [_deviation(ours)]
        axes.errorbar(mean, [place], xerr=deviation, color=color, marker="o", linestyle="", capsize=3, label=label)
    if (figure := series.paper[column]) is not None:
        label = None if paper in in_legend else paper
        axes.plot([_mean(figure)], [place], color=color_of_paper, linestyle="", label=label, **PAPER)


PAPER: dict[str, Any] = {"marker": "D", "markersize": 5, "markerfacecolor": "none"}


def _mean(figure: Printed) -> float:
    return figure[0] if isinstance(figure, tuple) else figure


def _deviation(observed: Sequence[float]) -> float:
    return statistics.stdev(observed) if len(observed) > 1 else math.nan
