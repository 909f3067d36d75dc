"""The files in a finished run's folder. The report is made from them."""

import dataclasses
import json
import reprlib
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import numpy as np

from prompt_jax import experiment as experiments
from prompt_jax.config.convert import ConversionError, from_dict
from prompt_jax.errors import ConfigError, UserError
from prompt_jax.experiment import Experiment
from prompt_jax.report.metrics_log import read_log

Scores = dict[str, float]  # by metric, in the units of `prompt_jax.metrics`; the first selects the best prompt
Status = Literal["training", "finished", "stopped early", "diverged"]


class ReportError(UserError, ValueError):
    """A run's folder that has no report because a file is missing or damaged. The message names the file."""


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
      settings: the configuration fields in which it differs from the other members.
      task: the task or mixture that it was trained on. With `prompt.per_task`, the task that the prompt is for.
      length: the number of virtual tokens.
      status: how its training ended.
      steps: the number of optimizer steps that updated it.
      best: the evaluation at which its best prompt was kept.
      validation: the metrics of the best prompt. If their mean selected it, the mean comes first. For a mixture, names
        are `TASK/METRIC`.
      validation_loss: the mean cross-entropy of the targets then, in nats per token; for a mixture, the mean over its
        tasks. None in runs of earlier versions.
      learning_rate: the peak learning rate, absolute. None in runs of earlier versions.
    """

    settings: dict[str, Any]
    task: str
    length: int
    status: Status
    steps: int
    best: BestSummary
    validation: Scores
    validation_loss: float | None = None
    learning_rate: float | None = None


@dataclasses.dataclass(frozen=True)
class EnsembleSummary:
    """The vote of the members on one test.

    Attributes:
      vote_rule: how the members' answers become one.
      vote: metrics of the vote.
      average: means of the members' metrics.
      best: number of the member with the highest score by the vote's first metric.
      oracle: share of examples that at least one member answers correctly.
      agreement: [E, E] share of examples on which two members give the same answer.
      intervals: 95 % confidence intervals of the vote's first metric minus that of the `best` member, and minus the
        `average`.
    """

    vote_rule: Literal["majority", "mean-probability"]
    vote: Scores
    average: Scores
    best: int
    oracle: float
    agreement: list[list[float]]
    intervals: dict[Literal["best", "average"], tuple[float, float]]


@dataclasses.dataclass(frozen=True)
class LabelScores:
    """The generated answers to the examples of one label. Answers that are no label count in no label's precision.

    Attributes:
      label: the label.
      precision: the share of its examples among the answers with this label; None if there are none.
      recall: the share of its examples that were answered with it; None if there are none.
      examples: the number of examples.
    """

    label: str
    precision: float | None
    recall: float | None
    examples: int


@dataclasses.dataclass(frozen=True)
class TaskScores:
    """Scores on the test split of one task.

    Attributes:
      task: the name of the task.
      examples: the number of examples.
      trained_on: whether the members were trained on the task. Otherwise the test measures domain shift.
      members: numbers of the members that were evaluated.
      before: metrics of the base without a prompt.
      scores: metrics of each of `members`.
      ensemble: None for a single member.
      labels: for a task with labels, the precision and recall of the vote or of the only prompt.
    """

    task: str
    examples: int
    trained_on: bool
    members: list[int]
    before: Scores
    scores: list[Scores]
    ensemble: EnsembleSummary | None
    labels: list[LabelScores] = dataclasses.field(default_factory=list)

    @property
    def metric(self) -> str:
        """The first metric of the vote (by ranking, for a vote by mean probability), or of the only prompt."""
        return next(iter(self.scores[0] if self.ensemble is None else self.ensemble.vote))

    @property
    def average(self) -> Scores:
        if self.ensemble is not None:
            return self.ensemble.average
        return {name: float(np.mean([scores[name] for scores in self.scores])) for name in self.scores[0]}

    @property
    def best(self) -> int:
        """The number of the member with the highest score; the first of several."""
        if self.ensemble is not None:
            return self.ensemble.best
        return self.members[int(np.argmax([scores[self.metric] for scores in self.scores]))]

    @property
    def after(self) -> Scores:
        """The metrics after training: those of the vote or the only prompt, or else the members' average."""
        return self.average if self.ensemble is None else self.ensemble.vote


@dataclasses.dataclass(frozen=True)
class Truncated:
    """Numbers of examples whose inputs or targets were truncated."""

    inputs: int
    targets: int


@dataclasses.dataclass(frozen=True)
class Times:
    """The parts of a run's wall-clock time, in seconds, summed over its sessions.

    A session is a process that trains. What it did after its last checkpoint is repeated and not counted.

    Attributes:
      compile: for compiling the training step.
      train: for training steps, with waiting for data, logs and checkpoints.
      validation: for evaluations on the validation split, with their compilation.
      test: for the final evaluation; None if there was none.
    """

    compile: float
    train: float
    validation: float
    test: float | None


@dataclasses.dataclass(frozen=True)
class Throughput:
    """Examples and tokens per second of `Times.train`, summed over members. Tokens are those of inputs and targets,
    without padding and virtual tokens."""

    examples: float
    tokens: float


@dataclasses.dataclass(frozen=True)
class Environment:
    """The first process of the last session.

    Attributes:
      command: its command line.
      commit: the commit of the checkout with the package; None if it was installed otherwise.
      modified: whether files of the checkout differed from the commit.
      device: the kind of device.
      devices: the number of devices of all processes.
      processes: the number of processes.
      host_memory: peak resident size in bytes.
      device_memory: peak memory of one device in bytes; None if the device does not report it.
    """

    command: str
    commit: str | None
    modified: bool
    device: str
    devices: int
    processes: int
    host_memory: int
    device_memory: int | None


@dataclasses.dataclass(frozen=True)
class Summary:
    """A run's `summary.json`. Values of metrics are in the units of `prompt_jax.metrics`.

    Attributes:
      name: the name of the run.
      model: the base.
      trained_parameters: the number of trained parameters of all members, without the base.
      stored_parameters: the number of parameters in all members' prompt files, where an MLP is merged into the prompt.
      steps: optimizer steps of the run.
      seconds: wall-clock time of training and evaluation.
      examples: the number of examples, by task and split.
      truncated: the number of truncated examples, by task and split.
      versions: the versions of Python and of packages, in the last session.
      members: the prompts, at least one.
      tests: one per task with a test split.
      sessions: the number of processes that trained, one after the other. This field and those below are None in runs
        that began with an earlier version.
      times: the parts of `seconds`, and of the final evaluation.
      throughput: the speed of training.
      environment: the command, the code, the devices and the memory.
    """

    name: str
    model: BaseSummary
    trained_parameters: int
    stored_parameters: int
    steps: int
    seconds: float
    examples: dict[str, dict[str, int]]
    truncated: dict[str, dict[str, Truncated]]
    versions: dict[str, str]
    members: list[MemberSummary]
    tests: list[TaskScores]
    sessions: int | None = None
    times: Times | None = None
    throughput: Throughput | None = None
    environment: Environment | None = None

    @property
    def tasks(self) -> list[str]:
        """The tasks that members were trained on, without repetition."""
        return list(dict.fromkeys(member.task for member in self.members))


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The answers of the base and of each member to one test example. `prediction` is the vote's or only member's."""

    task: str
    input: str
    target: str
    before: str | None
    members: list[str]
    prediction: str
    label_scores: dict[str, float] | None  # nats


def read_config(folder: Path) -> Experiment:
    """Read a run's `config.json`. Raise ReportError."""
    path = folder / "config.json"
    try:
        return experiments.from_json(_read_text(path))
    except ConfigError as error:
        raise ReportError(f"{path}: {error}") from error


def read_summary(folder: Path) -> Summary:
    """Read a run's `summary.json`, and check that its parts are consistent.

    Fields that this version does not know are ignored.

    Raises:
      ReportError: the file is missing or not a summary. The message names the field.
    """
    path = folder / "summary.json"
    try:
        values = json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise ReportError(f"{path}: not JSON: {error}") from error
    try:
        summary = from_dict(Summary, values, unknown="ignore", nan=True)
        _check(summary)
    except ConversionError as error:
        raise ReportError(f"{path}: {error}") from error
    return summary


def read_predictions(folder: Path, summary: Summary) -> dict[str, list[Prediction]]:
    """Read the rows of `predictions.jsonl` by task; empty lists if there is no file. Raise ReportError."""
    path = folder / "predictions.jsonl"
    lines = _read_text(path).split("\n") if path.exists() else []  # splitlines would break texts at U+2028
    members = {test.task: len(test.members) for test in summary.tests}
    rows: dict[str, list[Prediction]] = {task: [] for task in members}
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            row = from_dict(Prediction, json.loads(line), unknown="ignore", nan=True)
            if row.task not in rows:
                raise ConversionError(f"summary.json has no test of the task {row.task!r}")
            if len(row.members) != members[row.task]:
                raise ConversionError(f"answers of {len(row.members)} members; summary.json has {members[row.task]}")
        except (json.JSONDecodeError, ConversionError) as error:
            raise ReportError(f"{path}:{number}: not a prediction: {error}") from error
        rows[row.task].append(row)
    return rows


def read_metrics(folder: Path, members: int) -> list[list[dict[str, Any]]]:
    """Read the lines of `metrics.jsonl` by member; empty lists if there is no file. Raise ReportError."""
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
        raise ReportError(f"{path} is missing; every finished run has one") from error
    except UnicodeDecodeError as error:
        raise ReportError(f"{path}: not UTF-8: {error}") from error


def _check(summary: Summary) -> None:
    """Raise ConversionError if members, tests and matrices have inconsistent numbers or shapes."""
    if not summary.members:
        raise ConversionError("there are no members")
    for task, count in Counter(test.task for test in summary.tests).items():
        if count > 1:
            raise ConversionError(f"there are {count} tests of the task {task!r}")
    for number, test in enumerate(summary.tests):
        if problem := _problem(test, len(summary.members)):
            raise ConversionError(f"tests[{number}].{problem}")


def _problem(test: TaskScores, members: int) -> str | None:
    """Return an inconsistency in a test of a run with `members` members; the text begins with the field."""
    size, ensemble = len(test.members), test.ensemble
    if not test.members or not set(test.members) <= set(range(members)) or len(set(test.members)) != size:
        return f"members must be different numbers below {members}, not {test.members}"
    if len(test.scores) != size or not all(test.scores):
        return f"scores must have the metrics of {size} members; it has {list(map(len, test.scores))}"
    if any(scores.keys() != test.scores[0].keys() for scores in test.scores):
        return "scores must have the same metrics for all members"
    if ensemble is None:
        return None
    if not ensemble.vote:
        return "ensemble.vote must have metrics"
    if ensemble.best not in test.members:
        return f"ensemble.best must be one of the members {test.members}, not {ensemble.best}"
    if missing := {"best", "average"} - set(ensemble.intervals):
        return f"ensemble.intervals.{min(missing)} is missing"
    if [len(row) for row in ensemble.agreement] != [size] * size:
        return f"ensemble.agreement must be a matrix of {size} by {size}"
    for name, scores in (("ensemble.average", ensemble.average), ("scores", test.scores[0])):
        if test.metric not in scores:
            return f"{name} must have the metric {test.metric}, the first of ensemble.vote"
    return None
