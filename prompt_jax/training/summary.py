"""The results of a finished run: `predictions.jsonl`, `summary.json` and `report.html`."""

import dataclasses
import itertools
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from prompt_jax.data.examples import Examples
from prompt_jax.distributed.processes import Preempted, Preemption, is_first
from prompt_jax.ensembles.evaluation import (
    EnsembleEvaluation,
    RankedVote,
    combine,
    label_confusion,
    labels_of,
    ranked_alone,
)
from prompt_jax.ensembles.records import prediction_lines, write_predictions
from prompt_jax.ensembles.tables import Table, ensemble_tables, member_rows, score_table
from prompt_jax.experiment import Experiment, settings_text
from prompt_jax.inference.evaluation import Evaluation, EvaluationOptions, evaluate, evaluate_members
from prompt_jax.inspection.neighbors import inspect
from prompt_jax.inspection.similarity import prompt_similarity
from prompt_jax.metrics.labels import precision_recall
from prompt_jax.models.delta import Delta
from prompt_jax.models.prompt import Prompt
from prompt_jax.prompt_files.io import read_prompts
from prompt_jax.report.run_files import (
    BaseSummary,
    BestSummary,
    EnsembleSummary,
    LabelScores,
    MemberSummary,
    Summary,
    TaskScores,
    Throughput,
    Times,
    Truncated,
)
from prompt_jax.report.run_report import write_report
from prompt_jax.report.terminal import Activity
from prompt_jax.storage.files import write_text
from prompt_jax.storage.json_text import json_text
from prompt_jax.storage.locks import FileLock
from prompt_jax.task_format import TaskFormat
from prompt_jax.training.environment import environment, versions
from prompt_jax.training.members import TrainedPrompt, prompts_by_task
from prompt_jax.training.run import RunProgress
from prompt_jax.training.setup import Setup


@dataclasses.dataclass(frozen=True)
class Test:
    """Evaluations of the base and of members on one test split."""

    examples: Examples
    trained_on: bool
    numbers: Sequence[int]  # the numbers of the members
    before: Evaluation
    members: Sequence[Evaluation]
    ensemble: EnsembleEvaluation | None  # None unless several members vote

    @property
    def after(self) -> Evaluation:
        """The vote, the only member, or the first of several that do not vote."""
        return self.members[0] if self.ensemble is None else self.ensemble.vote

    @property
    def ranked(self) -> RankedVote | None:
        return ranked_alone(self.examples, self.members[0]) if self.ensemble is None else self.ensemble.ranked


def finish(experiment: Experiment, setup: Setup, progress: RunProgress, lock: FileLock | None = None) -> str:
    """Evaluate the run's best prompts on the test splits, and write the three files.

    In a distributed run all processes evaluate, and the first one writes.

    Args:
      lock: the lock of the run's folder, checked before files are written.

    Returns:
      The text that the command line prints; empty in all processes but the first.

    Raises:
      LockLost: the folder was deleted, or taken over by another process.
      Preempted: SIGTERM came. Nothing is written.
    """
    folder = experiment.folder
    prompts = [prompt for prompt, _ in read_prompts(folder / "best.npz")]
    started = time.monotonic()
    with Preemption() as preemption:
        tests = _tests(experiment, setup, prompts, preemption)
        _leave_if_preempted(preemption)
    seconds = time.monotonic() - started
    # Only virtual tokens have nearest vocabulary pieces; keys and values do not.
    inspections = [inspect(prompt, setup.model) for prompt in prompts] if "encoder_tokens" in prompts[0].parts else None
    if not is_first():
        return ""
    if lock is not None:
        lock.check()
    if tests:
        write_predictions(folder / "predictions.jsonl", itertools.chain.from_iterable(map(_predictions, tests)))
    summary = summarize(experiment, setup, progress, tests, test_seconds=seconds if tests else None)
    write_text(folder / "summary.json", json_text(dataclasses.asdict(summary), indent=2) + "\n")
    similarity = prompt_similarity(prompts) if len(prompts) > 1 and prompts[0].parts else None
    report = write_report(folder, inspections, similarity)

    lines = []
    for prompt in setup.prompts:
        member, (metric, score) = progress.members[prompt.member.number], _best(progress, prompt)
        named = f", member {prompt.number} ({settings_text(prompt.settings)})" if len(prompts) > 1 else ""
        ended = "" if member.status == "training" else f"; {member.status} at step {member.steps}"
        lines.append(f"best prompt{named}: step {member.best_step}, validation {metric} {score:.4f}{ended}")
    lines += [_text(setup, test) for test in tests]
    return "\n".join([*lines, f"wrote {folder / 'best.npz'}, {report}, {folder / 'summary.json'}"])


def _tests(
    experiment: Experiment, setup: Setup, prompts: Sequence[Prompt | Delta], preemption: Preemption
) -> list[Test]:
    """Evaluate members on the test splits of the tasks they were trained on, and all of them on the further tests."""
    everyone = list(range(len(prompts)))
    runs: list[tuple[Examples, TaskFormat, list[int]]] = []
    for task, trained in prompts_by_task(setup.prompts).items():
        if "test" in task.examples:
            runs.append((task.examples["test"], task.format, [prompt.number for prompt in trained]))
    trained_on = len(runs)
    runs += [(examples, task_format, everyone) for examples, task_format in setup.further_tests]

    def before_batch(number: int, total: int) -> None:
        activity.before_batch(number, total)
        _leave_if_preempted(preemption)

    tests = []
    for place, (examples, task_format, numbers) in enumerate(runs):
        options = EvaluationOptions(
            task_format.target_length,
            experiment.train.eval_batch_size,
            decoding=experiment.decoding,
            before_batch=before_batch,
        )
        with Activity(f"evaluating the base on {examples.name}", enabled=is_first()) as activity:
            before = evaluate(setup.model, None, examples, options)
        with Activity(f"evaluating the prompts on {examples.name}", enabled=is_first()) as activity:
            members = evaluate_members(setup.model, [prompts[number] for number in numbers], examples, options)
        ensemble = combine(members, examples) if len(members) > 1 and examples.needs_answers else None
        tests.append(Test(examples, place < trained_on, numbers, before, members, ensemble))
    return tests


def _leave_if_preempted(preemption: Preemption) -> None:
    if preemption.requested():
        raise Preempted("preempted in the final evaluation; run the same command again to repeat it")


def _predictions(test: Test) -> Iterator[dict[str, Any]]:
    """Return the lines of `predictions.jsonl`: the answers of the base, of each member, and of the vote."""
    answers = [member.predictions for member in test.members]
    return prediction_lines(test.examples, answers, test.after, test.ranked, test.before)


def summarize(
    experiment: Experiment,
    setup: Setup,
    progress: RunProgress,
    tests: Sequence[Test],
    *,
    test_seconds: float | None = None,
    finished: bool = True,
) -> Summary:
    """Return what `summary.json` holds; with `finished` false, the same for a run that is still training."""
    model, tasks = setup.model, list(prompts_by_task(setup.prompts))
    return Summary(
        name=experiment.name,
        model=BaseSummary(
            model.name, model.revision, model.fingerprint, sum(leaf.size for leaf in jax.tree.leaves(model.params))
        ),
        trained_parameters=setup.trained_parameters,
        stored_parameters=setup.stored_parameters,
        steps=progress.step,
        seconds=progress.seconds,
        examples={task.name: {split: len(each) for split, each in task.examples.items()} for task in tasks},
        truncated={
            task.name: {split: Truncated(**each.truncated) for split, each in task.examples.items()} for task in tasks
        },
        versions=versions(),
        members=[_member_summary(setup, progress, prompt, finished) for prompt in setup.prompts],
        tests=[_test_summary(test) for test in tests],
        sessions=progress.sessions or None,
        times=_times(progress, test_seconds) if progress.sessions else None,
        throughput=_throughput(progress),
        environment=environment(),
    )


def _times(progress: RunProgress, test_seconds: float | None) -> Times:
    return Times(
        compile=progress.compile_seconds,
        train=progress.train_seconds,
        validation=progress.validation_seconds,
        test=test_seconds,
    )


def _throughput(progress: RunProgress) -> Throughput | None:
    if not progress.sessions or progress.train_seconds <= 0:
        return None
    return Throughput(progress.examples / progress.train_seconds, progress.tokens / progress.train_seconds)


def _member_summary(setup: Setup, progress: RunProgress, prompt: TrainedPrompt, finished: bool) -> MemberSummary:
    member, (metric, score) = progress.members[prompt.member.number], _best(progress, prompt)
    return MemberSummary(
        settings=dict(prompt.settings),
        task=prompt.task,
        length=prompt.member.experiment.prompt.stored_length,
        status="finished" if finished and member.status == "training" else member.status,
        steps=member.steps,
        best=BestSummary(metric, score, member.best_step),
        validation=prompt.select_scores(member.best_scores),
        validation_loss=prompt.select_scores(member.best_losses).get("loss"),
        learning_rate=setup.absolute_rate(prompt.member.number).learning_rate,
    )


def _best(progress: RunProgress, prompt: TrainedPrompt) -> tuple[str, float]:
    """Return a prompt's first metric, and its value at the member's best evaluation."""
    member = progress.members[prompt.member.number]
    scores = prompt.select_scores(member.best_scores)
    return next(iter(scores.items()), (member.metric, member.score))


def _test_summary(test: Test) -> TaskScores:
    return TaskScores(
        task=test.examples.name,
        examples=len(test.examples),
        trained_on=test.trained_on,
        members=list(test.numbers),
        before=test.before.scores,
        scores=[member.scores for member in test.members],
        ensemble=_ensemble_summary(test.ensemble, test.numbers),
        labels=_label_scores(test),
    )


def _label_scores(test: Test) -> list[LabelScores]:
    """Return the precision and recall of each label, for the vote or the only prompt; empty for free text."""
    labels, voted = labels_of(test.examples), test.ensemble
    if not labels or not test.examples.needs_answers or (voted is None and len(test.members) > 1):
        return []
    counts = label_confusion(test.examples, test.after.predictions).tolist()
    return [LabelScores(label, *scores) for label, scores in zip(labels, precision_recall(counts), strict=True)]


def _ensemble_summary(ensemble: EnsembleEvaluation | None, numbers: Sequence[int]) -> EnsembleSummary | None:
    if ensemble is None:
        return None
    return EnsembleSummary(
        vote_rule=ensemble.vote_rule,
        vote=ensemble.vote.scores,
        average=ensemble.average,
        best=numbers[ensemble.best],
        oracle=ensemble.oracle,
        agreement=ensemble.agreement.tolist(),
        intervals={"best": ensemble.intervals["best"], "average": ensemble.intervals["average"]},
    )


def _text(setup: Setup, test: Test) -> str:
    """Return what the command line prints about a test."""
    title = f"{test.examples.name}, test, {len(test.examples)} examples"
    names = [settings_text(setup.prompts[number].settings) for number in test.numbers]
    if test.ensemble is None and len(names) > 1:
        called = member_rows([f"member {number}" for number in test.numbers], names)
        member_scores = dict(zip(called, (member.scores for member in test.members), strict=True))
        return score_table(title, {"base": test.before.scores, **member_scores}).text()
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
