"""Evaluation on the validation splits while training: scores, the best prompts, and early stopping."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from prompt_jax.inference.answers import LogitsError
from prompt_jax.inference.decoding import GREEDY
from prompt_jax.inference.evaluation import Evaluation, EvaluationOptions, evaluate_members
from prompt_jax.metrics import benchmark_average, is_share
from prompt_jax.models.delta import Delta
from prompt_jax.models.prompt import Prompt
from prompt_jax.task_format import LOWER_IS_BETTER, METRIC_NAMES
from prompt_jax.training.members import prompts_by_task
from prompt_jax.training.metrics import report_diverged
from prompt_jax.training.run import Hook, Run
from prompt_jax.training.saving import save_best
from prompt_jax.training.tasks import Task

Scores = dict[str, float]


class Evaluate(Hook):
    """Evaluate the members every `train.eval_every` steps, and at the start and the end."""

    def on_start(self, run: Run) -> None:
        if run.progress.evaluation_due:
            evaluate(run)

    def is_due(self, run: Run, step: int) -> bool:
        return step == run.setup.steps or step % run.experiment.train.eval_every == 0

    def after_step(self, run: Run) -> None:
        run.progress.evaluation_due = self.is_due(run, run.progress.step) and bool(run.progress.training)
        if run.progress.evaluation_due and not run.preempted:
            evaluate(run)


class _PreemptedDuringEvaluation(Exception):
    pass


def evaluate(run: Run) -> None:
    """Evaluate the members that are training, keep their best prompts, and stop members whose patience has ended.

    The first score decides which prompt is best; of equal prompts, the latest is the best. A preemption sets
    `run.preempted` and changes nothing else.
    """
    progress, setup = run.progress, run.setup
    trainable = setup.trainable(run.states)
    try:
        with progress.timed_validation():
            scores, losses = _validation_scores(run, setup.make_prompts(trainable))
    except _PreemptedDuringEvaluation:
        run.preempted = True
        return
    progress.evaluation_due = False
    diverged = [number for number in progress.training if number not in scores]
    report_diverged(run, progress.step, dict.fromkeys(diverged, "the logits on the validation split are not finite"))
    if _update_members(run, scores, losses, trainable):
        save_best(run)
    if scores:
        _show_scores(run, [next(iter(values.values())) for values in scores.values()])
    _stop_early(run)


def _validation_scores(
    run: Run, prompts: Sequence[Prompt | Delta]
) -> tuple[dict[int, Scores], dict[int, dict[str, float]]]:
    """Return the scores and the losses of the members that are training, without those whose logits are not finite.

    Losses have the names `loss` and, with several tasks, `TASK/loss` for each and `loss` for their mean.
    """

    def before_batch(number: int, total: int) -> None:
        activity.before_batch(number, total)
        if run.preemption.requested():
            raise _PreemptedDuringEvaluation

    setup, training = run.setup, run.progress.training
    by_task: dict[int, dict[str, Scores]] = {number: {} for number in training}
    losses: dict[int, dict[str, float]] = {number: {} for number in training}
    with run.display.activity("evaluating on the validation split") as activity:
        for task, trained in prompts_by_task(p for p in setup.prompts if p.member.number in training).items():
            evaluations = _evaluate_task(run, task, [prompts[prompt.number] for prompt in trained], before_batch)
            for prompt, evaluation in zip(trained, evaluations, strict=True):
                number = prompt.member.number
                if evaluation is None:
                    by_task.pop(number, None)
                elif number in by_task:
                    assert evaluation.loss is not None  # asked for in `_evaluate_task`
                    by_task[number][task.name], losses[number][f"{task.name}/loss"] = evaluation.scores, evaluation.loss
    best_by = run.experiment.train.best_by
    scores = {number: _member_scores(tasks, best_by) for number, tasks in by_task.items()}
    return scores, {number: _member_losses(losses[number]) for number in scores}


def _evaluate_task(
    run: Run, task: Task, prompts: Sequence[Prompt | Delta], before_batch: Callable[[int, int], None]
) -> list[Evaluation | None]:
    """Return each prompt's evaluation on a task's validation split; None where its logits are not finite.

    Raises:
      LogitsError: the logits are not finite before training, so training is pointless.
    """
    options = EvaluationOptions(
        task.format.target_length,
        run.experiment.train.eval_batch_size,
        decoding=GREEDY,
        rank=False,
        loss=True,
        before_batch=before_batch,
    )
    try:
        return list(evaluate_members(run.setup.model, prompts, task.examples["validation"], options))
    except LogitsError:
        if run.progress.step == 0:
            raise
        if len(prompts) == 1:
            return [None]
        return [each for prompt in prompts for each in _evaluate_task(run, task, [prompt], before_batch)]


def _member_scores(by_task: Mapping[str, Mapping[str, float]], best_by: Literal["first", "mean"]) -> Scores:
    """Return a member's scores. The first one selects the best prompt. With several tasks, names are `TASK/METRIC`.

    For several tasks, or several metrics with `best_by="mean"`, the mean comes first. It is named `mean`. The mean of a
    metric that is not a share (such as NIST) has the name of the metric, so that it is shown in the metric's unit.
    """
    if len(by_task) == 1:
        (scores,) = by_task.values()
        shares = [scores[name] for name in METRIC_NAMES if name in scores and _counts_in_mean(name)]
        mean = {"mean": sum(shares) / len(shares)} if best_by == "mean" and len(shares) > 1 else {}
        return {**mean, **scores}
    each = {f"{task}/{name}": value for task, scores in by_task.items() for name, value in scores.items()}
    # `load_tasks` checks that such a metric is the only one.
    unit = next((name for scores in by_task.values() for name in scores if not is_share(name)), "mean")
    return {unit: benchmark_average(by_task), **each}


def _member_losses(by_task: Mapping[str, float]) -> dict[str, float]:
    mean = {"loss": sum(by_task.values()) / len(by_task)}
    return {**mean, **(by_task if len(by_task) > 1 else {})}


def _counts_in_mean(metric: str) -> bool:
    """Return whether a metric is a share, and higher is better."""
    return is_share(metric) and metric not in LOWER_IS_BETTER


def _update_members(
    run: Run, scores: Mapping[int, Scores], losses: Mapping[int, dict[str, float]], trainable: Sequence[Any]
) -> bool:
    """Log the scores and keep the best trainable variables. Return whether a member has a new best."""
    progress, improved = run.progress, False
    for number, values in scores.items():
        with run.saving():
            logged = {f"validation/{name}": value for name, value in {**values, **losses[number]}.items()}
            run.log.write(progress.step, number, logged | {"seconds": progress.seconds})
        member = progress.members[number]
        member.metric, score = next(iter(values.items()))
        member.evaluations_since = 0 if score > member.score else member.evaluations_since + 1
        if score >= member.score:
            member.score, member.best_step, member.best_scores = score, progress.step, values
            member.best_losses = losses[number]
            run.best[number] = trainable[number]
            improved = True
    return improved


def _show_scores(run: Run, scores: Sequence[float]) -> None:
    """Show the score of the only member, or mean and range of several."""
    members, step = run.progress.members, run.progress.step
    best = max(members, key=lambda member: member.score)
    metrics = {member.metric for member in members}
    name = best.metric if len(metrics) == 1 else "score"  # members may train on tasks with different metrics
    text = f"{sum(scores) / len(scores):.4f}"
    if len(members) > 1:
        text += f" on average of {len(scores)}, {min(scores):.4f} to {max(scores):.4f}"
    run.display.score(name, scores)
    run.display.write(f"step {step}  validation {name} {text}  (best {best.score:.4f} at step {best.best_step})")


def _stop_early(run: Run) -> None:
    """End the training of members that have not improved for `train.patience` evaluations."""
    members, patience = run.progress.members, run.experiment.train.patience
    stopped = [n for n in run.progress.training if patience is not None and members[n].evaluations_since >= patience]
    for number in stopped:
        members[number].status = "stopped early"
        run.display.write(
            f"{run.member_title(number)}no better {members[number].metric} in {patience} evaluations; "
            f"stopped at step {run.progress.step}"
        )
    if len(run.progress.training) == len(members):
        return
    active = [np.array([members[m.number].status == "training" for m in group]) for group in run.setup.groups]
    run.states = tuple(
        dataclasses.replace(state, active=run.setup.place_members(still))
        for state, still in zip(run.states, active, strict=True)
    )
