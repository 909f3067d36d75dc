"""The training loop: from an experiment to `runs/NAME/`. A run can be stopped at any moment and resumed."""

import contextlib
import functools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prompt_jax.data.member_batches import GroupBatch
from prompt_jax.data.prefetch import prefetch
from prompt_jax.distributed.processes import Preempted, Preemption, is_first, on_first_process, wait_for_all
from prompt_jax.experiment import Experiment, check
from prompt_jax.report.terminal import Activity
from prompt_jax.storage.locks import FileLock, LockLost
from prompt_jax.training.checkpoints import Checkpoints
from prompt_jax.training.choices import with_mesh
from prompt_jax.training.evaluate import Evaluate
from prompt_jax.training.logs import Display, Log
from prompt_jax.training.metrics import LogMetrics, fetch_metrics
from prompt_jax.training.preemption import LeaveIfPreempted
from prompt_jax.training.reporting import UpdateReport
from prompt_jax.training.run import Hook, Run, RunProgress, describe
from prompt_jax.training.run_folder import (
    check_folder,
    lock_existing_run,
    open_folder,
    record_configuration,
    remove_remains,
    remove_results,
    run_lock,
)
from prompt_jax.training.saving import SaveCheckpoints, restore, save_best, save_last, start
from prompt_jax.training.setup import Setup, prepare
from prompt_jax.training.tensorboard import TensorBoard
from prompt_jax.training.trackers import Trackers

# In this order: scores and logs are written before the checkpoint that follows them, and preemption ends the run last.
HOOKS: tuple[Hook, ...] = (Evaluate(), LogMetrics(), UpdateReport(), SaveCheckpoints(), LeaveIfPreempted())


def fit(run: Run) -> None:
    """Train from `run.progress.step` to the last step. Evaluation, logs, checkpoints and preemption are hooks."""
    setup, progress = run.setup, run.progress
    started, pending = time.monotonic() - progress.seconds, None
    with contextlib.closing(prefetch(setup.batches, functools.partial(_place, setup))) as batches:
        for hook in HOOKS:
            hook.on_start(run)
        for step in range(progress.step + 1, setup.steps + 1):
            if not progress.training:
                break
            (batch, tokens), run.position = next(batches)
            began = time.monotonic()
            with run.display.compiling(batch) as compiling:
                metrics = _step(run, batch)
            if compiling is not None:
                progress.compile_seconds += time.monotonic() - began
            _count(run, tokens)
            if pending is not None:  # one step late, so that the device does not wait for the host
                _receive(run, *pending)
            pending = step, metrics
            due = [hook for hook in HOOKS if hook.is_due(run, step)]
            if due:
                _receive(run, *pending)
                pending, progress.seconds = None, time.monotonic() - started
            progress.step = step
            for hook in HOOKS if due else ():
                hook.after_step(run)


def _step(run: Run, batches: Sequence[Any]) -> list[Any]:
    """Dispatch one step of each group with a member that is training. Return the metrics; None for other groups."""
    setup, training = run.setup, set(run.progress.training)
    states, metrics = [], []
    for group, state, batch, key in zip(setup.groups, run.states, batches, setup.keys, strict=True):
        values = None
        if any(member.number in training for member in group):
            state, values = setup.step(state, setup.model.params, batch, key)
        states.append(state)
        metrics.append(values)
    run.states = tuple(states)
    return metrics


def _place(setup: Setup, batches: Sequence[GroupBatch]) -> tuple[list[Any], list[list[int]]]:
    """Return each group's batch on the devices, and its members' numbers of tokens."""
    return list(map(setup.place, batches)), [batch.tokens for batch in batches]


def _count(run: Run, tokens: Sequence[Sequence[int]]) -> None:
    """Add a step's examples and tokens of the members that are training."""
    progress, training = run.progress, set(run.progress.training)
    progress.examples += len(training) * run.experiment.train.batch_size
    for group, counts in zip(run.setup.groups, tokens, strict=True):
        progress.tokens += sum(count for m, count in zip(group, counts, strict=True) if m.number in training)


def _receive(run: Run, step: int, metrics: Sequence[Any]) -> None:
    """Fetch the metrics of a step and pass them to the hooks."""
    values = fetch_metrics(run, step, metrics)
    for hook in HOOKS:
        hook.on_metrics(run, step, values)


def train(
    experiment: Experiment,
    *,
    tasks: Path | None = None,
    overwrite: bool = False,
    lock: FileLock | None = None,
    trackers: Trackers | None = None,
) -> tuple[Setup, RunProgress]:
    """Train to the end, resuming from the last checkpoint if there is one.

    Args:
      experiment: the experiment to run.
      tasks: folder or file with the user's tasks; None is `tasks` in the working directory.
      overwrite: delete the content of the run's folder and start anew.
      lock: the lock of the run's folder (`run_lock`), if the caller writes to the folder afterwards. Without it, the
        function locks the folder itself.
      trackers: the run's trackers, if the caller tests the prompts afterwards. Without them, the function creates and
        finishes those of the experiment.

    Raises:
      ConfigError: the configuration is impossible, or a run of this name has another configuration.
      LockHeld: another process uses the run's folder.
      LockLost: the folder was deleted, or taken over by another process.
      SaveError: a file could not be written. The last complete checkpoint is kept.
      Diverged: all members have diverged.
      TrackerError: an experiment tracker cannot start.
    """
    check(experiment)
    check_folder(experiment, overwrite)
    with contextlib.ExitStack() as stack:
        trackers = trackers or stack.enter_context(Trackers(experiment))
        held = lock or stack.enter_context(run_lock(experiment))
        on_first_process(lambda: lock_existing_run(experiment, held))
        preemption = stack.enter_context(Preemption())  # noticed at the next step or batch
        with Activity("loading the model and the data", enabled=is_first()):
            setup = prepare(with_mesh(experiment), tasks)
        _leave_if_preempted(preemption)
        wait_for_all("prepared")  # nothing is deleted for a run that cannot begin
        on_first_process(lambda: open_folder(experiment, overwrite, held))
        identity = {"base": setup.model.fingerprint, "training data": setup.batches.fingerprint}
        folder = experiment.folder / "checkpoints"
        stack.callback(remove_remains, experiment.folder, held)  # when the last save is done
        checkpoints = stack.enter_context(Checkpoints(folder, experiment.train.keep_checkpoints, identity))
        restored = restore(experiment, setup, checkpoints)
        progress, states, best = restored or start(setup)
        on_first_process(lambda: record_configuration(experiment))
        log = stack.enter_context(Log(experiment.folder, progress.step if restored else -1, trackers))
        trackers.start(log.history, [TensorBoard(log.local_folder)])
        display = stack.enter_context(Display(setup.steps, progress.step, experiment.train.log_every))
        run = Run(experiment, setup, progress, states, best, checkpoints, held, log, display, preemption)
        _train_to_the_end(run, resumed=restored is not None)
    wait_for_all("trained")
    return setup, progress


def _train_to_the_end(run: Run, resumed: bool) -> None:
    """Train the remaining steps, if any, so that the run's files are those of the last step."""
    progress = run.progress
    run.display.write(describe(run))
    if resumed:  # both files may be of a step before the checkpoint, or after it
        save_best(run)
        save_last(run)
    if progress.evaluation_due or (progress.step < run.setup.steps and progress.training):
        on_first_process(lambda: remove_results(run.experiment.folder))
        if progress.sessions or not resumed:
            progress.sessions += 1
        try:
            fit(run)
        except LockLost:
            raise
        except BaseException:
            with contextlib.suppress(OSError, LockLost):  # must not hide the first error
                run.lock.check()
                run.log.flush()
            raise
    else:
        _leave_if_preempted(run.preemption)
    with run.saving():
        run.checkpoints.wait()


def _leave_if_preempted(preemption: Preemption) -> None:
    """Raise Preempted after SIGTERM while nothing is trained, so there is nothing to save."""
    if preemption.requested():
        raise Preempted("preempted while the run was loaded; run the same command again")
