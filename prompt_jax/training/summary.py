"""What a finished run leaves for its readers: `predictions.jsonl`, `summary.json` and `report.html`."""

import dataclasses
import importlib.metadata
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from prompt_jax.data.examples import Examples
from prompt_jax.distributed.processes import is_first
from prompt_jax.ensembles.evaluation import EnsembleEvaluation, RankedVote, combine, labels_of, ranked_alone
from prompt_jax.ensembles.records import prediction_lines, write_predictions
from prompt_jax.ensembles.tables import Table, ensemble_tables, member_rows, score_table
from prompt_jax.experiment import Experiment, settings_text
from prompt_jax.inference.evaluation import Evaluation, evaluate, evaluate_members
from prompt_jax.inspection import inspect, prompt_similarity
from prompt_jax.models.prompt import Prompt
from prompt_jax.prompt_files.io import read_prompts
from prompt_jax.report.run_report import write_report
from prompt_jax.storage.files import write_text
from prompt_jax.storage.json_text import json_text
from prompt_jax.storage.locks import FileLock
from prompt_jax.task_format import TaskFormat
from prompt_jax.training.loop import Progress
from prompt_jax.training.setup import Setup

PACKAGES = ("prompt-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


@dataclasses.dataclass(frozen=True)
class Test:
    """Scores of the base and of members on one test split."""

    examples: Examples
    trained_on: bool
    numbers: Sequence[int]  # of the members
    before: Evaluation
    members: Sequence[Evaluation]
    ensemble: EnsembleEvaluation | None  # of several members, where there are answers to vote on

    @property
    def after(self) -> Evaluation:
        """The vote's, or the only member's; the first one's where nothing was answered."""
        return self.members[0] if self.ensemble is None else self.ensemble.vote

    @property
    def ranked(self) -> RankedVote | None:
        return ranked_alone(self.examples, self.members[0]) if self.ensemble is None else self.ensemble.ranked


def finish(experiment: Experiment, setup: Setup, progress: Progress, lock: FileLock | None = None) -> str:
    """Scores the run's best prompts and writes the three files. Returns the text that the command line prints.

    Of several processes all have their part in the scores, and the first writes; the others return no text.

    Args:
      lock: of the run's folder, checked before files are written.

    Raises:
      LockLost: the folder was deleted, or taken over by another process.
    """
    folder = experiment.folder
    prompts = [prompt for prompt, _ in read_prompts(folder / "best.npz")]
    tests = _tests(experiment, setup, prompts)
    # Nearest pieces are of virtual tokens; keys and values have none.
    inspections = [inspect(prompt, setup.model) for prompt in prompts] if prompts[0].encoder_tokens else None
    if not is_first():
        return ""
    if lock is not None:
        lock.check()
    if tests:
        write_predictions(folder / "predictions.jsonl", itertools.chain.from_iterable(map(_predictions, tests)))
    write_text(folder / "summary.json", json_text(_summary(experiment, setup, progress, tests), indent=2) + "\n")
    similarity = prompt_similarity(prompts) if len(prompts) > 1 and prompts[0].parts else None
    report = write_report(folder, inspections, similarity)

    shown = []
    for number, stored in enumerate(setup.stored):
        member, (metric, score) = progress.members[stored.member], _best(setup, progress, number)
        named = f", member {number} ({settings_text(stored.settings)})" if len(prompts) > 1 else ""
        ended = "" if member.status == "training" else f"; {member.status} at step {member.steps}"
        shown.append(f"best prompt{named}: step {member.best_step}, validation {metric} {score:.4f}{ended}")
    shown += [_text(setup, test) for test in tests]
    return "\n".join([*shown, f"wrote {folder / 'best.npz'}, {report}, {folder / 'summary.json'}"])


def _tests(experiment: Experiment, setup: Setup, prompts: Sequence[Prompt]) -> list[Test]:
    """The members on the test splits of the tasks they were trained on, and all of them on the further tests."""
    everyone = list(range(len(prompts)))
    runs: list[tuple[Examples, TaskFormat, list[int]]] = []
    for task, numbers in setup.by_task():
        if "test" in task.examples:
            runs.append((task.examples["test"], task.format, numbers))
    trained_on = len(runs)
    runs += [(examples, task_format, everyone) for examples, task_format in setup.further_tests]

    tests = []
    for place, (examples, task_format, numbers) in enumerate(runs):
        options: dict[str, Any] = {
            "target_length": task_format.target_length,
            "batch_size": experiment.train.eval_batch_size,
            "decoding": experiment.decoding,
        }
        before = evaluate(setup.model, None, examples, **options)
        members = evaluate_members(setup.model, [prompts[number] for number in numbers], examples, **options)
        ensemble = combine(members, examples) if len(members) > 1 and examples.needs_answers else None
        tests.append(Test(examples, place < trained_on, numbers, before, members, ensemble))
    return tests


def _predictions(test: Test) -> Iterator[dict[str, Any]]:
    """The answers of the base, of each member, and of the vote."""
    answers = [member.predictions for member in test.members]
    return prediction_lines(test.examples, answers, test.after, test.ranked, test.before)


def _summary(experiment: Experiment, setup: Setup, progress: Progress, tests: Sequence[Test]) -> dict[str, Any]:
    """`summary.json`; `prompt_jax.report.run_files.Summary` says what is in it."""
    model = setup.model
    examples, truncated = {}, {}
    for task, _ in setup.by_task():
        examples[task.name] = {split: len(each) for split, each in task.examples.items()}
        truncated[task.name] = {split: each.truncated for split, each in task.examples.items()}
    members = []
    for number, stored in enumerate(setup.stored):
        standing, prompt = progress.members[stored.member], setup.members[stored.member].experiment.prompt
        metric, score = _best(setup, progress, number)
        own = (prompt.task_length or prompt.length) if prompt.per_task == "concatenate" else 0
        members.append(
            {
                "settings": dict(stored.settings),
                "task": stored.task,
                "length": prompt.length + own,
                "status": "finished" if standing.status == "training" else standing.status,
                "steps": standing.steps,
                "best": {"metric": metric, "score": score, "step": standing.best_step},
                "validation": setup.own_scores(number, standing.best_scores),
            }
        )
    return {
        "name": experiment.name,
        "model": {
            "name": model.name,
            "revision": model.revision,
            "fingerprint": model.fingerprint,
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(model.params)),
        },
        "trained_parameters": setup.trained_parameters,
        "stored_parameters": setup.stored_parameters,
        "steps": progress.step,
        "seconds": progress.seconds,
        "examples": examples,
        "truncated": truncated,
        "versions": {package: _version(package) for package in PACKAGES},
        "members": members,
        "tests": [_test_summary(test) for test in tests],
    }


def _best(setup: Setup, progress: Progress, number: int) -> tuple[str, float]:
    """The first metric of a stored prompt, and its value where its member was the best."""
    standing = progress.members[setup.stored[number].member]
    own = setup.own_scores(number, standing.best_scores)
    return next(iter(own.items()), (standing.metric, standing.score))


def _test_summary(test: Test) -> dict[str, Any]:
    together = None
    if test.ensemble is not None:
        together = test.ensemble.summary() | {"best": test.numbers[test.ensemble.best]}
    return {
        "task": test.examples.name,
        "examples": len(test.examples),
        "trained_on": test.trained_on,
        "members": list(test.numbers),
        "before": test.before.scores,
        "scores": [member.scores for member in test.members],
        "ensemble": together,
    }


def _text(setup: Setup, test: Test) -> str:
    """What the command line prints of a test."""
    title = f"{test.examples.name}, test, {len(test.examples)} examples"
    names = [settings_text(setup.stored[number].settings) for number in test.numbers]
    if test.ensemble is None and len(names) > 1:
        called = member_rows([f"member {number}" for number in test.numbers], names)
        own = dict(zip(called, (member.scores for member in test.members), strict=True))
        return score_table(title, {"base": test.before.scores, **own}).text()
    if test.ensemble is None:
        after = test.after.scores
        rows = [[name, f"{test.before.scores[name]:.4f}", f"{value:.4f}"] for name, value in after.items()]
        return Table(title, [["", "base", "prompt"], *rows]).text()
    scores, gain, *_ = ensemble_tables(
        test.ensemble,
        f"{title}, {test.ensemble.vote_rule} vote",
        names,
        labels_of(test.examples),
        test.numbers,
        test.before.scores,
    )
    return f"{scores.text()}\n{gain.text()}"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return "not installed"
