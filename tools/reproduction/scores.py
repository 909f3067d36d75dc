"""The scores of rows: read from runs and evaluations, or supplied by the user."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from prompt_jax.errors import UserError
from prompt_jax.metrics import benchmark_average, is_share
from prompt_jax.report.run_files import EnsembleSummary, Summary
from tools.reproduction.table import SENTINEL, Column, Row, Table

# By task, split and metric: one value per observation; NaN for a member that diverged.
Scores = dict[tuple[str, str, str], list[float]]


def training_scores(summary: Summary, row: Row) -> Scores:
    """Return the scores of a run on its tests, and on validation data at each member's best step."""
    scores: Scores = {}
    diverged = [member.status == "diverged" for member in summary.members]
    chosen = [n for n, member in enumerate(summary.members) if row.where.items() <= member.settings.items()]

    def of_member(number: int, values: Mapping[str, float]) -> Mapping[str, float]:
        return dict.fromkeys(values, math.nan) if diverged[number] else values

    for test in summary.tests:
        match row.of:
            case "vote" if test.ensemble is not None:
                selected = [test.ensemble.vote]
            case "best":
                selected = [test.scores[test.members.index(test.best)]]
            case _:
                pairs = zip(test.members, test.scores, strict=True)
                selected = [of_member(number, each) for number, each in pairs if number in chosen]
        _add(scores, test.task, "test", selected)
    if row.of != "members":
        return scores
    for number in chosen:
        member = summary.members[number]
        validation = of_member(number, member.validation)
        _add(scores, member.task, "validation", [validation])
        # Members trained on a mixture have scores of each of its tasks, with the task's name as prefix.
        parts = {name.partition("/")[0] for name in validation if "/" in name}
        for part in parts - {"rank"}:
            of_part = {n.removeprefix(f"{part}/"): v for n, v in validation.items() if n.startswith(f"{part}/")}
            _add(scores, part, "validation", [of_part])
    return scores


def vote_gain(task: str, ensemble: EnsembleSummary, best: Mapping[str, float]) -> str:
    """Describe how much better a vote is than the members' average and the best member, by its first metric."""
    metric = next(iter(ensemble.vote))
    points = 100 if is_share(metric) else 1
    against = []
    for other, score in {"average": ensemble.average[metric], "best": best[metric]}.items():
        low, high = (points * each for each in ensemble.intervals[other])  # type: ignore[index]
        against.append(f"{points * (ensemble.vote[metric] - score):+.2f} ({low:+.2f} to {high:+.2f}) over the {other}")
    return f"{task}, {metric}: {', '.join(against)}"


def evaluation_scores(result: Mapping[str, Any], row: Row) -> Scores:
    """Return the scores that `prompt-jax evaluate --out` wrote."""
    ensemble = result.get("ensemble")
    selected = [each["scores"] for each in result.get("members", result.get("ways"))]
    if row.of == "vote" and ensemble is not None:
        selected = [ensemble["vote"]]
    elif row.of == "best" and ensemble is not None:
        selected = [selected[ensemble["best"]]]
    scores: Scores = {}
    _add(scores, result["task"], result["split"], selected)
    return scores


def _add(scores: Scores, task: str, split: str, selected: Sequence[Mapping[str, float]]) -> None:
    for metric in selected[0] if selected else ():
        scores.setdefault((task.removesuffix(SENTINEL), split, metric), []).extend(each[metric] for each in selected)


def observations(column: Column, table: Table, scores: Scores) -> list[float]:
    """Return the observations of a cell in the table's units, without diverged members."""
    if column.task is not None:
        values = scores.get((column.task, column.split, column.metric), [])
        return [column.scale * value for value in values if not math.isnan(value)]
    parts = [part for part in table.columns if part.task is not None]
    columns = [scores.get((str(part.task), part.split, part.metric), []) for part in parts]
    averages = []
    # The n-th observations of all tasks have the same seed.
    for seed in zip(*columns, strict=False):
        tasks: dict[str, dict[str, float]] = {}
        for part, value in zip(parts, seed, strict=True):
            tasks.setdefault(str(part.task), {})[part.metric] = value
        averages.append(100 * benchmark_average(tasks))
    return [average for average in averages if not math.isnan(average)]


def supply(table: Table, scores: Sequence[Scores], supplied: Any) -> None:
    """Add the figures that the user supplied to the scores of the rows.

    Raises:
      UserError: malformed figures, or an unknown row or column.
    """
    if not isinstance(supplied, dict):
        raise UserError(f"--supplied: expected {{ROW: {{COLUMN: [FIGURE, ...]}}}}, not {supplied!r}")
    columns = {column.title: column for column in table.columns}
    rows = {row.name: of_row for row, of_row in zip(table.rows, scores, strict=True)}
    for row, figures in supplied.items():
        if row not in rows or not isinstance(figures, dict):
            raise UserError(f"--supplied: expected figures of a row, not of {row!r}; rows are {', '.join(rows)}")
        for title, values in figures.items():
            column = columns.get(title)
            if column is None or column.task is None:
                raise UserError(
                    f"--supplied: {title!r} is not the column of a metric; columns are {', '.join(columns)}"
                )
            numbers = isinstance(values, list) and all(type(value) in (int, float) for value in values)
            if not numbers or not all(map(math.isfinite, values)):
                raise UserError(f"--supplied: {row!r}, {title!r} must be a list of numbers, not {values!r}")
            rows[row][column.task, column.split, column.metric] = [value / column.scale for value in values]
