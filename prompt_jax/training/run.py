"""A run in progress, and the interface of the hooks that the training loop calls."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import jax

from prompt_jax import experiment as experiments
from prompt_jax.config.optimizer import PAPER_RATE_IN_RMS
from prompt_jax.distributed.processes import Preemption
from prompt_jax.distributed.sharding import mesh_of, mesh_shape
from prompt_jax.errors import SaveError, UserError
from prompt_jax.experiment import Experiment
from prompt_jax.storage.locks import FileLock
from prompt_jax.training.checkpoints import Checkpoints
from prompt_jax.training.logs import Display, Log
from prompt_jax.training.members import prompts_by_task
from prompt_jax.training.setup import Setup
from prompt_jax.training.step import TrainState


@dataclasses.dataclass
class MemberState:
    """The progress of one member."""

    status: Literal["training", "stopped early", "diverged"] = "training"
    steps: int = 0  # optimizer steps that updated the member
    metric: str = ""  # selects the best prompt: the task's first metric, or a mean
    score: float = -math.inf  # best score on the validation split
    best_step: int = -1
    best_scores: dict[str, float] = dataclasses.field(default_factory=dict)
    best_losses: dict[str, float] = dataclasses.field(default_factory=dict)  # on the validation split, then
    evaluations_since: int = 0  # evaluations since the best one


@dataclasses.dataclass
class RunProgress:
    """The progress of a run, as checkpoints store it."""

    members: list[MemberState]
    step: int = 0
    evaluation_due: bool = True  # whether the evaluation at `step` is still to be done
    seconds: float = 0.0  # duration of training and evaluation, including earlier processes
    sessions: int = 0  # processes that trained; 0 for a run that began before its times were recorded
    compile_seconds: float = 0.0  # part of `seconds`: compiling the training step
    validation_seconds: float = 0.0  # part of `seconds`: evaluations
    examples: int = 0  # trained on, by all members
    tokens: int = 0  # of these examples, without padding

    @property
    def training(self) -> list[int]:
        """The numbers of the members that are still training."""
        return [number for number, member in enumerate(self.members) if member.status == "training"]

    @property
    def train_seconds(self) -> float:
        """The rest of `seconds`: training steps, with waiting for data, logs and checkpoints."""
        return self.seconds - self.compile_seconds - self.validation_seconds

    @contextlib.contextmanager
    def timed_validation(self) -> Iterator[None]:
        """Add the time inside to `seconds` and `validation_seconds`."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds += time.monotonic() - began
            self.validation_seconds += time.monotonic() - began


@dataclasses.dataclass
class Run:
    """A run in progress: the state that the loop and its hooks share."""

    experiment: Experiment
    setup: Setup
    progress: RunProgress
    states: tuple[TrainState, ...]  # one for each group
    best: list[Any]  # each member's trainable variables at its best evaluation, on the host
    checkpoints: Checkpoints
    lock: FileLock  # locks the run's folder; only the first process acquires it
    log: Log
    display: Display
    preemption: Preemption
    preempted: bool = False
    reported: float = -math.inf  # when report.html was last written, time.monotonic()
    position: dict[str, Any] | None = None  # position in the training data after the last step

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """Turn errors of writing files into a SaveError that names the file.

        Raises:
          LockLost: the folder was deleted or taken over by another process, which explains the failure.
          SaveError: any other failure.
        """
        try:
            yield
        except (SaveError, OSError) as error:
            with contextlib.suppress(OSError):
                self.lock.check()
            reason = str(error)
            if not isinstance(error, UserError):
                reason = f"{error.filename or self.experiment.folder}: {error.strerror or error}"
            raise SaveError(reason) from error

    def member_title(self, number: int) -> str:
        """Return the start of a message about a member; empty if it is the only member."""
        if len(self.progress.members) == 1:
            return ""
        files = [str(prompt.number) for prompt in self.setup.prompts if prompt.member.number == number]
        prompts = f" (prompts {', '.join(files[:-1])} and {files[-1]} of best.npz)" if len(files) > 1 else ""
        return f"member {number}{prompts}: "


class Hook:
    """An action between training steps. The loop calls all hooks in a fixed order."""

    def on_start(self, run: Run) -> None:
        """Act before the first step of this process."""

    def on_metrics(self, run: Run, step: int, metrics: Mapping[int, Mapping[str, float]]) -> None:
        """Receive the metrics of a step by member. They arrive after the next step is dispatched."""

    def is_due(self, run: Run, step: int) -> bool:
        """Return whether the loop must call `after_step`, for all hooks, after this step."""
        return False

    def after_step(self, run: Run) -> None:
        """Act after a step at which some hook is due. The step's metrics have arrived."""


def describe(run: Run) -> str:
    """Return the text that the terminal shows when a run begins."""
    experiment, setup = run.experiment, run.setup
    trained, stored = setup.trained_parameters, setup.stored_parameters
    total = sum(leaf.size for leaf in jax.tree.leaves(setup.model.params))
    if not experiment.prompt.replaces_base:
        total += trained
    members = f", {len(setup.members)} members" if len(setup.members) > 1 else ""
    share = f"{total:,} parameters, {trained:,} of them trained ({trained / total:.3%})"
    size = f"{stored:,} stored ({4 * stored / 2**20:,.2f} MiB)"  # in float32
    lines = [f"{experiment.name}: {setup.model.name}, {share}, {size}{members}"]
    if len(setup.members) > 1:
        lines += [f"  member {m.number}: {experiments.settings_text(m.settings)}" for m in setup.members]
    if experiment.mesh.auto:
        sizes = mesh_shape(mesh_of(setup.model.params)).items()
        lines.append(f"  mesh: {' x '.join(f'{axis} {size}' for axis, size in sizes)}")
    if experiment.model.remat == "auto" and setup.remat != "none":
        lines.append(f"  remat {setup.remat}, which is estimated to be the fastest that fits")
    options, rms = experiment.optimizer, setup.rate_rms
    if options.learning_rate is None and not experiment.ensemble.learning_rate:
        rate = f"{experiment.prompt.default_rate:g}" if rms is None else f"{PAPER_RATE_IN_RMS:g}"
        lines.append(f"  learning rate {rate}, the default of {experiment.prompt.name}")
    if rms is not None:
        lines.append(f"  learning rates in units of the embeddings' root mean square, {rms:.4g}")
    for task in prompts_by_task(setup.prompts):
        for split, examples in task.examples.items():
            cut = "".join(f", {count} {part} truncated" for part, count in examples.truncated.items() if count)
            lines.append(f"  {split}: {len(examples)} examples of {examples.name}{cut}")
    mixed = setup.members[0].tasks
    if len(mixed) > 1:
        total = sum(task.rate for task in mixed)
        lines.append(f"  sampling rates: {', '.join(f'{task.rate / total:.1%} {task.name}' for task in mixed)}")
    if run.progress.step:
        lines.append(f"  resuming at step {run.progress.step} of {setup.steps}")
    return "\n".join(lines)
