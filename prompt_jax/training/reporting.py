"""`report.html` while a run trains."""

import time

from prompt_jax.distributed.processes import is_first
from prompt_jax.report.run_report import write_report
from prompt_jax.training.run import Hook, Run
from prompt_jax.training.summary import summarize

SECONDS = 30  # at least, between two versions of the page


class UpdateReport(Hook):
    """Write `report.html` after evaluations. Comes after `LogMetrics`, whose log has the curves."""

    def on_start(self, run: Run) -> None:
        if run.progress.step == 0:
            run.log.flush()
        _write(run)

    def after_step(self, run: Run) -> None:
        options = run.experiment.train
        if run.progress.step % options.eval_every == 0 and time.monotonic() - run.reported > SECONDS:
            _write(run)


def _write(run: Run) -> None:
    if not is_first() or run.preempted:
        return
    summary = summarize(run.experiment, run.setup, run.progress, [], finished=False)
    with run.saving():
        run.lock.check()
        write_report(run.experiment.folder, summary=summary, steps=run.setup.steps)
    run.reported = time.monotonic()
