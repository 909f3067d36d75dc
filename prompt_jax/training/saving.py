"""Save checkpoints, `best.npz` and `last.npz` during training."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import optax

from prompt_jax import experiment as experiments
from prompt_jax.distributed.processes import is_first
from prompt_jax.distributed.sharding import to_host
from prompt_jax.errors import ConfigError
from prompt_jax.experiment import Experiment
from prompt_jax.prompt_files.io import save_ensemble, save_prompt
from prompt_jax.training.checkpoints import Checkpoints
from prompt_jax.training.run import Hook, MemberState, Run, RunProgress
from prompt_jax.training.run_folder import check_same
from prompt_jax.training.setup import Setup
from prompt_jax.training.step import TrainState


class SaveCheckpoints(Hook):
    """Save a checkpoint and `last.npz` every `train.checkpoint_every` steps, and when training ends or is preempted."""

    def is_due(self, run: Run, step: int) -> bool:
        last = step == run.setup.steps or not run.progress.training
        return last or run.preempted or step % run.experiment.train.checkpoint_every == 0

    def after_step(self, run: Run) -> None:
        step = run.progress.step
        if not self.is_due(run, step):
            return
        assert run.position is not None  # MemberBatches has one
        with run.saving():
            run.checkpoints.wait()  # so that an error of the previous save is not attributed to this one
        with run.saving():
            state = {"states": run.states, "best": run.best}
            run.checkpoints.save(step, state, run.position, _to_record(run))
        save_last(run)


def save_best(run: Run) -> None:
    """Write `best.npz`: each member at its best evaluation."""
    with run.saving():
        _save_prompts(run, "best.npz", run.best)


def save_last(run: Run) -> None:
    """Write `last.npz`: each member after the last step."""
    with run.saving():
        _save_prompts(run, "last.npz", run.setup.trainable(run.states))


def start(setup: Setup) -> tuple[RunProgress, tuple[TrainState, ...], list[Any]]:
    """Return progress, states and best trainable variables before the first step."""
    return RunProgress([MemberState() for _ in setup.members]), setup.states, setup.trainable(setup.states)


def restore(
    experiment: Experiment, setup: Setup, checkpoints: Checkpoints
) -> tuple[RunProgress, tuple[TrainState, ...], list[Any]] | None:
    """Return the values of `start` from the newest checkpoint, and seek the batches. Return None without a checkpoint.

    Raises:
      ConfigError: the checkpoint belongs to another configuration, or has more steps.
    """
    _, states, best = start(setup)
    restored = checkpoints.restore({"states": states, "best": best})
    if restored is None:
        return None
    progress = _from_record(restored.progress, experiment)
    _check_rates(experiment, states, restored.state["states"])
    if progress.step > setup.steps:
        raise ConfigError(
            f"{experiment.folder} was trained to step {progress.step}, and this configuration ends at step "
            f"{setup.steps}; choose another --name, or --overwrite it"
        )
    setup.batches.seek(restored.position)
    return progress, restored.state["states"], to_host(restored.state["best"])


def _check_rates(experiment: Experiment, states: Sequence[TrainState], restored: Sequence[TrainState]) -> None:
    """Raise ConfigError if the learning rates of the optimizers differ: a default of another version is another."""
    now, before = (
        [float(rate) for state in each for _, rates in _rates(state) for rate in np.ravel(to_host(rates))]
        for each in (states, restored)
    )
    if now != before:
        raise ConfigError(
            f"{experiment.folder} was trained with the learning rate {_listed(before)}, and this configuration has "
            f"{_listed(now)}: another version had another default; choose another --name, or --overwrite it"
        )


def _rates(state: TrainState) -> list[Any]:
    return optax.tree.get_all_with_path(state.opt_state, "learning_rate")


def _listed(rates: Sequence[float]) -> str:
    return ", ".join(dict.fromkeys(f"{rate:.3g}" for rate in rates))


def _to_record(run: Run) -> dict[str, Any]:
    """Return the run's progress as a checkpoint records it, for `_from_record`."""
    return dataclasses.asdict(run.progress) | {"experiment": json.loads(experiments.to_json(run.experiment))}


def _from_record(saved: dict[str, Any], experiment: Experiment) -> RunProgress:
    """Return the progress that a checkpoint records. Raise ConfigError if its run has another configuration."""
    if begun := saved.pop("experiment", None):  # config.json may be empty, or belong to another run
        check_same(begun, experiment)
    return RunProgress(**saved | {"members": [MemberState(**member) for member in saved["members"]]})


def _save_prompts(run: Run, name: str, trainable: Sequence[Any]) -> None:
    """Write a prompt file of all members, with metadata. Raise LockLost if another process has taken over."""
    if not is_first():
        return
    run.lock.check()
    descriptions = []
    for prompt in run.setup.prompts:
        member = run.progress.members[prompt.member.number]
        at_best = name == "best.npz" or member.best_step == run.progress.step
        step = member.best_step if at_best else member.steps
        scores = prompt.select_scores(member.best_scores) if at_best else {}
        descriptions.append(prompt.metadata(run.setup.model, step, scores))
    path, prompts = run.experiment.folder / name, run.setup.make_prompts(trainable)
    if len(prompts) == 1:
        save_prompt(path, prompts[0], descriptions[0])
    else:
        save_ensemble(path, prompts, descriptions)
