"""The report's overview: members, training curves, score cards, and a table of several tests."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from prompt_jax.metrics import is_share
from prompt_jax.report import plots
from prompt_jax.report.formatting import gain_text, metric_title, value_text
from prompt_jax.report.plots import Curve
from prompt_jax.report.run_files import Summary, TaskScores
from prompt_jax.task_format import LOWER_IS_BETTER

_MAX_CARDS = 8  # tasks with their own card


def varied_settings(summary: Summary) -> list[str]:
    """Return the fields in which members differ, without the task."""
    names = dict.fromkeys(name for member in summary.members for name in member.settings)
    return [name for name in names if name != "data.task"]


def best_member(summary: Summary) -> int:
    """Return the number of the member with the best validation score; 0 if the members' tasks differ."""
    scores = [member.best.score for member in summary.members]
    return int(np.argmax(scores)) if len(summary.tasks) == 1 else 0


def score_shades(summary: Summary) -> list[float]:
    """Return each member's validation score, scaled from 0 (worst) to 1 (best); all 0 if the members' tasks differ."""
    scores = np.array([member.best.score for member in summary.members])
    width = np.ptp(scores)
    if len(summary.tasks) > 1 or not width > 0:
        return [0.0] * len(scores)
    return ((scores - scores.min()) / width).tolist()


def training_curves(lines: Sequence[Sequence[dict[str, Any]]], summary: Summary) -> list[Markup]:
    """Return plots of losses, the validation score and the learning rate by step, if they were logged.

    A constant learning rate is not plotted.
    """
    losses, validation, scores, rates = [], [], [], []
    for number, (logged, member) in enumerate(zip(lines, summary.members, strict=True)):
        best = member.best
        steps, values = _series(logged, "train/loss")
        losses.append(Curve(number, steps, values, end=member.status))
        steps, values = _series(logged, "validation/loss", f"validation/{member.task}/loss")
        validation.append(Curve(number, steps, values, end=member.status))
        steps, values = _series(logged, "train/learning_rate")
        rates.append(Curve(number, steps, values))
        # With `prompt.per_task` it is logged as TASK/METRIC.
        steps, values = _series(logged, f"validation/{best.metric}", f"validation/{member.task}/{best.metric}")
        mark = (best.step, best.score) if math.isfinite(best.score) else None
        scores.append(Curve(number, steps, values, mark, member.status))
    names = {metric_title(member.best.metric) for member in summary.members}
    percent = all(is_share(member.best.metric) for member in summary.members)
    made = []
    if any(len(curve.steps) for curve in losses):
        made.append(plots.loss_plot(losses, validation[0] if len(validation) == 1 else None))
    if len(validation) > 1 and any(len(curve.steps) for curve in validation):
        made.append(plots.member_plot(validation, "Validation loss", "loss per token, nats", "validation-loss"))
    if any(len(curve.steps) for curve in scores):
        made.append(plots.score_plot(scores, names.pop() if len(names) == 1 else "score", percent=percent))
    if any(len(set(curve.values.tolist())) > 1 for curve in rates):
        made.append(plots.member_plot(rates, "Learning rate", "learning rate", "rate"))
    return made


def is_smoothed(lines: Sequence[Sequence[dict[str, Any]]]) -> bool:
    """Return whether the plot of the training loss smooths a curve."""
    return any(len(_series(logged, "train/loss")[0]) >= plots.SMOOTHED for logged in lines)


def _series(lines: Sequence[dict[str, Any]], *names: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps and finite values of a quantity that was logged under one of the names."""
    logged = [(line["step"], line[name]) for line in lines for name in names if name in line]
    pairs = [(step, value) for step, value in logged if math.isfinite(value)]
    steps, values = zip(*pairs, strict=True) if pairs else ((), ())
    return np.array(steps, int), np.array(values, float)


@dataclasses.dataclass(frozen=True)
class Card:
    """One score in large type. `before` is None where the base was not evaluated. `gain`: whether it is better."""

    name: str
    before: str | None
    after: str
    note: str
    gain: bool = False


def score_cards(summary: Summary) -> list[Card]:
    """Return cards for the tasks that were trained on, then for other tasks, then for the validation score."""
    trained = [test for test in summary.tests if test.trained_on]
    shifted = [test for test in summary.tests if not test.trained_on]
    one = len(summary.tasks) == 1
    cards = []
    if len(trained) > 1 and _comparable(trained):
        cards.append(_mean_card(f"{len(trained)} tasks", trained, "average of the tests of each task"))
    if len(trained) == 1 and one:
        cards += _test_cards(trained[0])
    elif len(trained) <= _MAX_CARDS:
        cards += [_task_card(test) for test in trained]
    if shifted and _comparable(shifted):
        name = f"{len(shifted)} other task{'s' if len(shifted) > 1 else ''}"
        cards.append(_mean_card(name, shifted, f"{'average, ' if len(shifted) > 1 else ''}not trained on"))
    if one:
        number = best_member(summary)
        best, status = summary.members[number].best, summary.members[number].status
        whose = f"member {number}, " if len(summary.members) > 1 else ""
        ended = f", {status} at {summary.members[number].steps:,}" if status not in ("training", "finished") else ""
        name = f"Validation {metric_title(best.metric)}"
        cards.append(
            Card(name, None, value_text(best.score, best.metric), f"{whose}at step {best.step:,}, the best{ended}")
        )
    return cards


def _test_cards(test: TaskScores) -> list[Card]:
    """Return the cards of a run's only task: first metric, the same by ranking, and the share of invalid answers."""
    metric, ensemble, several = test.metric, test.ensemble, len(test.members) > 1
    notes = {metric: answer_source(test) if several else "of generated answers"}
    ranking = "vote on the most probable labels" if ensemble is not None else "the most probable label as the answer"
    notes.setdefault(f"rank/{metric.removeprefix('rank/')}", ranking)
    if not several:
        notes["invalid"] = "of generated answers"
    cards = [
        Card(
            f"Test {metric_title(name)}",
            value_text(test.before.get(name), name),
            value_text(test.after[name], name),
            note,
            is_gain(test.before.get(name), test.after[name], name),
        )
        for name, note in notes.items()
        if name in test.after
    ]
    if ensemble is not None:
        best = test.scores[test.members.index(ensemble.best)]
        spread = f"± {gain_text(deviation(test, metric), metric, unit=True)} over {len(test.members)} members"
        cards[1:1] = [
            Card("Average member", None, value_text(test.average[metric], metric), spread),
            Card(
                "Best member",
                None,
                value_text(best[metric], metric),
                f"member {ensemble.best}, the best on this test",
            ),
        ]
    return cards


def _task_card(test: TaskScores) -> Card:
    name, before, after = test.metric, test.before.get(test.metric), test.after[test.metric]
    return Card(
        test.task,
        value_text(before, name),
        value_text(after, name),
        f"{metric_title(name)}, {answer_source(test)}",
        is_gain(before, after, name),
    )


def is_gain(before: float | None, after: float | None, metric: str) -> bool:
    """Return whether a metric is better after training than that of the base; false where one is not known."""
    if before is None or after is None:
        return False
    lower = metric.removeprefix("rank/") in (*LOWER_IS_BETTER, "invalid")
    return after < before if lower else after > before


def _comparable(tests: Sequence[TaskScores]) -> bool:
    """Return whether the tests' first metrics can be averaged: they are the same metric, or shares."""
    return len({test.metric for test in tests}) == 1 or all(is_share(test.metric) for test in tests)


def _mean_card(name: str, tests: Sequence[TaskScores], note: str) -> Card:
    """Return a card with the means of the tests' first metrics."""
    before = float(np.mean([test.before.get(test.metric, math.nan) for test in tests]))
    after = float(np.mean([test.after[test.metric] for test in tests]))
    metric = tests[0].metric
    return Card(name, value_text(before, metric), value_text(after, metric), note, is_gain(before, after, metric))


def answer_source(test: TaskScores) -> str:
    """Return a text that says which member or vote the test's `after` belongs to."""
    if test.ensemble is not None:
        return f"{test.ensemble.vote_rule.replace('-', ' ')} vote of {len(test.members)} members"
    return f"average of {len(test.members)} members" if len(test.members) > 1 else "with its prompt"


def deviation(test: TaskScores, name: str) -> float | None:
    """Return a metric's sample standard deviation over the members; None for a single member."""
    values = [scores[name] for scores in test.scores]
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


@dataclasses.dataclass(frozen=True)
class TaskTable:
    """Scores of tests by one metric, one row per task. Standard deviations are over members."""

    metric: str
    tests: list[TaskScores]
    deviations: list[float | None]


def task_tables(tests: Sequence[TaskScores]) -> list[TaskTable]:
    """Return tables by each test's first metric and by ranking; none for a single test."""
    if len(tests) < 2:
        return []
    tables: dict[str, list[TaskScores]] = {}
    for test in tests:
        tables.setdefault(test.metric, []).append(test)
    for test in tests:
        if (ranked := f"rank/{test.metric}") in test.after:
            tables.setdefault(ranked, []).append(test)
    return [TaskTable(metric, rows, [deviation(test, metric) for test in rows]) for metric, rows in tables.items()]
