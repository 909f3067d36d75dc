"""The metrics of training steps: fetched from the device, checked for divergence, and logged."""

from collections.abc import Mapping, Sequence
from typing import Any

from prompt_jax.distributed.sharding import to_host
from prompt_jax.errors import UserError
from prompt_jax.training.optimizers import learning_rate
from prompt_jax.training.run import Hook, Run
from prompt_jax.training.step import LARGEST_PARAMETER


class Diverged(UserError, RuntimeError):
    """All members have diverged; the best and the last good prompts are kept."""

    exit_status = 3


class LogMetrics(Hook):
    """Write metrics to the log and show them on the terminal. Comes before `SaveCheckpoints`."""

    def on_metrics(self, run: Run, step: int, metrics: Mapping[int, Mapping[str, float]]) -> None:
        options = run.experiment.train
        if step % options.log_every == 0 or step == run.setup.steps:
            for number, values in metrics.items():
                optimizer = run.setup.absolute_rate(number)
                values = {**values, "learning_rate": learning_rate(optimizer, step, run.setup.steps)}
                with run.saving():
                    run.log.write(step, number, {f"train/{name}": value for name, value in values.items()})
        if metrics:
            loss = sum(values["loss"] for values in metrics.values()) / len(metrics)
            run.display.step(step, loss, options.batch_size * len(metrics))

    def after_step(self, run: Run) -> None:
        with run.saving():
            run.lock.check()
            run.log.flush()  # before the checkpoint, so that the log is never behind it


def fetch_metrics(run: Run, step: int, groups: Sequence[Any]) -> dict[int, dict[str, float]]:
    """Return the metrics of a step that was dispatched before, by member. End the training of those that diverged.

    Args:
      groups: the metrics [E] of each group; None for a group without a member that is training.

    Raises:
      Diverged: no member is left in training.
    """
    members = run.progress.members
    metrics, diverged = {}, {}
    for group, stacked in zip(run.setup.groups, groups, strict=True):
        fetched = {} if stacked is None else to_host(stacked)
        for place, number in enumerate(member.number for member in group):
            if members[number].status != "training":
                continue
            values = {name: float(value[place]) for name, value in fetched.items()}
            largest = values.pop("largest")
            if values.pop("diverged"):
                diverged[number] = (
                    f"loss {values['loss']:.4g}, gradient norm {values['grad_norm']:.4g}, "
                    f"largest parameter {largest:.4g} (of at most {LARGEST_PARAMETER:.2g})"
                )
            else:
                members[number].steps = step
                metrics[number] = values
    report_diverged(run, step, diverged)
    return metrics


def report_diverged(run: Run, step: int, reasons: Mapping[int, str]) -> None:
    """End the training of members that diverged, and say why. Raise Diverged if no member is left in training."""
    members = run.progress.members
    for number in reasons:
        members[number].status = "diverged"
    ended = all(member.status == "diverged" for member in members)
    for place, (number, reason) in enumerate(reasons.items(), 1):
        message = (
            f"step {step}: {run.member_title(number)}training diverged and was stopped: {reason}. "
            f"{run.experiment.folder / 'best.npz'} has the best prompt until then (step {members[number].best_step}). "
            "A lower optimizer.learning_rate or optimizer.clip_norm may help"
        )
        if ended and place == len(reasons):
            raise Diverged(message)
        run.display.write(message)
