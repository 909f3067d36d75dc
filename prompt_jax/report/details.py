"""The report's section on one test: intervals, confusion table, disagreements, and sample answers."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from prompt_jax.metrics import normalize_answer
from prompt_jax.metrics.labels import precision_recall
from prompt_jax.report import plots
from prompt_jax.report.overview import deviation, is_gain
from prompt_jax.report.run_files import Prediction, TaskScores
from prompt_jax.task_format import LOG_LIKELIHOOD, REFERENCE_METRICS, SENTINEL, without_sentinel

_SAMPLES = 12  # examples shown of each kind: right answers, wrong answers, disagreements
_MAX_LABELS = 20  # in a confusion table


@dataclasses.dataclass(frozen=True)
class TestDetail:
    """The content of the report about one test."""

    test: TaskScores
    method: str  # title of the column of answers
    deviations: dict[str, float | None]
    intervals: list[tuple[str, float, tuple[float, float]]]  # name, vote's score minus its score, interval
    agreement: Markup | None
    labels: tuple[str, ...]  # empty for free text
    compared: bool  # answers are scored against references, not right or wrong
    answers: int  # total number
    confusion: list[tuple[str, list[int], float | None, float | None]]  # label, counts, recall, precision
    gain: bool  # whether the vote or the prompt is better than the base, by the first metric
    disagreements: "Disagreements | None"
    samples: list[tuple[str, int, list[Prediction]]]  # title, number of such answers, and some of them


def test_detail(test: TaskScores, rows: Sequence[Prediction], labels: tuple[str, ...]) -> TestDetail:
    """Return the details of a test. `rows` are its predictions, and `labels` the configuration's labels."""
    if rows and rows[0].label_scores:
        labels = tuple(rows[0].label_scores)
    if any(row.target.startswith(SENTINEL) for row in rows):
        labels, rows = tuple(map(without_sentinel, labels)), list(map(_without_sentinel, rows))
    ensemble, metric, intervals = test.ensemble, test.metric, []
    compared = metric in (*REFERENCE_METRICS, LOG_LIKELIHOOD)
    if ensemble is not None:
        vote, best = ensemble.vote[metric], test.scores[test.members.index(ensemble.best)][metric]
        intervals = [
            ("the best member", vote - best, ensemble.intervals["best"]),
            ("the average", vote - ensemble.average[metric], ensemble.intervals["average"]),
        ]
    return TestDetail(
        test=test,
        method="Vote" if ensemble is not None else "With the prompt",
        deviations={name: deviation(test, name) for name in test.scores[0]},
        intervals=intervals,
        agreement=None if ensemble is None else plots.agreement_map(np.array(ensemble.agreement), test.members),
        labels=labels,
        compared=compared,
        answers=len(rows),
        confusion=_confusion(rows, labels),
        gain=is_gain(test.before.get(metric), test.after.get(metric), metric),
        disagreements=_disagreements(rows, test.members, labels),
        samples=_samples(rows, compared),
    )


def _without_sentinel(row: Prediction) -> Prediction:
    """Return the target and the answers without SENTINEL, as metrics compare them."""
    return dataclasses.replace(
        row,
        target=without_sentinel(row.target),
        before=None if row.before is None else without_sentinel(row.before),
        members=list(map(without_sentinel, row.members)),
        prediction=without_sentinel(row.prediction),
    )


def _confusion(
    rows: Sequence[Prediction], labels: tuple[str, ...]
) -> list[tuple[str, list[int], float | None, float | None]]:
    """Return for each expected label the number of answers with each label and last with anything else, its recall and
    its precision."""
    if not rows or not 0 < len(labels) <= _MAX_LABELS:
        return []
    pairs = Counter((row.target, row.prediction) for row in rows)
    table = []
    for target in labels:
        counts = [pairs[target, answer] for answer in labels]
        total = sum(count for (expected, _), count in pairs.items() if expected == target)
        table.append([*counts, total - sum(counts)])
    scores = precision_recall(table)
    return [
        (label, counts, recall, precision)
        for label, counts, (precision, recall, _) in zip(labels, table, scores, strict=True)
    ]


def _samples(rows: Sequence[Prediction], compared: bool) -> list[tuple[str, int, list[Prediction]]]:
    """Return wrong and right answers, sampled evenly over the split. Answers scored against references are neither."""
    if compared and rows:
        return [("Some", len(rows), _spread(rows))]
    wrong = [row for row in rows if row.prediction != row.target]
    right = [row for row in rows if row.prediction == row.target]
    return [(title, len(found), _spread(found)) for title, found in (("Wrong", wrong), ("Right", right)) if found]


@dataclasses.dataclass(frozen=True)
class Disagreements:
    """Examples on which members disagree.

    Attributes:
      count: the number of such examples.
      right: the number of them on which the vote is right.
      rows: a sample of them, spaced evenly over the split. Each has its answers, most frequent first, and for each
        answer the numbers of the members that gave it.
    """

    count: int
    right: int
    rows: list[tuple[Prediction, list[tuple[str, list[int]]]]]


def _disagreements(rows: Sequence[Prediction], members: Sequence[int], labels: tuple[str, ...]) -> Disagreements | None:
    """Return None for a single member. Free text is compared after normalization, as in a vote."""
    if len(members) < 2 or not rows:
        return None
    disagreements = []
    for row in rows:
        answers: dict[str, tuple[str, list[int]]] = {}
        for number, answer in zip(members, row.members, strict=True):
            key = answer if labels else normalize_answer(answer)
            answers.setdefault(key, (answer, []))[1].append(number)
        if len(answers) > 1:
            disagreements.append((row, sorted(answers.values(), key=lambda pair: -len(pair[1]))))
    right = sum(row.prediction == row.target for row, _ in disagreements)
    return Disagreements(len(disagreements), right, _spread(disagreements))


def _spread(items: Sequence[Any]) -> list[Any]:
    """Return at most _SAMPLES of the items, evenly spaced."""
    size, count = len(items), min(len(items), _SAMPLES)
    return [items[i * size // count] for i in range(count)]
