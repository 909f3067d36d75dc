"""The scores of rows: read from runs and evaluations, or supplied by the user."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from prompt_jax.errors import UserError
from prompt_jax.metrics import benchmark_average, is_share
from prompt_jax.report.run_files import EnsembleSummary, Summary
from tools.reproduction.table import SENTINEL, Column, Row, Table

# By task, split and metric: a value for each observation; NaN for a member that diverged.
Scores = dict[tuple[str, str, str], list[float]]


def of_training(summary: Summary, row: Row) -> Scores:
    """The scores of a run: of its tests, and on validation data those of each member's best step."""
    scores: Scores = {}
    diverged = [member.status == "diverged" for member in summary.members]
    chosen = [n for n, member in enumerate(summary.members) if row.where.items() <= member.settings.items()]

    def of_member(number: int, own: Mapping[str, float]) -> Mapping[str, float]:
        return dict.fromkeys(own, math.nan) if diverged[number] else own

    for test in summary.tests:
        match row.of:
            case "vote" if test.ensemble is not None:
                own = [test.ensemble.vote]
            case "best":
                own = [test.scores[test.members.index(test.best)]]
            case _:
                pairs = zip(test.members, test.scores, strict=True)
                own = [of_member(number, each) for number, each in pairs if number in chosen]
        _add(scores, test.task, "test", own)
    if row.of != "members":
        return scores
    for number in chosen:
        member = summary.members[number]
        validation = of_member(number, member.validation)
        _add(scores, member.task, "validation", [validation])
        # Members that are trained on a mixture have scores of each of its tasks, under its name.
        parts = {name.partition("/")[0] for name in validation if "/" in name}
        for part in parts - {"rank"}:
            own_part = {n.removeprefix(f"{part}/"): v for n, v in validation.items() if n.startswith(f"{part}/")}
            _add(scores, part, "validation", [own_part])
    return scores


def gain(task: str, ensemble: EnsembleSummary, best: Mapping[str, float]) -> str:
    """By how much a vote is better than the members' average and than the best of them, by its first metric."""
    metric = next(iter(ensemble.vote))
    points = 100 if is_share(metric) else 1
    against = []
    for other, score in {"average": ensemble.average[metric], "best": best[metric]}.items():
        low, high = (points * each for each in ensemble.intervals[other])  # type: ignore[index]
        against.append(f"{points * (ensemble.vote[metric] - score):+.2f} ({low:+.2f} to {high:+.2f}) over the {other}")
    return f"{task}, {metric}: {', '.join(against)}"


def of_evaluation(found: Mapping[str, Any], row: Row) -> Scores:
    """The scores that `prompt-jax evaluate --out` wrote."""
    ensemble = found.get("ensemble")
    own = [each["scores"] for each in found.get("members", found.get("ways"))]
    if row.of == "vote" and ensemble is not None:
        own = [ensemble["vote"]]
    elif row.of == "best" and ensemble is not None:
        own = [own[ensemble["best"]]]
    scores: Scores = {}
    _add(scores, found["task"], found["split"], own)
    return scores


def _add(scores: Scores, task: str, split: str, own: Sequence[Mapping[str, float]]) -> None:
    for metric in own[0] if own else ():
        scores.setdefault((task.removesuffix(SENTINEL), split, metric), []).extend(each[metric] for each in own)


def values(column: Column, table: Table, scores: Scores) -> list[float]:
    """The observations of a cell, in percent where they are shares, without those that diverged."""
    if column.task is not None:
        found = scores.get((column.task, column.split, column.metric), [])
        return [column.scale * value for value in found if not math.isnan(value)]
    parts = [part for part in table.columns if part.task is not None]
    found = [scores.get((str(part.task), part.split, part.metric), []) for part in parts]
    averages = []
    # The n-th observation of each task is of the n-th seed.
    for seed in zip(*found, strict=False):
        tasks: dict[str, dict[str, float]] = {}
        for part, value in zip(parts, seed, strict=True):
            tasks.setdefault(str(part.task), {})[part.metric] = value
        averages.append(100 * benchmark_average(tasks))
    return [average for average in averages if not math.isnan(average)]


def supply(table: Table, scores: Sequence[Scores], supplied: Any) -> None:
    """Puts figures that a user has among the scores of the rows.

    Raises:
      UserError: they are not what they should be, or name what is not in the table.
    """
    if not isinstance(supplied, dict):
        raise UserError(f"--supplied: expected {{ROW: {{COLUMN: [FIGURE, ...]}}}}, not {supplied!r}")
    columns = {column.title: column for column in table.columns}
    rows = {row.name: own for row, own in zip(table.rows, scores, strict=True)}
    for row, figures in supplied.items():
        if row not in rows or not isinstance(figures, dict):
            raise UserError(f"--supplied: {row!r} is no row with its figures; rows are {', '.join(rows)}")
        for title, values in figures.items():
            column = columns.get(title)
            if column is None or column.task is None:
                raise UserError(f"--supplied: no column {title!r} of a metric; there are {', '.join(columns)}")
            numbers = isinstance(values, list) and all(type(value) in (int, float) for value in values)
            if not numbers or not all(map(math.isfinite, values)):
                raise UserError(f"--supplied: {row!r}, {title!r} must be a list of numbers, not {values!r}")
            rows[row][column.task, column.split, column.metric] = [value / column.scale for value in values]
