"""The training loop: from an experiment to `runs/NAME/`, resumable at any moment."""

import contextlib
import dataclasses
import json
import math
import os
import shutil
import time
from pathlib import Path
from typing import Any

import jax

from prompt_jax import config as configuration
from prompt_jax.batches import prefetch
from prompt_jax.config import ConfigError, Experiment
from prompt_jax.errors import UserError
from prompt_jax.evaluation import evaluate
from prompt_jax.prompts.files import save_prompt
from prompt_jax.training.checkpoints import Checkpoints
from prompt_jax.training.logs import Log, Progress
from prompt_jax.training.setup import Setup, metadata, prepare
from prompt_jax.training.step import TrainState
from prompt_jax.whole_file import write_text


class Diverged(UserError, RuntimeError):
    """Loss or parameters are no longer finite; the best and the last good prompt are kept."""

    exit_status = 3


@dataclasses.dataclass
class Best:
    """The best prompt so far, and how far a run has come, as written into its checkpoints."""

    metric: str = ""  # the task's first
    score: float = -math.inf
    step: int = -1
    evaluations_since: int = 0
    seconds: float = 0.0  # of training and evaluation, over all sittings

    def stops(self, patience: int | None) -> bool:
        """Whether early stopping ends the run here."""
        return patience is not None and self.evaluations_since >= patience


def train(experiment: Experiment, *, tasks: Path | None = None, overwrite: bool = False) -> Setup:
    """Trains to the end, going on from the last checkpoint if the run was begun before.

    Args:
      experiment: what to run.
      tasks: folder or file with the user's tasks; None is `tasks` in the working directory.
      overwrite: begin anew, deleting what is in the run's folder.

    Raises:
      ConfigError: an impossible configuration, or a run of this name with another one.
      Diverged: the loss is no longer finite.
    """
    configuration.check(experiment)
    _check_folder(experiment, overwrite)
    setup = prepare(experiment, tasks)
    _open_folder(experiment, overwrite)
    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(
            Checkpoints(
                experiment.folder / "checkpoints",
                experiment.train.keep_checkpoints,
                {"base": setup.model.fingerprint, "training data": setup.batches.fingerprint},
            )
        )
        state, best = setup.state, Best()
        restored = checkpoints.restore(state)
        if restored is not None:
            state, best = restored.state, Best(**restored.progress)
            setup.batches.seek(restored.position)
        write_text(experiment.folder / "config.json", configuration.to_json(experiment))
        start = int(state.step)
        log = stack.enter_context(Log(experiment.folder, start if restored else -1))
        progress = stack.enter_context(Progress(experiment.train.steps, start, experiment.train.log_every))
        progress.say(_describe(experiment, setup, start))
        if start < experiment.train.steps and not best.stops(experiment.train.patience):
            _fit(experiment, setup, state, start, best, checkpoints, log, progress)
    return setup


def _fit(
    experiment: Experiment,
    setup: Setup,
    state: TrainState,
    start: int,
    best: Best,
    checkpoints: Checkpoints,
    log: Log,
    progress: Progress,
) -> None:
    """Steps from `start`, where `state` is, to the end, evaluating and saving on the way."""
    options, since = experiment.train, time.monotonic()
    if start == 0:
        _evaluate(experiment, setup, state, 0, best, log, progress)

    def finish(step: int, metrics: dict[str, Any]) -> None:
        """Fetches and logs the metrics of a step that was dispatched before; refuses to go on from NaN."""
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if not values.pop("finite"):
            raise Diverged(
                f"step {step}: the loss is {values['loss']} and the update is not finite; training stopped. "
                f"{experiment.folder / 'best.npz'} is the best prompt until then (step {best.step}). "
                "A lower optimizer.learning_rate or optimizer.clip_norm may help"
            )
        progress.step(step, values["loss"], options.batch_size)
        if step % options.log_every == 0 or step == options.steps:
            log.write(step, {f"train/{name}": value for name, value in values.items()})

    pending: tuple[int, dict[str, Any]] | None = None
    with contextlib.closing(prefetch(setup.batches, jax.device_put)) as batches:
        for step in range(start + 1, options.steps + 1):
            batch, position = next(batches)
            state, metrics = setup.step(state, setup.frozen, batch, setup.key)
            if pending is not None:  # fetched one step late, so that the device need not wait for the host
                finish(*pending)
            pending = step, metrics

            last = step == options.steps
            evaluating, saving = last or step % options.eval_every == 0, last or step % options.checkpoint_every == 0
            if evaluating or saving:
                finish(*pending)
                pending = None
                best.seconds, since = best.seconds + time.monotonic() - since, time.monotonic()
            if evaluating:
                _evaluate(experiment, setup, state, step, best, log, progress)
            stopping = best.stops(options.patience)
            if saving or stopping:
                assert position is not None  # TrainBatches has one
                checkpoints.save(step, state, position, dataclasses.asdict(best))
                scores = {best.metric: best.score} if best.step == step else {}
                save_prompt(
                    experiment.folder / "last.npz", setup.prompt(state), metadata(experiment, setup, step, scores)
                )
            if stopping:
                progress.say(f"no better {best.metric} in {options.patience} evaluations; stopped at step {step}")
                break


def _evaluate(
    experiment: Experiment, setup: Setup, state: TrainState, step: int, best: Best, log: Log, progress: Progress
) -> None:
    """Scores the validation split; keeps the prompt if it is the best so far by the task's first metric."""
    prompt = setup.prompt(state)
    result = evaluate(
        setup.model,
        prompt,
        setup.examples["validation"],
        target_length=setup.task_format.target_length,
        batch_size=experiment.train.eval_batch_size,
        rank=False,
    )
    log.write(step, {f"validation/{name}": value for name, value in result.scores.items()} | {"seconds": best.seconds})
    best.metric, score = next(iter(result.scores.items()))
    progress.score(best.metric, score)
    best.evaluations_since = 0 if score > best.score else best.evaluations_since + 1
    if score >= best.score:  # of equals the one that was trained longer
        best.score, best.step = score, step
        save_prompt(experiment.folder / "best.npz", prompt, metadata(experiment, setup, step, result.scores))
    progress.say(f"step {step}  validation {best.metric} {score:.4f}  (best {best.score:.4f} at step {best.step})")


def _check_folder(experiment: Experiment, overwrite: bool) -> None:
    """Refuses to go on with a run of another configuration, or to delete what is no run."""
    folder, written = experiment.folder, experiment.folder / "config.json"
    if not written.exists():
        if folder.exists() and any(not path.name.startswith(".") for path in folder.iterdir()):
            raise ConfigError(f"{folder} is not empty and holds no run; choose another --name")
        return
    try:
        begun = configuration.from_json(written.read_text())
    except ConfigError as error:
        raise ConfigError(f"{written} is not the record of a run ({error}); choose another --name") from error
    before, now = (json.loads(configuration.to_json(each)) for each in (begun, experiment))
    may_change = _MAY_CHANGE | ({"train.steps"} if experiment.optimizer.schedule == "constant" else set())
    changed = [name for name in configuration.differences(before, now) if name not in may_change]
    if changed and not overwrite:
        raise ConfigError(
            f"{folder} holds a run with another configuration (changed: {', '.join(changed)}); "
            "choose another --name, or --overwrite it"
        )


def _open_folder(experiment: Experiment, overwrite: bool) -> None:
    """Makes the run's folder, anew if the one that is there is to go."""
    folder = experiment.folder
    if overwrite and folder.exists():
        doomed = folder.with_name(f".{folder.name}.{os.getpid()}.deleted")
        folder.rename(doomed)  # so that a crash leaves no folder of this name that is half a run
        shutil.rmtree(doomed)
    if not (folder / "config.json").exists():
        write_text(folder / "config.json", configuration.to_json(experiment))


# What a resumed run may do otherwise; with a constant schedule it may also go on for more steps.
_MAY_CHANGE = {"train.keep_checkpoints", "train.log_every", "train.patience", "runs"}


def _describe(experiment: Experiment, setup: Setup, start: int) -> str:
    trained = sum(leaf.size for leaf in jax.tree.leaves(setup.state.trainable))
    total = trained + sum(leaf.size for leaf in jax.tree.leaves(setup.model.params))
    share = f"{total:,} parameters, {trained:,} of them trained ({trained / total:.3%})"
    lines = [f"{experiment.name}: {setup.model.name}, {share}"]
    for split, examples in setup.examples.items():
        cut = ", ".join(f"{count} {part} cut" for part, count in examples.truncated.items() if count)
        lines.append(f"  {split}: {len(examples)} examples of {examples.name}{f', {cut}' if cut else ''}")
    if start:
        lines.append(f"  resuming at step {start} of {experiment.train.steps}")
    return "\n".join(lines)
