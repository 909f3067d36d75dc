"""The training loop: from an experiment to `runs/NAME/`, resumable at any moment."""

import contextlib
import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

import jax
import numpy as np

from prompt_jax import experiment as experiments
from prompt_jax.config.checks import check
from prompt_jax.data.prefetch import prefetch
from prompt_jax.distributed.processes import Preempted, Preemption, is_first, on_first_process, wait_for_all
from prompt_jax.distributed.sharding import to_host
from prompt_jax.errors import ConfigError, SaveError, UserError
from prompt_jax.experiment import Experiment
from prompt_jax.inference.decoding import GREEDY
from prompt_jax.inference.evaluation import Evaluation, LogitsError, evaluate_members
from prompt_jax.metrics import benchmark_average, is_share
from prompt_jax.models.prompt import Prompt
from prompt_jax.prompt_files.io import save_ensemble, save_prompt
from prompt_jax.storage.locks import FileLock, LockLost
from prompt_jax.task_format import LOWER_IS_BETTER, METRIC_NAMES
from prompt_jax.training.checkpoints import Checkpoints
from prompt_jax.training.logs import Display, Log
from prompt_jax.training.run_folder import (
    check_folder,
    check_same,
    lock_existing_run,
    open_folder,
    record_configuration,
    remove_remains,
    remove_results,
    run_lock,
)
from prompt_jax.training.setup import Setup, metadata, prepare
from prompt_jax.training.step import LARGEST_PARAMETER, TrainState
from prompt_jax.training.tasks import Task


class _Leaving(Exception):
    """The machine is wanted back, in the midst of an evaluation."""


class Diverged(UserError, RuntimeError):
    """All members have diverged; the best and the last good prompts are kept."""

    exit_status = 3


@dataclasses.dataclass
class Standing:
    """How far one member has come."""

    status: Literal["training", "stopped early", "diverged"] = "training"
    steps: int = 0  # that moved it
    metric: str = ""  # what decides: the task's first, or a mean
    score: float = -math.inf  # the best on the validation split
    best_step: int = -1
    best_scores: dict[str, float] = dataclasses.field(default_factory=dict)
    evaluations_since: int = 0


@dataclasses.dataclass
class Progress:
    """How far a run has come, as written into its checkpoints."""

    members: list[Standing]
    step: int = 0
    evaluation_due: bool = True  # at this step, and not done yet
    seconds: float = 0.0  # of training and evaluation, over all sittings

    @property
    def training(self) -> list[int]:
        """The numbers of the members that are still trained."""
        return [number for number, member in enumerate(self.members) if member.status == "training"]


@dataclasses.dataclass
class Run:
    """A run under way: what the parts of the loop share."""

    experiment: Experiment
    setup: Setup
    progress: Progress
    best: list[Any]  # each member's trainable variables at its best evaluation, on the host
    checkpoints: Checkpoints
    lock: FileLock  # of the folder; acquired in the first process alone
    log: Log
    display: Display
    best_written: bool = True  # to best.npz


def train(
    experiment: Experiment, *, tasks: Path | None = None, overwrite: bool = False, lock: FileLock | None = None
) -> tuple[Setup, Progress]:
    """Trains to the end, resuming from the last checkpoint if the run was begun before.

    Args:
      experiment: what to run.
      tasks: folder or file with the user's tasks; None is `tasks` in the working directory.
      overwrite: begin anew, deleting what is in the run's folder.
      lock: of the run's folder (`run_lock`), for a caller that writes there afterwards; else it is released at the end.

    Raises:
      ConfigError: an impossible configuration, or a run of this name with another one.
      LockHeld: another process uses the run's folder.
      LockLost: the folder was deleted, or taken over by another process.
      SaveError: a file could not be written.
      Diverged: all members have diverged.
    """
    check(experiment)
    check_folder(experiment, overwrite)
    with contextlib.ExitStack() as stack:
        held = lock or stack.enter_context(run_lock(experiment))
        on_first_process(lambda: lock_existing_run(experiment, held))
        setup = prepare(experiment, tasks)
        wait_for_all("prepared")  # nothing is deleted for a run that cannot begin
        on_first_process(lambda: open_folder(experiment, overwrite, held))
        identity = {"base": setup.model.fingerprint, "training data": setup.batches.fingerprint}
        folder = experiment.folder / "checkpoints"
        stack.callback(remove_remains, experiment.folder, held)  # when the last save is done
        checkpoints = stack.enter_context(Checkpoints(folder, experiment.train.keep_checkpoints, identity))
        states, best = setup.states, setup.trainable(setup.states)
        progress = Progress([Standing() for _ in setup.members])
        restored = checkpoints.restore({"states": states, "best": best})
        if restored is not None:
            states, best = restored.state["states"], to_host(restored.state["best"])
            progress = _resumed(restored.progress, experiment)
            if progress.step > setup.steps:
                raise ConfigError(
                    f"{experiment.folder} was trained to step {progress.step}, and this configuration ends at step "
                    f"{setup.steps}; choose another --name, or --overwrite it"
                )
            setup.batches.seek(restored.position)
        on_first_process(lambda: record_configuration(experiment))
        log = stack.enter_context(Log(experiment.folder, progress.step if restored else -1, len(setup.members)))
        display = stack.enter_context(Display(setup.steps, progress.step, experiment.train.log_every))
        run = Run(experiment, setup, progress, best, checkpoints, held, log, display)
        _run(run, states, resumed=restored is not None)
    wait_for_all("trained")
    return setup, progress


def _run(run: Run, states: tuple[TrainState, ...], resumed: bool) -> None:
    """Trains from where the run is to the end, and leaves its files as they are after the last step."""
    setup, progress = run.setup, run.progress
    run.display.say(_describe(run.experiment, setup, progress.step))
    if resumed:  # both files may be of another step, before the checkpoint or after it
        _save_best(run)
        with _saving(run):
            _save_prompts(run, "last.npz", setup.trainable(states))
    if progress.evaluation_due or (progress.step < setup.steps and progress.training):
        on_first_process(lambda: remove_results(run.experiment.folder))
        try:
            _fit(run, states)
        except LockLost:
            raise
        except BaseException:
            with contextlib.suppress(OSError, LockLost):  # must not hide the first error
                run.lock.check()
                run.log.flush()
            raise
    with _saving(run):
        run.checkpoints.wait()
    if not run.best_written:  # the results are those of this file, so that a failure ends the run
        with _saving(run, "stop"):
            _save_prompts(run, "best.npz", run.best)


def _resumed(saved: dict[str, Any], experiment: Experiment) -> Progress:
    """The progress in a checkpoint. Raises ConfigError: the checkpoint is of another configuration."""
    if begun := saved.pop("experiment", None):  # config.json may be empty, or another run's
        check_same(experiments.from_json(json.dumps(begun)), experiment)
    return Progress(**saved | {"members": [Standing(**member) for member in saved["members"]]})


def _fit(run: Run, states: tuple[TrainState, ...]) -> None:
    """Steps from where the run is to the end, evaluating and saving on the way."""
    options, setup, progress = run.experiment.train, run.setup, run.progress
    since = time.monotonic()
    pending: tuple[int, list[Any]] | None = None
    with contextlib.closing(prefetch(setup.batches, setup.place)) as batches, Preemption() as preemption:
        if progress.evaluation_due:
            states, leaving = _evaluate(run, states, preemption)
            if leaving:  # as it was begun
                _leave(run)
        for step in range(progress.step + 1, setup.steps + 1):
            if not progress.training:
                break
            batch, position = next(batches)
            states, metrics = _step(run, states, batch)
            if pending is not None:  # fetched one step late, so that the device need not wait for the host
                _finish(run, *pending)
            pending = step, metrics

            last = step == setup.steps
            evaluating, saving = last or step % options.eval_every == 0, last or step % options.checkpoint_every == 0
            leaving = preemption.noticed()
            if evaluating or saving or leaving:
                _finish(run, *pending)
                pending = None
                progress.seconds, since = progress.seconds + time.monotonic() - since, time.monotonic()
            progress.step = step
            progress.evaluation_due = evaluating and bool(progress.training)
            if progress.evaluation_due and not leaving:
                states, leaving = _evaluate(run, states, preemption)
            stopping = not progress.training
            if evaluating or saving or stopping or leaving:
                with _saving(run):
                    run.lock.check()
                    run.log.flush()  # first, so that the log is never behind a checkpoint
            if saving or stopping or leaving:
                assert position is not None  # MemberBatches has one
                with _saving(run):
                    run.checkpoints.wait()  # an error of the last save is not this one's
                with _saving(run):
                    state = {"states": states, "best": run.best}
                    run.checkpoints.save(step, state, position, _saved(run))
                with _saving(run):
                    _save_prompts(run, "last.npz", setup.trainable(states))
            if leaving:
                _leave(run)


def _saved(run: Run) -> dict[str, Any]:
    """Return the record of the run in a checkpoint, which `_resumed` reads."""
    return dataclasses.asdict(run.progress) | {"experiment": json.loads(experiments.to_json(run.experiment))}


def _leave(run: Run) -> NoReturn:
    with _saving(run):
        run.checkpoints.wait()
    if not is_first():  # only the first process saves
        raise Preempted("preempted; the output of process 0 says what was saved")
    saved = run.checkpoints.latest
    where = "nothing is saved yet" if saved is None else f"saved at step {saved}: run the same command again to resume"
    raise Preempted(f"preempted; {where}")


def _step(run: Run, states: Sequence[TrainState], batches: Sequence[Any]) -> tuple[tuple[TrainState, ...], list[Any]]:
    """Dispatches one step of each stack that has a member to train; the metrics of the others are None."""
    setup, training = run.setup, set(run.progress.training)
    stepped, metrics = [], []
    for numbers, state, batch, key in zip(setup.stacks, states, batches, setup.keys, strict=True):
        values = None
        if training & set(numbers):
            state, values = setup.step(state, setup.frozen, batch, key)
        stepped.append(state)
        metrics.append(values)
    return tuple(stepped), metrics


def _finish(run: Run, step: int, metrics: Sequence[Any]) -> None:
    """Fetches and logs the metrics of a step that was dispatched before; sees which members have diverged."""
    options, members = run.experiment.train, run.progress.members
    losses, diverged = [], {}
    for numbers, stacked in zip(run.setup.stacks, metrics, strict=True):
        fetched = {} if stacked is None else to_host(stacked)
        for place, number in enumerate(numbers):
            if members[number].status != "training":
                continue
            values = {name: float(value[place]) for name, value in fetched.items()}
            largest = values.pop("largest")
            if values.pop("diverged"):
                diverged[number] = (
                    f"loss {values['loss']:.4g}, gradient norm {values['grad_norm']:.4g}, "
                    f"largest parameter {largest:.4g} (of at most {LARGEST_PARAMETER:.2g})"
                )
                continue
            members[number].steps = step
            losses.append(values["loss"])
            if step % options.log_every == 0 or step == run.setup.steps:
                with _saving(run):
                    run.log.write(step, number, {f"train/{name}": value for name, value in values.items()})

    _report_diverged(run, step, diverged)
    if losses:
        run.display.step(step, sum(losses) / len(losses), options.batch_size * len(losses))


def _report_diverged(run: Run, step: int, reasons: Mapping[int, str]) -> None:
    """Ends the training of members that have diverged, and says why. Raises Diverged if no other member is left."""
    members = run.progress.members
    for number in reasons:
        members[number].status = "diverged"
    ended = all(member.status == "diverged" for member in members)
    for place, (number, reason) in enumerate(reasons.items(), 1):
        message = (
            f"step {step}: {_named(run, number)}training diverged and was stopped: {reason}. "
            f"{run.experiment.folder / 'best.npz'} has the best prompt until then (step {members[number].best_step}). "
            "A lower optimizer.learning_rate or optimizer.clip_norm may help"
        )
        if ended and place == len(reasons):
            raise Diverged(message)
        run.display.say(message)


def _named(run: Run, number: int) -> str:
    """What begins a message of a member, if there are several: its number, and those of its prompts if it has more."""
    if len(run.progress.members) == 1:
        return ""
    own = [str(place) for place, stored in enumerate(run.setup.stored) if stored.member == number]
    prompts = f" (prompts {', '.join(own[:-1])} and {own[-1]} of best.npz)" if len(own) > 1 else ""
    return f"member {number}{prompts}: "


def _evaluate(run: Run, states: tuple[TrainState, ...], preemption: Preemption) -> tuple[tuple[TrainState, ...], bool]:
    """Scores the members that are trained on their validation splits, keeps their best, and stops whom it is time to.

    The best is by the first of its scores (`_scores`); of equals the one trained longer.

    Returns:
      The states, and whether it is time to leave instead: then nothing has changed.
    """
    setup, progress = run.setup, run.progress
    trainable = setup.trainable(states)
    prompts = setup.prompts(trainable)

    def go_on() -> None:
        if preemption.noticed():
            raise _Leaving

    own: dict[int, dict[str, dict[str, float]]] = {number: {} for number in progress.training}
    try:
        for task, numbers in setup.by_task(progress.training):
            found = _validated(run, task, [prompts[number] for number in numbers], go_on)
            for number, result in zip(numbers, found, strict=True):
                member = setup.stored[number].member
                if result is None:
                    own.pop(member, None)
                elif member in own:
                    own[member][task.name] = result.scores
    except _Leaving:
        return states, True

    progress.evaluation_due = False
    lost = [number for number in progress.training if number not in own]
    _report_diverged(run, progress.step, dict.fromkeys(lost, "the logits on the validation split are not finite"))
    improved = False
    results = {number: _scores(by_task, run.experiment.train.best_by) for number, by_task in own.items()}
    for number, scores in results.items():
        values = {f"validation/{name}": value for name, value in scores.items()}
        with _saving(run):
            run.log.write(progress.step, number, values | {"seconds": progress.seconds})
        standing = progress.members[number]
        standing.metric, score = next(iter(scores.items()))
        standing.evaluations_since = 0 if score > standing.score else standing.evaluations_since + 1
        if score >= standing.score:
            standing.score, standing.best_step, standing.best_scores = score, progress.step, scores
            run.best[number] = trainable[number]
            improved = True
    if improved or not run.best_written:
        _save_best(run)
    if results:
        _show_scores(run, [next(iter(scores.values())) for scores in results.values()])
    return _stop_early(run, states), False


def _validated(
    run: Run, task: Task, prompts: Sequence[Prompt], before_batch: Callable[[], None]
) -> list[Evaluation | None]:
    """Each prompt's evaluation on a task's validation split; None where its logits are not finite.

    Raises:
      LogitsError: they are not at the start, which training cannot mend.
    """
    try:
        return list(
            evaluate_members(
                run.setup.model,
                prompts,
                task.examples["validation"],
                target_length=task.format.target_length,
                batch_size=run.experiment.train.eval_batch_size,
                rank=False,
                decoding=GREEDY,
                before_batch=before_batch,
            )
        )
    except LogitsError:
        if run.progress.step == 0:
            raise
        if len(prompts) == 1:
            return [None]
        return [result for prompt in prompts for result in _validated(run, task, [prompt], before_batch)]


def _scores(by_task: Mapping[str, Mapping[str, float]], best_by: Literal["first", "mean"]) -> dict[str, float]:
    """A member's scores, of which the first decides: those of its task or, of several, all of them as `TASK/METRIC`.

    Before them comes the `mean` of several tasks, or that of several metrics if the best is by it. The mean of a metric
    with a unit of its own has that metric's name, by which it is read.
    """
    if len(by_task) == 1:
        (scores,) = by_task.values()
        shares = [scores[name] for name in METRIC_NAMES if name in scores and _counts_in_mean(name)]
        mean = {"mean": sum(shares) / len(shares)} if best_by == "mean" and len(shares) > 1 else {}
        return {**mean, **scores}
    each = {f"{task}/{name}": value for task, own in by_task.items() for name, value in own.items()}
    # Those are alone if they are there (`load_tasks`).
    unit = next((name for own in by_task.values() for name in own if not is_share(name)), "mean")
    return {unit: benchmark_average(by_task), **each}


def _counts_in_mean(metric: str) -> bool:
    """Whether a mean of several metrics takes this one: a share, the higher the better."""
    return is_share(metric) and metric not in LOWER_IS_BETTER


def _show_scores(run: Run, scores: Sequence[float]) -> None:
    """The scores of an evaluation: that of the one member, or mean and range of several."""
    members, step = run.progress.members, run.progress.step
    best = max(members, key=lambda member: member.score)
    metrics = {member.metric for member in members}
    name = best.metric if len(metrics) == 1 else "score"  # of a bank, whose tasks may have different metrics
    text = f"{sum(scores) / len(scores):.4f}"
    if len(members) > 1:
        text += f" on average of {len(scores)}, {min(scores):.4f} to {max(scores):.4f}"
    run.display.score(name, scores)
    run.display.say(f"step {step}  validation {name} {text}  (best {best.score:.4f} at step {best.best_step})")


def _stop_early(run: Run, states: tuple[TrainState, ...]) -> tuple[TrainState, ...]:
    """Ends the training of members that have not got better for as many evaluations as the patience lasts."""
    members, patience = run.progress.members, run.experiment.train.patience
    stopped = [n for n in run.progress.training if patience is not None and members[n].evaluations_since >= patience]
    for number in stopped:
        members[number].status = "stopped early"
        run.display.say(
            f"{_named(run, number)}no better {members[number].metric} in {patience} evaluations; "
            f"stopped at step {run.progress.step}"
        )
    if len(run.progress.training) == len(members):
        return states
    active = [np.array([members[number].status == "training" for number in stack]) for stack in run.setup.stacks]
    return tuple(
        dataclasses.replace(state, active=run.setup.place_members(still))
        for state, still in zip(states, active, strict=True)
    )


@contextlib.contextmanager
def _saving(run: Run, errors: Literal["stop", "continue"] | None = None) -> Iterator[None]:
    """End the run if a file cannot be written inside, or report it: as `errors` says, or train.save_errors.

    Raises:
      LockLost: the folder is gone, or another process's, which explains what failed.
      SaveError: anything else.
    """
    try:
        yield
    except (SaveError, OSError) as error:
        with contextlib.suppress(OSError):
            run.lock.check()
        reason = str(error)
        if not isinstance(error, UserError):
            reason = f"{error.filename or run.experiment.folder}: {error.strerror or error}"
        if (errors or run.experiment.train.save_errors) == "stop":
            raise SaveError(reason) from error
        run.display.say(f"not saved, and training goes on: {reason}")


def _save_best(run: Run) -> None:
    run.best_written = False
    with _saving(run):
        _save_prompts(run, "best.npz", run.best)
        run.best_written = True


def _save_prompts(run: Run, name: str, trainable: Sequence[Any]) -> None:
    """Write a prompt file of all members, each with where it comes from. Raise LockLost if the folder is not ours."""
    if not is_first():
        return
    run.lock.check()
    descriptions = []
    for number, stored in enumerate(run.setup.stored):
        member = run.progress.members[stored.member]
        at_best = name == "best.npz" or member.best_step == run.progress.step
        step = member.best_step if at_best else member.steps
        scores = run.setup.own_scores(number, member.best_scores) if at_best else {}
        descriptions.append(metadata(run.setup, number, step, scores))
    path, prompts = run.experiment.folder / name, run.setup.prompts(trainable)
    if len(prompts) == 1:
        save_prompt(path, prompts[0], descriptions[0])
    else:
        save_ensemble(path, prompts, descriptions)


def _describe(experiment: Experiment, setup: Setup, start: int) -> str:
    trained, stored = setup.trained_parameters, setup.stored_parameters
    total = sum(leaf.size for leaf in jax.tree.leaves(setup.model.params))
    if experiment.prompt.method not in experiments.REPLACING_METHODS:
        total += trained
    members = f", {len(setup.members)} members" if len(setup.members) > 1 else ""
    share = f"{total:,} parameters, {trained:,} of them trained ({trained / total:.3%})"
    size = f"{stored:,} stored ({4 * stored / 2**20:,.2f} MiB)"  # in float32
    lines = [f"{experiment.name}: {setup.model.name}, {share}, {size}{members}"]
    if len(setup.members) > 1:
        lines += [f"  member {n}: {experiments.settings_text(m.settings)}" for n, m in enumerate(setup.members)]
    for task, _ in setup.by_task():
        for split, examples in task.examples.items():
            cut = "".join(f", {count} {part} cut" for part, count in examples.truncated.items() if count)
            lines.append(f"  {split}: {len(examples)} examples of {examples.name}{cut}")
    mixed = setup.members[0].tasks
    if len(mixed) > 1:
        total = sum(task.rate for task in mixed)
        lines.append(f"  drawn: {', '.join(f'{task.rate / total:.1%} {task.name}' for task in mixed)}")
    if start:
        lines.append(f"  resuming at step {start} of {setup.steps}")
    return "\n".join(lines)
