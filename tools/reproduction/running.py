"""Runs the commands of a table, or takes what they have left before, and reads the scores from it."""

import dataclasses
import json
import math
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from prompt_jax import experiment as experiments
from prompt_jax.errors import UserError
from prompt_jax.experiment import Experiment
from prompt_jax.report.run_files import EnsembleSummary, read_summary
from prompt_jax.storage.locks import FileLock
from tools.reproduction.scores import Scores, gain, of_evaluation, of_training
from tools.reproduction.table import Evaluation, Options, Row, Search, Templates, Training

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
    "decoding.early_stopping": "false",
    "optimizer.warmup_steps": 0,
}
ASKED_TO_LEAVE = 75  # the exit status of `train` that has saved
QUICK_LIMIT = 4  # examples that evaluate scores
SEARCH_TESTS = 16  # a search is decided on validation data; its tests only have to run


class StepFailed(UserError, RuntimeError):
    """A command that did not come to its end; the message is its own last line, and the log has the rest."""

    def __init__(self, reason: str, log: Path | None = None):
        super().__init__(reason)
        self.log = log


@dataclasses.dataclass
class Runner:
    """Where the runs of tables are, and how they are run.

    Attributes:
      out: the folder with `runs/`, `evaluations/` and `logs/`.
      quick: whether they are made as short as can be.
      data: the folder that PROMPT_JAX_DATA names to the commands; None leaves it as it is.
      dry: whether commands are only collected.
      further: options of every training, as words of the command line.
    """

    out: Path
    quick: bool = False
    data: Path | None = None
    dry: bool = False
    further: Sequence[str] = ()
    commands: list[str] = dataclasses.field(default_factory=list)
    gains: list[str] = dataclasses.field(default_factory=list)
    """What the votes of rows gain, a line for each test."""
    complete: bool = True
    """Whether all that rows asked for came to its end. A member that diverged did."""
    _failed: dict[str, StepFailed] = dataclasses.field(default_factory=dict)

    def scores(self, row: Row) -> tuple[Scores, list[str]]:
        """The observations of a row, after what is missing for it has been run; and what went wrong, a line for each
        reason."""
        together: Scores = {}
        wrong: dict[str, Path | None] = {}
        for step in row.steps:
            try:
                found = self._trained(step, row) if isinstance(step, Training) else self._evaluated(step, row)
            except UserError as error:
                self.complete = False
                wrong.setdefault(str(error), getattr(error, "log", None))
                continue
            for key, values in found.items():
                together.setdefault(key, []).extend(values)
        diverged = {sum(map(math.isnan, values)) for values in together.values()} - {0}
        if diverged:
            wrong[f"{max(diverged)} diverged and left out"] = None
        return together, [reason if log is None else f"{reason} ({log} has the rest)" for reason, log in wrong.items()]

    def _trained(self, training: Training, row: Row) -> Scores:
        folder, _ = self._train(training)
        if self.dry:
            return {}
        summary = read_summary(folder)
        if row.of == "vote":
            for test in summary.tests:
                if test.ensemble is not None:
                    self.gains.append(gain(test.task, test.ensemble, test.scores[test.members.index(test.best)]))
        return of_training(summary, row)

    def _evaluated(self, evaluation: Evaluation, row: Row) -> Scores:
        folder, options = self.out / "evaluations" / self._name(evaluation.name), dict(evaluation.options)
        files, state = [], ""
        if evaluation.search is not None:
            options["design"] = self._design(evaluation.search)
        if evaluation.of is not None:
            trained, experiment = self._train(evaluation.of)
            files = [str(trained / "best.npz")]
            # A folder has to be named again, and the numbers are those that the prompt was validated in.
            options = {"model": experiment.model.name, "dtype": experiment.model.dtype, **options}
            if not self.dry:
                found = (trained / "best.npz").stat()
                state = f"{found.st_size} bytes of {found.st_mtime_ns}"
        if self.quick:
            options["limit"] = QUICK_LIMIT
        words = ["evaluate", *files, *flags(options), "--out", str(folder)]
        self._run(words, folder / "scores.json", evaluation.name, state)
        if self.dry:
            return {}
        try:
            found = json.loads((folder / "scores.json").read_text())
            if row.of == "vote" and found["ensemble"] is not None:
                ensemble = EnsembleSummary(**found["ensemble"])
                self.gains.append(gain(found["task"], ensemble, found["members"][ensemble.best]["scores"]))
            return of_evaluation(found, row)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StepFailed(f"{folder / 'scores.json'} cannot be read ({error}); delete it") from error

    def _train(self, training: Training) -> tuple[Path, Experiment]:
        options = dict(training.options)
        if training.search is not None:
            options["optimizer.learning_rate"] = self._search(training.search)
        return self._run_training(training.name, training.config, options)

    def _search(self, search: Search) -> float:
        options = {**search.options, "ensemble.seed": (0,), "ensemble.learning_rate": search.rates}
        options |= {"train.test_examples": SEARCH_TESTS}
        folder, _ = self._run_training(search.name, search.config, options)
        if self.dry:
            return search.rates[0]
        members = read_summary(folder).members
        scores = [-math.inf if member.status == "diverged" else member.best.score for member in members]
        return search.rates[max(range(len(scores)), key=scores.__getitem__)]

    def _design(self, search: Templates) -> str:
        scores = []
        for number, design in enumerate(search.designs):
            options = {**search.options, "split": "validation", "design": design, "shots": 0, "shot_seeds": (0,)}
            found = self._evaluated(Evaluation(f"{search.name}-{number}", options), Row(design))
            scores += found.get((search.options["task"], "validation", search.metric), [])
        return search.designs[0] if self.dry else search.designs[max(range(len(scores)), key=scores.__getitem__)]

    def _run_training(self, name: str, config: str, options: Options) -> tuple[Path, Experiment]:
        name = self._name(name)
        folder = self.out / "runs" / name
        words = [config, "--name", name, "--runs", str(folder.parent), *flags(options | (QUICK if self.quick else {}))]
        words += self.further
        experiment = _experiment(ROOT / config, options, self.quick)
        # What has been trained from the same configuration is taken as it is. Otherwise `train` goes on, or says that
        # the run is of another one.
        self._run(["train", *words], folder / "summary.json", name, experiments.to_json(experiment))
        # What it was trained from has the further options too.
        return folder, experiment if self.dry else experiments.load_experiment(folder / "config.json")

    def _run(self, words: Sequence[str], result: Path, name: str, state: str) -> None:
        """Runs `prompt-jax` with these words, unless they have given this result before, of the same state and data."""
        folder = result.parent
        shown = shlex.join(["prompt-jax", *words])
        if self.data is not None:
            shown = f"PROMPT_JAX_DATA={shlex.quote(str(self.data))} {shown}"
        if shown not in self.commands:
            self.commands.append(shown)
        record, made = folder / "made.txt", f"{shown}\n{state}\n"
        if self.dry:
            return
        if shown in self._failed:
            raise self._failed[shown]
        log = self.out / "logs" / f"{name}.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(log.with_suffix(".lock")) as lock:
            lock.acquire(lambda holder: print(f"waiting for {holder}, which makes {name}", flush=True))
            if result.exists() and record.exists() and record.read_text() == made:
                return
            print(f"$ {shown}", flush=True)
            data = os.environ.get("PROMPT_JAX_DATA") if self.data is None else str(self.data)
            env = os.environ | ({} if data is None else {"PROMPT_JAX_DATA": os.path.abspath(data)})
            env["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [env.get("PYTHONPATH")])])
            status = _wait(words, env, log, lock)
            if status == ASKED_TO_LEAVE:
                raise KeyboardInterrupt
            if status:
                self._failed[shown] = StepFailed(_why(log, status), log)
                raise self._failed[shown]
            record.write_text(made)

    def _name(self, name: str) -> str:
        return f"quick-{name}" if self.quick else name


def _wait(words: Sequence[str], env: Mapping[str, str], log: Path, lock: FileLock) -> int:
    """Runs the words to their end and gives the status; what they tell as an error is in the log. Interrupted, they are
    asked to leave first, so that nothing goes on alone; should this process be killed, they have the lock until their
    end."""
    command = [sys.executable, "-m", "prompt_jax.cli", *words]
    with log.open("w") as errors:
        child = subprocess.Popen(command, cwd=ROOT, env=env, stderr=errors, pass_fds=lock.descriptors)
        try:
            return child.wait()
        except BaseException:
            child.terminate()
            child.wait()
            raise


def _why(log: Path, status: int) -> str:
    """The line in which a command that failed says why."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    own = [line for line in lines if line.startswith("prompt-jax: ") and "warning:" not in line] or lines
    return own[-1].removeprefix("prompt-jax: ") if own else f"it ended with status {status}"


def _experiment(path: Path, options: Options, quick: bool) -> Experiment:
    """What a configuration with these options trains. Its name and folder are left as they are."""
    values = json.loads(experiments.to_json(experiments.load_experiment(path)))
    for name, value in (options | (QUICK if quick else {})).items():
        part, _, field = name.rpartition(".")
        (values[part] if part else values)[field] = value
    return experiments.from_json(json.dumps(values))


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
