"""Runs the commands of a table, or takes what they have left before, and reads the scores from it."""

import dataclasses
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prompt_jax.errors import UserError
from prompt_jax.run_files import Summary, read_summary

from .table import SENTINEL, Evaluation, Options, Row, Search, Training

ROOT = Path(__file__).resolve().parents[2]

# What --quick makes of every training: a few steps and examples, to see that all of it runs.
QUICK = {
    "train.steps": 2,
    "train.epochs": None,
    "train.batch_size": 2,
    "train.accumulate": 1,
    "train.eval_every": 2,
    "train.eval_examples": 4,
    "train.test_examples": 4,
    "train.checkpoint_every": 2,
    "decoding.beams": 1,
    "decoding.length_penalty": 1.0,
    "optimizer.warmup_steps": 0,
}
ASKED_TO_LEAVE = 75  # the exit status of `train` that has saved
QUICK_LIMIT = 4  # examples that evaluate scores
SEARCH_TESTS = 16  # a search is decided on validation data; its tests only have to run

# By task, split and metric: a value for each observation.
Scores = dict[tuple[str, str, str], list[float]]


class StepFailed(UserError, RuntimeError):
    """A command that did not come to its end; the message is its own last line."""


@dataclasses.dataclass
class Runner:
    """Where the runs of tables are, and how they are run.

    Attributes:
      out: the folder with `runs/` and `evaluations/`.
      quick: whether they are made as short as can be.
      data: the folder that PROMPT_JAX_DATA names to the commands; None leaves it as it is.
      dry: whether commands are only collected.
    """

    out: Path
    quick: bool = False
    data: Path | None = None
    dry: bool = False
    commands: list[str] = dataclasses.field(default_factory=list)
    _failed: dict[str, str] = dataclasses.field(default_factory=dict)

    def scores(self, row: Row) -> Scores:
        """The observations of a row, after what is missing for it has been run.

        Raises:
          StepFailed: a command failed.
        """
        together: Scores = {}
        for step in row.steps:
            found = self._trained(step, row) if isinstance(step, Training) else self._evaluated(step, row)
            for key, values in found.items():
                together.setdefault(key, []).extend(values)
        return together

    def _trained(self, training: Training, row: Row) -> Scores:
        folder = self._train(training)
        return {} if self.dry else of_training(read_summary(folder), row)

    def _evaluated(self, evaluation: Evaluation, row: Row) -> Scores:
        folder, options = self.out / "evaluations" / self._name(evaluation.name), dict(evaluation.options)
        files = [] if evaluation.of is None else [str(self._train(evaluation.of) / "best.npz")]
        if self.quick:
            options["limit"] = QUICK_LIMIT
        words = ["evaluate", *files, *flags(options)]
        self._run(words, folder, "scores.json")
        return {} if self.dry else of_evaluation(json.loads((folder / "scores.json").read_text()), row)

    def _train(self, training: Training) -> Path:
        options = dict(training.options)
        if training.search is not None:
            options["optimizer.learning_rate"] = self._search(training.search)
        if self.quick:
            options |= QUICK
        return self._run_training(training.name, training.config, options)

    def _search(self, search: Search) -> float:
        options = {**search.options, "ensemble.seed": (0,), "ensemble.learning_rate": search.rates}
        options |= {"train.test_examples": SEARCH_TESTS} | (QUICK if self.quick else {})
        folder = self._run_training(search.name, search.config, options)
        if self.dry:
            return search.rates[0]
        scores = [member.best.score for member in read_summary(folder).members]
        return search.rates[max(range(len(scores)), key=scores.__getitem__)]

    def _run_training(self, name: str, config: str, options: Options) -> Path:
        name = self._name(name)
        folder = self.out / "runs" / name
        # What has been trained with these very options is taken as it is; otherwise `train` goes on, or says why not.
        words = ["train", config, "--name", name, *flags(options)]
        self._run(words, folder, "summary.json", ["--runs", str(folder.parent)])
        return folder

    def _run(self, words: Sequence[str], folder: Path, result: str, place: Sequence[str] | None = None) -> None:
        """Runs `prompt-jax` with these words, unless the same command has left its result in the folder before."""
        place = ["--out", str(folder)] if place is None else place
        command, record = shlex.join(["prompt-jax", *words]), folder / "command.txt"
        if command not in self.commands:
            self.commands.append(command)
        if self.dry or ((folder / result).exists() and record.exists() and record.read_text() == command):
            return
        if command in self._failed:
            raise StepFailed(self._failed[command])
        print(f"$ {command}", flush=True)
        env = os.environ | ({} if self.data is None else {"PROMPT_JAX_DATA": str(self.data.resolve())})
        env["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [env.get("PYTHONPATH")])])
        ended = subprocess.run(
            [sys.executable, "-m", "prompt_jax.cli", *words, *place],
            cwd=ROOT,
            env=env,
            stderr=subprocess.PIPE,
            text=True,
        )
        if ended.returncode == ASKED_TO_LEAVE:
            raise UserError("asked to leave; the same command goes on from what is saved")
        if ended.returncode:
            lines = [line for line in ended.stderr.splitlines() if line.strip()]
            self._failed[command] = (
                lines[-1].removeprefix("prompt-jax: ") if lines else f"it ended with status {ended.returncode}"
            )
            raise StepFailed(self._failed[command])
        record.write_text(command)

    def _name(self, name: str) -> str:
        return f"quick-{name}" if self.quick else name


def flags(options: Options) -> list[str]:
    """Options as words of the command line: `{"ensemble.seed": (0, 1)}` is `--ensemble.seed 0 1`."""
    words: list[str] = []
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            before, dot, last = flag.removeprefix("--").rpartition(".")
            words.append(flag if value else f"--{before}{dot}no-{last}")
        elif isinstance(value, tuple):
            words += [flag, *map(str, value)]
        else:
            words += [flag, str(value)]
    return words


def of_training(summary: Summary, row: Row) -> Scores:
    """The scores of a run: of its tests, and on validation data those of each member's best step."""
    scores: Scores = {}
    chosen = [n for n, member in enumerate(summary.members) if row.where.items() <= member.settings.items()]
    for test in summary.tests:
        match row.of:
            case "base":
                own = [test.before]
            case "vote" if test.ensemble is not None:
                own = [test.ensemble.vote]
            case "best":
                own = [test.scores[test.members.index(test.best)]]
            case _:
                own = [each for number, each in zip(test.members, test.scores, strict=True) if number in chosen]
        _add(scores, test.task, "test", own)
    if row.of in ("members", "best"):
        members = [summary.members[number] for number in chosen]
        if row.of == "best":
            members = [max(members, key=lambda member: member.best.score)]
        for task in summary.tasks:
            own = [member.validation for member in members if member.task == task]
            # Members that are trained on a mixture have scores of each of its tasks.
            if own and "mean" in own[0]:
                for part in {name.rpartition("/")[0] for name in own[0] if "/" in name}:
                    of_part = [{n.removeprefix(f"{part}/"): v for n, v in each.items()} for each in own]
                    _add(scores, part, "validation", of_part)
            else:
                _add(scores, task, "validation", own)
    return scores


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
