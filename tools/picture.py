"""Draw the README's picture from a run: `python -m tools.picture runs/demo docs/demo.svg`."""

import sys
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from prompt_jax.report.metrics_log import read_log
from prompt_jax.report.run_files import TaskScores, read_summary

MEMBERS = ("#4c72b0", "#dd8452", "#55a868", "#8172b3", "#937860")
BASE, AVERAGE, VOTE = "#b0b0b0", "#7f7f7f", "#c44e52"
STYLE = {
    "svg.fonttype": "none",  # selectable text
    "svg.hashsalt": "prompt_jax",  # deterministic ids
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def main() -> None:
    folder, path = map(Path, sys.argv[1:])
    draw(folder, path)
    print(f"wrote {path}")


def draw(folder: Path, path: Path) -> None:
    """Draw the loss and validation curves of an ensemble's members, and the members beside their vote."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 2.9), layout="constrained")
        loss, score, test = figure.subplots(1, 3, width_ratios=(1, 1, 1.25))
        summary, lines = read_summary(folder), read_log(folder)
        metric = summary.tests[0].metric
        _curves(loss, lines, "train/loss", "training loss, nats per token")
        loss.legend(frameon=False)
        _curves(score, lines, f"validation/{metric}", f"validation {metric}")
        score.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        _bars(test, summary.tests[0])
        figure.savefig(path, metadata={"Date": None})


def _curves(axes: Axes, lines: list[dict], name: str, title: str) -> None:
    for number in sorted({line["member"] for line in lines}):
        points = [(line["step"], line[name]) for line in lines if line["member"] == number and name in line]
        marker = "o" if len(points) < 10 else ""
        axes.plot(*zip(*points, strict=True), color=_color(number), marker=marker, label=f"member {number}")
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel("step")
    axes.set_ylim(bottom=0)


def _bars(axes: Axes, test: TaskScores) -> None:
    """Draw test scores. The base is scored by its ranking of the labels, because it never answers with one."""
    assert test.ensemble is not None
    metric = test.metric
    bars = [("base (ranking)", test.before.get(f"rank/{metric}", test.before[metric]), BASE)]
    bars += [(f"member {n}", scores[metric], _color(n)) for n, scores in zip(test.members, test.scores, strict=True)]
    bars += [("average", test.average[metric], AVERAGE), ("vote", test.ensemble.vote[metric], VOTE)]
    names, values, colors = zip(*bars, strict=True)
    drawn = axes.barh(names, values, color=colors)
    axes.bar_label(drawn, [f"{value:.1%}" for value in values], padding=3)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    axes.set_title(f"test {metric}, {test.examples:,} examples", loc="left", fontsize=10)


def _color(number: int) -> str:
    return MEMBERS[number % len(MEMBERS)]


if __name__ == "__main__":
    main()
