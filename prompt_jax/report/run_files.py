"""The files that a finished run leaves in its folder, read and checked: what a report is made of."""

import builtins
import dataclasses
import functools
import json
import math
import reprlib
import types
import typing
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import numpy as np

from prompt_jax import experiment as experiments
from prompt_jax.errors import ConfigError, UserError
from prompt_jax.experiment import Experiment
from prompt_jax.report.metrics_log import read_log

Scores = dict[str, float]  # by metric, in the units of `prompt_jax.metrics`; the first is what the best is chosen by
Status = Literal["finished", "stopped early", "diverged"]


class ReportError(UserError, ValueError):
    """A run's folder that no report can be made of; the message names the file."""


@dataclasses.dataclass(frozen=True)
class BaseSummary:
    """The frozen model, and its number of parameters."""

    name: str
    revision: str | None
    fingerprint: str
    parameters: int


@dataclasses.dataclass(frozen=True)
class BestSummary:
    """The best evaluation on a validation split, by the task's first metric or a mean (`train.best_by`)."""

    metric: str
    score: float
    step: int


@dataclasses.dataclass(frozen=True)
class MemberSummary:
    """One of the prompts of a run.

    Attributes:
      settings: the fields of its configuration in which it differs from the other members.
      task: that it was trained on, or the mixture; of several prompts that share a part the task that it is for.
      length: in virtual tokens.
      status: how its training ended.
      steps: optimizer steps that changed it.
      best: where its best prompt is from.
      validation: metrics of the best prompt, after the mean if that chose it; of a mixture as TASK/METRIC.
    """

    settings: dict[str, Any]
    task: str
    length: int
    status: Status
    steps: int
    best: BestSummary
    validation: Scores


@dataclasses.dataclass(frozen=True)
class EnsembleSummary:
    """What the members of a test give together.

    Attributes:
      vote_rule: how answers are made one.
      vote: metrics of the vote.
      average: means of the members' metrics.
      best: number of the member with the highest score by the first metric of the vote.
      oracle: share of examples that at least one member answers right.
      agreement: [E, E] share of examples on which two members give the same answer.
      intervals: of 95 %, for the vote's first metric minus that of the `best` member, and minus the `average`.
    """

    vote_rule: Literal["majority", "mean-probability"]
    vote: Scores
    average: Scores
    best: int
    oracle: float
    agreement: list[list[float]]
    intervals: dict[Literal["best", "average"], tuple[float, float]]


@dataclasses.dataclass(frozen=True)
class TaskScores:
    """Scores on the test split of one task.

    Attributes:
      task: its name.
      examples: how many.
      trained_on: whether the members were; otherwise the test shows how they bear a shift of domain.
      members: numbers of the members that were run on it.
      before: metrics of the base alone.
      scores: metrics of each of `members`.
      ensemble: of several members.
    """

    task: str
    examples: int
    trained_on: bool
    members: list[int]
    before: Scores
    scores: list[Scores]
    ensemble: EnsembleSummary | None

    @property
    def metric(self) -> str:
        """The first that tells what the run has made: the task's own or, for a vote by mean probability, by ranking."""
        return next(iter(self.scores[0] if self.ensemble is None else self.ensemble.vote))

    @property
    def average(self) -> Scores:
        if self.ensemble is not None:
            return self.ensemble.average
        return {name: float(np.mean([scores[name] for scores in self.scores])) for name in self.scores[0]}

    @property
    def best(self) -> int:
        """The number of the member with the highest score, of equals the first."""
        if self.ensemble is not None:
            return self.ensemble.best
        return self.members[int(np.argmax([scores[self.metric] for scores in self.scores]))]

    @property
    def after(self) -> Scores:
        """Metrics of what the run has made: the vote, the only prompt, or else the members' average."""
        return self.average if self.ensemble is None else self.ensemble.vote


@dataclasses.dataclass(frozen=True)
class Summary:
    """A run's `summary.json`. Values of metrics are in the units of `prompt_jax.metrics`.

    Attributes:
      name: of the run.
      model: the base.
      trained_parameters: how many were trained beside it, in all members.
      stored_parameters: how many their prompts have as they are written, which is without an MLP that made them.
      steps: optimizer steps that were run.
      seconds: wall-clock time of the training.
      examples: by task and split.
      truncated: by task and split, the number of `inputs` and `targets` that were cut.
      versions: of packages.
      members: the prompts, one or more.
      tests: one a task; none without a test split.
    """

    name: str
    model: BaseSummary
    trained_parameters: int
    stored_parameters: int
    steps: int
    seconds: float
    examples: dict[str, dict[str, int]]
    truncated: dict[str, dict[str, dict[Literal["inputs", "targets"], int]]]
    versions: dict[str, str]
    members: list[MemberSummary]
    tests: list[TaskScores]

    @property
    def tasks(self) -> list[str]:
        """Those that members were trained on, each once."""
        return list(dict.fromkeys(member.task for member in self.members))


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The answers to one test example: of the base, of each member, and `prediction`, the vote (or the only one's)."""

    task: str
    input: str
    target: str
    before: str | None
    members: list[str]
    prediction: str
    label_scores: dict[str, float] | None  # nats


def read_config(folder: Path) -> Experiment:
    """A run's `config.json`. Raises ReportError."""
    path = folder / "config.json"
    try:
        return experiments.from_json(_read_text(path))
    except ConfigError as error:
        raise ReportError(f"{path}: {error}") from error


def read_summary(folder: Path) -> Summary:
    """A run's `summary.json`, whose parts fit each other.

    Raises:
      ReportError: it is missing, no JSON, or not what `Summary` says; the message names the place.
    """
    path = folder / "summary.json"
    try:
        values = json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise ReportError(f"{path}: no JSON: {error}") from error
    try:
        summary = _built(Summary, values, "")
        _check(summary)
    except _Misfit as error:
        raise ReportError(f"{path}: {error}") from error
    return summary


def read_predictions(folder: Path, summary: Summary) -> dict[str, list[Prediction]]:
    """The rows of `predictions.jsonl` by task, in their order; empty lists if there is no file. Raises ReportError."""
    path = folder / "predictions.jsonl"
    lines = _read_text(path).split("\n") if path.exists() else []  # splitlines would break texts at U+2028
    members = {test.task: len(test.members) for test in summary.tests}
    rows: dict[str, list[Prediction]] = {task: [] for task in members}
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            row = _built(Prediction, json.loads(line), "")
            if row.task not in rows:
                raise _Misfit(f"summary.json has no test of the task {row.task!r}")
            if len(row.members) != members[row.task]:
                raise _Misfit(f"answers of {len(row.members)} members; summary.json has {members[row.task]}")
        except (json.JSONDecodeError, _Misfit) as error:
            raise ReportError(f"{path}:{number}: not a prediction: {error}") from error
        rows[row.task].append(row)
    return rows


def read_metrics(folder: Path, members: int) -> list[list[dict[str, Any]]]:
    """The lines of `metrics.jsonl` by member; empty lists if there is no file. Raises ReportError."""
    lines: list[list[dict[str, Any]]] = [[] for _ in range(members)]
    for line in read_log(folder):
        match line:
            case {"step": int(), "member": int(number)} if 0 <= number < members and _all_numbers(line):
                lines[number].append(line)
            case _:
                raise ReportError(
                    f"{folder / 'metrics.jsonl'}: a line must be a step, a member from 0 to {members - 1} and numbers, "
                    f"not {reprlib.repr(line)}"
                )
    return lines


def _all_numbers(line: dict[str, Any]) -> bool:
    return all(isinstance(value, int | float) for value in line.values())


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ReportError(f"{path} is missing; a run that has come to its end has one") from error
    except UnicodeDecodeError as error:
        raise ReportError(f"{path}: not UTF-8: {error}") from error


# --------------------------------------------------------------------------------------------------------------
# From JSON to the classes above


class _Misfit(Exception):
    """A value that is not what its class says."""


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _built(hint: Any, value: Any, at: str) -> Any:
    """A JSON value as the type of its field; fields that a class does not know are left out."""
    origin, arguments = typing.get_origin(hint) or hint, typing.get_args(hint)
    if hint is Any or (value is None and type(None) in arguments):
        return value
    if origin is types.UnionType:
        return _built(arguments[0], value, at)
    if isinstance(value, dict) and isinstance(hint, type) and dataclasses.is_dataclass(hint):
        fields = _hints(hint)
        if missing := [name for name in fields if name not in value]:
            raise _Misfit(f"there is no {', '.join(missing)} in {at or 'it'}")
        return hint(**{name: _built(kind, value[name], f"{at}.{name}".strip(".")) for name, kind in fields.items()})
    if isinstance(value, dict) and origin is dict:
        names = typing.get_args(arguments[0])  # of a Literal, all of which must be there
        if missing := [name for name in names if name not in value]:
            raise _Misfit(f"there is no {', '.join(missing)} in {at}")
        return {name: _built(arguments[1], value[name], f"{at}.{name}") for name in names or value}
    if isinstance(value, list) and origin is list:
        return [_built(arguments[0], item, f"{at}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, list) and origin is tuple and len(value) == len(arguments):
        pairs = zip(arguments, value, strict=True)
        return tuple(_built(kind, item, f"{at}[{i}]") for i, (kind, item) in enumerate(pairs))
    if origin is Literal and value in arguments:
        return value
    if hint is float and (value is None or type(value) in (int, float)):
        return math.nan if value is None else float(value)  # `json_text` writes null for what is not finite
    if type(value) is hint:
        return value
    raise _Misfit(f"{at or 'the whole'} must be {_wanted(hint)}, not {reprlib.repr(value)}")


def _wanted(hint: Any) -> str:
    """A type in words."""
    match typing.get_origin(hint) or hint:
        case typing.Literal:
            return " or ".join(map(repr, typing.get_args(hint)))
        case builtins.tuple:
            return f"a list of {len(typing.get_args(hint))}"
        case kind:
            names = {list: "a list", str: "a text", float: "a number", int: "a whole number", bool: "true or false"}
            return names.get(kind, "an object")


def _check(summary: Summary) -> None:
    """That members, tests and matrices have the numbers and shapes that belong together."""
    if not summary.members:
        raise _Misfit("there are no members")
    for task, count in Counter(test.task for test in summary.tests).items():
        if count > 1:
            raise _Misfit(f"there are {count} tests of the task {task!r}")
    for number, test in enumerate(summary.tests):
        at, size = f"tests[{number}]", len(test.members)
        known = range(len(summary.members))
        if not test.members or not set(test.members) <= set(known) or len(set(test.members)) != size:
            raise _Misfit(f"{at}.members must be different numbers below {len(known)}, not {test.members}")
        if len(test.scores) != size or not all(test.scores):
            raise _Misfit(f"{at}.scores must have the metrics of {size} members; it has {list(map(len, test.scores))}")
        if any(scores.keys() != test.scores[0].keys() for scores in test.scores):
            raise _Misfit(f"{at}.scores must have the same metrics for all members")
        if test.ensemble is None:
            continue
        if not test.ensemble.vote:
            raise _Misfit(f"{at}.ensemble.vote must have metrics")
        if test.ensemble.best not in test.members:
            raise _Misfit(f"{at}.ensemble.best must be one of the members {test.members}, not {test.ensemble.best}")
        if [len(row) for row in test.ensemble.agreement] != [size] * size:
            raise _Misfit(f"{at}.ensemble.agreement must be a matrix of {size} by {size}")
        for name, scores in (("ensemble.average", test.ensemble.average), ("scores", test.scores[0])):
            if test.metric not in scores:
                raise _Misfit(f"{at}.{name} must have the metric {test.metric}, the first of {at}.ensemble.vote")
