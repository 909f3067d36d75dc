"""`report.html`: what a run did, from the files in its folder, in one page that loads nothing from anywhere."""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from prompt_jax import experiment as experiments
from prompt_jax.inspection import Inspection
from prompt_jax.metrics import is_share, normalize_answer
from prompt_jax.report import plots
from prompt_jax.report.pages import write_page
from prompt_jax.report.plots import Curve
from prompt_jax.report.run_files import (
    Prediction,
    ReportError,
    Summary,
    TaskScores,
    read_config,
    read_metrics,
    read_predictions,
    read_summary,
)
from prompt_jax.task_format import LOG_LIKELIHOOD, REFERENCE_METRICS, SENTINEL, without_sentinel

__all__ = ["ReportError", "write_report"]

_SAMPLES = 12  # right and wrong answers shown, of each, and examples on which members disagree
_MAX_LABELS = 20  # beyond which a confusion table is no help
_MAX_CARDS = 8  # tasks with a card of their own
_TEXT_LIMIT = 600  # characters of an input shown


def write_report(folder: Path, inspections: Sequence[Inspection] | None, similarity: np.ndarray | None) -> Path:
    """Writes `report.html` into a run's folder.

    Args:
      folder: of the run, with `config.json`, `summary.json`, and, if they are there, `metrics.jsonl` (curves) and
        `predictions.jsonl` (confusion table, sample answers, examples on which members disagree).
      inspections: of the members' best prompts, in their order; None leaves their section out.
      similarity: [E, E] cosines of the members' best prompts, from `inspection.prompt_similarity`; None leaves it out.

    Returns:
      The path of the page.

    Raises:
      ReportError: a file that is missing, cannot be read, or holds something else.
      ValueError: inspections or similarity of another number of members.
    """
    experiment, summary = read_config(folder), read_summary(folder)
    size = len(summary.members)
    trained = len(experiments.members(experiment)) if experiment.prompt.per_task else size
    lines = [own for own in read_metrics(folder, trained) for _ in range(size // trained)]
    if inspections is not None and len(inspections) != size:
        raise ValueError(f"{len(inspections)} inspections of {size} members")
    if similarity is not None and similarity.shape != (size, size):
        raise ValueError(f"the similarity of {size} members has the shape {similarity.shape}")
    predictions = read_predictions(folder, summary)
    tests = sorted(summary.tests, key=lambda test: not test.trained_on)
    foremost = _foremost(summary)
    joining = 0 if experiment.prompt.method in experiments.REPLACING_METHODS else summary.trained_parameters
    path = folder / "report.html"
    write_page(
        path,
        "report.html.jinja",
        _filters(),
        summary=summary,
        experiment=experiment,
        lengths=sorted({member.length for member in summary.members}),
        share=summary.trained_parameters / (summary.model.parameters + joining),
        varied=_varied(summary),
        diverged=[number for number, member in enumerate(summary.members) if member.status == "diverged"],
        cards=_cards(summary),
        curves=_curves(lines, summary),
        colors=plots.COLORS,
        shades=_shades(summary),
        overview=_overview(tests),
        alone=all(len(test.members) == 1 for test in tests),
        shifted=not all(test.trained_on for test in tests),
        tests=[_detail(test, predictions[test.task], experiment.data.labels) for test in tests],
        foremost=foremost,
        inspections=inspections,
        norm_plot=None if inspections is None else plots.norm_plot(inspections[foremost]),
        similarity=None if similarity is None or size == 1 else plots.similarity_map(similarity),
        cut=any(
            count
            for splits in summary.truncated.values()
            for each in splits.values()
            for count in (each.inputs, each.targets)
        ),
        config=experiments.to_json(experiment),
    )
    return path


def _filters() -> dict[str, Callable[..., Any]]:
    return {
        "percent": _percent,
        "value": _value,
        "gain": _gain,
        "duration": _duration,
        "metric": _metric_name,
        "shorten": _shorten,
        "exp": math.exp,
        "field": lambda name: name.rpartition(".")[2],
        "settings": experiments.settings_text,
        "ranges": _ranges,
        "number": "{:,}".format,
    }


# --------------------------------------------------------------------------------------------------------------
# Members


def _varied(summary: Summary) -> list[str]:
    """The fields in which members differ; the task has a place of its own."""
    names = dict.fromkeys(name for member in summary.members for name in member.settings)
    return [name for name in names if name != "data.task"]


def _foremost(summary: Summary) -> int:
    """The member with the best validation score; the first where the tasks differ, whose scores say nothing of that."""
    scores = [member.best.score for member in summary.members]
    return int(np.argmax(scores)) if len(summary.tasks) == 1 else 0


def _shades(summary: Summary) -> list[float]:
    """Where each member's validation score is between the worst and the best, from 0 to 1; 0 for those of two tasks."""
    scores = np.array([member.best.score for member in summary.members])
    width = np.ptp(scores)
    if len(summary.tasks) > 1 or not width > 0:
        return [0.0] * len(scores)
    return ((scores - scores.min()) / width).tolist()


def _curves(lines: Sequence[Sequence[dict[str, Any]]], summary: Summary) -> list[Markup]:
    """Loss and validation score by step, as far as they were logged."""
    losses, scores = [], []
    for number, (own, member) in enumerate(zip(lines, summary.members, strict=True)):
        best = member.best
        steps, values = _series(own, "train/loss")
        losses.append(Curve(number, steps, values, end=member.status))
        # Of a task's prompt that was trained with others', it is logged under the task's name.
        steps, values = _series(own, f"validation/{best.metric}", f"validation/{member.task}/{best.metric}")
        mark = (best.step, best.score) if math.isfinite(best.score) else None
        scores.append(Curve(number, steps, values, mark, member.status))
    names = {_metric_name(member.best.metric) for member in summary.members}
    percent = all(is_share(member.best.metric) for member in summary.members)
    return [
        *([plots.loss_plot(losses)] if any(len(curve.steps) for curve in losses) else []),
        *(
            [plots.score_plot(scores, names.pop() if len(names) == 1 else "score", percent=percent)]
            if any(len(curve.steps) for curve in scores)
            else []
        ),
    ]


def _series(lines: Sequence[dict[str, Any]], *names: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and finite values of one logged quantity, which has one of these names."""
    found = [(line["step"], line[name]) for line in lines for name in names if name in line]
    pairs = [(step, value) for step, value in found if math.isfinite(value)]
    steps, values = zip(*pairs, strict=True) if pairs else ((), ())
    return np.array(steps, int), np.array(values, float)


# --------------------------------------------------------------------------------------------------------------
# Scores


@dataclasses.dataclass(frozen=True)
class Card:
    """One score as a number to be read from afar; `before` is None where only the tuned model was scored."""

    name: str
    before: str | None
    after: str
    note: str


def _cards(summary: Summary) -> list[Card]:
    """What was trained for before what was not, and the validation score at the end."""
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
        number = _foremost(summary)
        best, status = summary.members[number].best, summary.members[number].status
        whose = f"member {number}, " if len(summary.members) > 1 else ""
        ended = f", {status} at {summary.members[number].steps:,}" if status != "finished" else ""
        name = f"Validation {_metric_name(best.metric)}"
        cards.append(
            Card(name, None, _value(best.score, best.metric), f"{whose}at step {best.step:,}, the best{ended}")
        )
    return cards


def _test_cards(test: TaskScores) -> list[Card]:
    """Of the one task: the first metric, the same over ranked labels and the share of invalid answers, if known."""
    metric, ensemble, several = test.metric, test.ensemble, len(test.members) > 1
    notes = {metric: _method(test) if several else "of generated answers"}
    ranking = "vote on the most probable labels" if ensemble is not None else "the most probable label as the answer"
    notes.setdefault(f"rank/{metric.removeprefix('rank/')}", ranking)
    if not several:
        notes["invalid"] = "of generated answers"
    cards = [
        Card(f"Test {_metric_name(name)}", _value(test.before.get(name), name), _value(test.after[name], name), note)
        for name, note in notes.items()
        if name in test.after
    ]
    if ensemble is not None:
        best = test.scores[test.members.index(ensemble.best)]
        spread = f"± {_gain(_deviation(test, metric), metric, unit=True)} over {len(test.members)} members"
        cards[1:1] = [
            Card("Average member", None, _value(test.average[metric], metric), spread),
            Card(
                "Best member",
                None,
                _value(best[metric], metric),
                f"member {ensemble.best}, the best on this very test",
            ),
        ]
    return cards


def _task_card(test: TaskScores) -> Card:
    name, before, after = test.metric, test.before.get(test.metric), test.after[test.metric]
    return Card(test.task, _value(before, name), _value(after, name), f"{_metric_name(name)}, {_method(test)}")


def _comparable(tests: Sequence[TaskScores]) -> bool:
    """Whether the tests' first metrics have a mean: one metric, or several whose values are shares."""
    return len({test.metric for test in tests}) == 1 or all(is_share(test.metric) for test in tests)


def _mean_card(name: str, tests: Sequence[TaskScores], note: str) -> Card:
    """Means of the tests' first metrics."""
    before = float(np.mean([test.before.get(test.metric, math.nan) for test in tests]))
    after = float(np.mean([test.after[test.metric] for test in tests]))
    return Card(name, _value(before, tests[0].metric), _value(after, tests[0].metric), note)


def _method(test: TaskScores) -> str:
    """What a test's `after` is."""
    if test.ensemble is not None:
        return f"{test.ensemble.vote_rule.replace('-', ' ')} vote of {len(test.members)} members"
    return f"average of {len(test.members)} members" if len(test.members) > 1 else "with its prompt"


def _deviation(test: TaskScores, name: str) -> float | None:
    """Standard deviation over the members, of a sample; None of one."""
    values = [scores[name] for scores in test.scores]
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


@dataclasses.dataclass(frozen=True)
class Overview:
    """Scores of tests by one metric, a row a task; standard deviations are over the members."""

    metric: str
    tests: list[TaskScores]
    deviations: list[float | None]


def _overview(tests: Sequence[TaskScores]) -> list[Overview]:
    """By each test's first metric and by ranking, where there are several tests."""
    if len(tests) < 2:
        return []
    parts: dict[str, list[TaskScores]] = {}
    for test in tests:
        parts.setdefault(test.metric, []).append(test)
    for test in tests:
        if (ranked := f"rank/{test.metric}") in test.after:
            parts.setdefault(ranked, []).append(test)
    return [Overview(metric, own, [_deviation(test, metric) for test in own]) for metric, own in parts.items()]


# --------------------------------------------------------------------------------------------------------------
# One test


@dataclasses.dataclass(frozen=True)
class Detail:
    """Everything that is shown of one test."""

    test: TaskScores
    method: str  # what is called the answer
    deviations: dict[str, float | None]
    intervals: list[tuple[str, float, tuple[float, float]]]  # vote minus what, difference, and its interval
    agreement: Markup | None
    labels: tuple[str, ...]  # empty if any text is an answer
    compared: bool  # texts are compared with references, and none is simply right
    answers: int
    confusion: list[tuple[str, list[int]]]
    disagreements: "Disagreements | None"
    samples: list[tuple[str, int, list[Prediction]]]


def _detail(test: TaskScores, rows: Sequence[Prediction], labels: tuple[str, ...]) -> Detail:
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
    return Detail(
        test=test,
        method="Vote" if ensemble is not None else "With the prompt",
        deviations={name: _deviation(test, name) for name in test.scores[0]},
        intervals=intervals,
        agreement=None if ensemble is None else plots.agreement_map(np.array(ensemble.agreement), test.members),
        labels=labels,
        compared=compared,
        answers=len(rows),
        confusion=_confusion(rows, labels),
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


def _confusion(rows: Sequence[Prediction], labels: tuple[str, ...]) -> list[tuple[str, list[int]]]:
    """For each expected label, how often each label, and in the last place anything else, was answered."""
    if not rows or not 0 < len(labels) <= _MAX_LABELS:
        return []
    pairs = Counter((row.target, row.prediction) for row in rows)
    table = []
    for target in labels:
        counts = [pairs[target, answer] for answer in labels]
        total = sum(count for (expected, _), count in pairs.items() if expected == target)
        table.append((target, [*counts, total - sum(counts)]))
    return table


def _samples(rows: Sequence[Prediction], compared: bool) -> list[tuple[str, int, list[Prediction]]]:
    """Wrong and right answers: title, how many there are, and some of them from all over the split.

    Texts that are compared with references are neither.
    """
    if compared and rows:
        return [("Some", len(rows), _spread(rows))]
    wrong = [row for row in rows if row.prediction != row.target]
    right = [row for row in rows if row.prediction == row.target]
    return [(title, len(found), _spread(found)) for title, found in (("Wrong", wrong), ("Right", right)) if found]


@dataclasses.dataclass(frozen=True)
class Disagreements:
    """Examples on which members disagree.

    Attributes:
      count: of all of them.
      right: on how many of them the vote is right.
      rows: some from all over the split, each with its answers and the numbers of the members that gave them, the
        most frequent answer first.
    """

    count: int
    right: int
    rows: list[tuple[Prediction, list[tuple[str, list[int]]]]]


def _disagreements(rows: Sequence[Prediction], members: Sequence[int], labels: tuple[str, ...]) -> Disagreements | None:
    """None for a single member. Without labels answers are compared as they are in a vote, normalized."""
    if len(members) < 2 or not rows:
        return None
    found = []
    for row in rows:
        answers: dict[str, tuple[str, list[int]]] = {}
        for number, answer in zip(members, row.members, strict=True):
            key = answer if labels else normalize_answer(answer)
            answers.setdefault(key, (answer, []))[1].append(number)
        if len(answers) > 1:
            found.append((row, sorted(answers.values(), key=lambda pair: -len(pair[1]))))
    right = sum(row.prediction == row.target for row, _ in found)
    return Disagreements(len(found), right, _spread(found))


def _spread(items: Sequence[Any]) -> list[Any]:
    """At most _SAMPLES of the items, evenly spaced."""
    size, count = len(items), min(len(items), _SAMPLES)
    return [items[i * size // count] for i in range(count)]


# --------------------------------------------------------------------------------------------------------------
# Values as text

_METRICS = {
    "exact_match": "exact match",
    "f1": "F1",
    "mean_class_f1": "mean class F1",
    "invalid": "invalid answers",
    "bleu": "BLEU",
    "multi_bleu": "BLEU by words",
    "nist": "NIST",
    "nist_perl": "NIST (Perl)",
    "meteor": "METEOR",
    "coco_meteor": "METEOR without signs",
    "coco_rouge_l": "ROUGE-L without signs",
    "cider": "CIDEr",
    "rouge_1": "ROUGE-1",
    "rouge_2": "ROUGE-2",
    "rouge_l": "ROUGE-L",
    "chrf": "chrF",
    "ter": "TER",
    "webnlg_bleu": "BLEU (WebNLG's)",
    "webnlg_meteor": "METEOR (WebNLG's)",
    "webnlg_ter": "TER (WebNLG's)",
    "dart_bleu": "BLEU (DART's)",
    "dart_meteor": "METEOR (DART's)",
    "dart_ter": "TER (DART's)",
    "log_likelihood": "log-likelihood, nats a token",
}


def _metric_name(name: str) -> str:
    ranked = name.startswith("rank/")
    bare = name.removeprefix("rank/")
    return _METRICS.get(bare, bare) + (" by ranking" if ranked else "")


def _percent(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.1%}"


def _value(value: float | None, metric: str) -> str:
    """A metric's value: a share in percent, others in their own units."""
    if is_share(metric):
        return _percent(value)
    return "–" if value is None or not math.isfinite(value) else f"{value:.2f}"


def _gain(value: float | None, metric: str, sign: str = "", unit: bool = False) -> str:
    """A difference of a metric's values: of shares in percentage points."""
    if value is None:
        return "–"
    share = is_share(metric)
    text = f"{100 * value:{sign}.1f}" if share else f"{value:{sign}.2f}"
    return text.replace("-", "−") + (" points" if unit and share else "")


def _ranges(numbers: Sequence[int]) -> str:
    """Rising numbers with those that follow each other joined: `0–2, 5`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = ((hours, "h"), (minutes, "min"), (seconds, "s"))
    return " ".join(f"{count} {unit}" for count, unit in parts if count) or "under 1 s"


def _shorten(text: str | None, limit: int = _TEXT_LIMIT) -> str:
    if not text:
        return "–" if text is None else "(empty)"
    return text if len(text) <= limit else f"{text[:limit]}…"
