"""Preemption: after SIGTERM a run saves a checkpoint and ends."""

from typing import NoReturn

from prompt_jax.distributed.processes import Preempted, is_first
from prompt_jax.training.run import Hook, Run


class LeaveIfPreempted(Hook):
    """Check for preemption after each step, and end the run once the other hooks have saved it. The last hook."""

    def on_start(self, run: Run) -> None:
        if run.preempted:  # during the first evaluation, before any change
            _leave(run)

    def is_due(self, run: Run, step: int) -> bool:
        run.preempted = run.preemption.requested()
        return run.preempted

    def after_step(self, run: Run) -> None:
        if run.preempted:
            _leave(run)


def _leave(run: Run) -> NoReturn:
    with run.saving():
        run.checkpoints.wait()
    if not is_first():  # only the first process saves
        raise Preempted("preempted; the output of process 0 says what was saved")
    saved = run.checkpoints.latest
    where = "nothing is saved yet" if saved is None else f"saved at step {saved}: run the same command again to resume"
    raise Preempted(f"preempted; {where}")
