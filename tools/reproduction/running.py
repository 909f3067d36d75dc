"""Runs the commands of a table, or reuses their earlier results, and reads the scores."""

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
from prompt_jax.methods import with_method
from prompt_jax.report.run_files import EnsembleSummary, read_summary
from prompt_jax.storage.locks import FileLock
from tools.reproduction.scores import Scores, evaluation_scores, training_scores, vote_gain
from tools.reproduction.table import Evaluation, Options, Row, Search, Templates, Training

ROOT = Path(__file__).resolve().parents[2]

# Overrides of every training with --quick: a few steps and examples, to test that everything runs.
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
PREEMPTED = 75  # exit status of `train` after SIGTERM, when it has saved
QUICK_LIMIT = 4  # examples that `evaluate` scores with --quick
SEARCH_TESTS = 16  # test examples in a search, which only validation data decide


class StepFailed(UserError, RuntimeError):
    """A command that failed. The message is its last line; the log has the rest."""

    def __init__(self, reason: str, log: Path | None = None):
        super().__init__(reason)
        self.log = log


@dataclasses.dataclass
class Runner:
    """Runs the commands of tables.

    Attributes:
      out: folder with `runs/`, `evaluations/` and `logs/`.
      quick: whether to use a few steps and examples.
      data: value of PROMPT_JAX_DATA for the commands; None inherits it.
      dry: whether to only collect the commands.
      train_options: command-line words for every training.
      gains: gains of the votes, one line per test.
      complete: whether every command succeeded, even if a member diverged.
    """

    out: Path
    quick: bool = False
    data: Path | None = None
    dry: bool = False
    train_options: Sequence[str] = ()
    commands: list[str] = dataclasses.field(default_factory=list)
    gains: list[str] = dataclasses.field(default_factory=list)
    complete: bool = True
    _failed: dict[str, StepFailed] = dataclasses.field(default_factory=dict)

    def scores(self, row: Row) -> tuple[Scores, list[str]]:
        """Run the missing steps of a row. Returns its scores, and one line per reason for missing figures."""
        scores: Scores = {}
        reasons: dict[str, Path | None] = {}
        for step in row.steps:
            try:
                of_step = self._trained(step, row) if isinstance(step, Training) else self._evaluated(step, row)
            except UserError as error:
                self.complete = False
                reasons.setdefault(str(error), getattr(error, "log", None))
                continue
            for key, values in of_step.items():
                scores.setdefault(key, []).extend(values)
        diverged = {sum(map(math.isnan, values)) for values in scores.values()} - {0}
        if diverged:
            reasons[f"{max(diverged)} diverged and left out"] = None
        return scores, [text if log is None else f"{text} ({log} has the rest)" for text, log in reasons.items()]

    def _trained(self, training: Training, row: Row) -> Scores:
        folder, _ = self._train(training)
        if self.dry:
            return {}
        summary = read_summary(folder)
        if row.of == "vote":
            for test in summary.tests:
                if test.ensemble is not None:
                    self.gains.append(vote_gain(test.task, test.ensemble, test.scores[test.members.index(test.best)]))
        return training_scores(summary, row)

    def _evaluated(self, evaluation: Evaluation, row: Row) -> Scores:
        folder, options = self.out / "evaluations" / self._name(evaluation.name), dict(evaluation.options)
        files, state = [], ""
        if evaluation.search is not None:
            options["design"] = self._design(evaluation.search)
        if evaluation.of is not None:
            trained, experiment = self._train(evaluation.of)
            files = [str(trained / "best.npz")]
            # A prompt does not name a base that is a folder; the dtype is that of its validation.
            options = {"model": experiment.model.name, "dtype": experiment.model.dtype, **options}
            if not self.dry:
                stat = (trained / "best.npz").stat()
                state = f"{stat.st_size} bytes of {stat.st_mtime_ns}"
        if self.quick:
            options["limit"] = QUICK_LIMIT
        words = ["evaluate", *files, *flags(options), "--out", str(folder)]
        self._run(words, folder / "scores.json", evaluation.name, state)
        if self.dry:
            return {}
        try:
            result = json.loads((folder / "scores.json").read_text())
            if row.of == "vote" and result["ensemble"] is not None:
                ensemble = EnsembleSummary(**result["ensemble"])
                self.gains.append(vote_gain(result["task"], ensemble, result["members"][ensemble.best]["scores"]))
            return evaluation_scores(result, row)
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
            of_design = self._evaluated(Evaluation(f"{search.name}-{number}", options), Row(design))
            scores += of_design.get((search.options["task"], "validation", search.metric), [])
        return search.designs[0] if self.dry else search.designs[max(range(len(scores)), key=scores.__getitem__)]

    def _run_training(self, name: str, config: str, options: Options) -> tuple[Path, Experiment]:
        name = self._name(name)
        folder = self.out / "runs" / name
        words = [config, "--name", name, "--runs", str(folder.parent), *flags(options | (QUICK if self.quick else {}))]
        words += self.train_options
        experiment = _experiment(ROOT / config, options, self.quick)
        # A finished run of the same configuration is reused. Otherwise `train` resumes it, or fails if the run has
        # another configuration.
        self._run(["train", *words], folder / "summary.json", name, experiments.to_json(experiment))
        # The run's configuration includes train_options.
        return folder, experiment if self.dry else experiments.load_experiment(folder / "config.json")

    def _run(self, words: Sequence[str], result: Path, name: str, state: str) -> None:
        """Run `prompt-jax` with these words, unless they made `result` before, from the same data and state."""
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
            lock.acquire(lambda holder: print(f"waiting for {holder}, which runs {name}", flush=True))
            if result.exists() and record.exists() and record.read_text() == made:
                return
            print(f"$ {shown}", flush=True)
            data = os.environ.get("PROMPT_JAX_DATA") if self.data is None else str(self.data)
            env = os.environ | ({} if data is None else {"PROMPT_JAX_DATA": os.path.abspath(data)})
            env["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [env.get("PYTHONPATH")])])
            status = _wait(words, env, log, lock)
            if status == PREEMPTED:
                raise KeyboardInterrupt
            if status:
                self._failed[shown] = StepFailed(_why(log, status), log)
                raise self._failed[shown]
            record.write_text(made)

    def _name(self, name: str) -> str:
        return f"quick-{name}" if self.quick else name


def _wait(words: Sequence[str], env: Mapping[str, str], log: Path, lock: FileLock) -> int:
    """Run `prompt-jax` with these words, with standard error in the log. Returns the exit status.

    If this process is interrupted, the command gets SIGTERM and is waited for. If this process is killed, the command
    holds the lock until its end.
    """
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
    """Return the line of the log that tells why a command failed."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("prompt-jax: ") and "warning:" not in line] or lines
    return errors[-1].removeprefix("prompt-jax: ") if errors else f"it ended with status {status}"


def _experiment(path: Path, options: Options, quick: bool) -> Experiment:
    """Return the experiment of a configuration with these options, with the configuration's name and folder."""
    experiment, options = experiments.load_experiment(path), {**options, **(QUICK if quick else {})}
    if method := options.pop("prompt.method", None):
        experiment = dataclasses.replace(experiment, prompt=with_method(experiment.prompt, method))
    values = json.loads(experiments.to_json(experiment))
    for name, value in options.items():
        section, _, field = name.rpartition(".")
        (values[section] if section else values)[field] = value
    return experiments.from_json(json.dumps(values))


def flags(options: Options) -> list[str]:
    """Return options as command-line words: `{"ensemble.seed": (0, 1)}` becomes `--ensemble.seed 0 1`."""
    words: list[str] = []
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            section, dot, field = flag.removeprefix("--").rpartition(".")
            words.append(flag if value else f"--{section}{dot}no-{field}")
        elif isinstance(value, tuple):
            words += [flag, *map(str, value)]
        else:
            words += [flag, str(value)]
    return words
