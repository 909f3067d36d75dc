"""The members of a run, and the prompts in its files."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from prompt_jax import experiment as experiments
from prompt_jax.checkpoints.load import Model
from prompt_jax.config.data import DataConfig
from prompt_jax.data.registry import mixture_rates
from prompt_jax.errors import ConfigError
from prompt_jax.experiment import Experiment
from prompt_jax.methods import Method
from prompt_jax.methods.prefix import PrefixTuning
from prompt_jax.models.rope import long_rope
from prompt_jax.prompt_files.io import ModelId, PromptMetadata
from prompt_jax.task_format import NAMED_INPUTS, TaskFormat
from prompt_jax.training.tasks import Task, load_tasks


@dataclasses.dataclass(frozen=True, eq=False)
class Member:
    """One member of an ensemble. A run without an ensemble has one.

    Attributes:
      number: the index of the member, in the log and in `RunProgress.members`.
      experiment: the experiment that would train the member alone.
      settings: the fields in which members differ, with this member's values.
      tasks: the task, or the tasks of a mixture.
    """

    number: int
    experiment: Experiment
    settings: Mapping[str, Any]
    tasks: tuple[Task, ...]

    @property
    def training_examples(self) -> int:
        """Number of training examples of all its tasks."""
        return sum(len(task.examples["train"]) for task in self.tasks)


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedPrompt:
    """One prompt in the run's files. A member has one prompt, or with a `per_task` method one for each of its tasks.

    Attributes:
      number: the index of the prompt in the files.
      member: the member that trains it.
      task: the name of the task or mixture.
      tasks: the task, or the tasks of the mixture.
      settings: the fields in which the prompts differ, with this prompt's values.
    """

    number: int
    member: Member
    task: str
    tasks: tuple[Task, ...]
    settings: Mapping[str, Any]

    def select_scores(self, scores: Mapping[str, float]) -> dict[str, float]:
        """Return this prompt's share of the member's validation scores, by metric."""
        if self.tasks == self.member.tasks:
            return dict(scores)
        prefix = f"{self.task}/"
        return {name.removeprefix(prefix): score for name, score in scores.items() if name.startswith(prefix)}

    def metadata(self, model: Model, step: int, scores: Mapping[str, float]) -> PromptMetadata:
        """Return the metadata of a prompt file."""
        experiment = self.member.experiment
        method = experiment.prompt
        return PromptMetadata(
            base=ModelId(model.name, model.revision, model.fingerprint),
            method=method.name,
            initialization=_initialization(method, model),
            placement=getattr(method, "placement", "before"),
            long_rope=long_rope(model.config),
            frozen_tokens=getattr(method, "frozen_tokens", 0),
            task=self.task,
            format=_common_format(self.tasks, experiment.data),
            step=step,
            scores=dict(scores),
            settings=dict(self.settings),
        )


def load_members(alone: Sequence[Experiment], model: Model, tasks: Path | None) -> tuple[Member, ...]:
    """Load the data of all members, once for members that share it.

    Args:
      alone: the experiment of each member.
      model: the base model.
      tasks: folder or file with the user's tasks.
    """
    options = alone[0].train
    limits = {"validation": options.eval_examples, "test": options.test_examples}
    configs = list(dict.fromkeys(each.data for each in alone))
    loaded = {config: load_tasks(config, model, limits, tasks) for config in configs}
    mixtures = [config.task for config in configs if config.task and mixture_rates(config.task)]
    if alone[0].prompt.per_task and mixtures != [config.task for config in configs]:
        name = next(config.task for config in configs if config.task not in mixtures)
        raise ConfigError(f"prompt.method {alone[0].prompt.name!r} needs a mixture of tasks, and {name} is one task")
    if mixtures and len(configs) > 1:
        raise ConfigError(f"ensemble.task names {mixtures[0]}, a mixture; members can share one, as data.task")
    settings = experiments.settings(tuple(alone))
    return tuple(
        Member(number, each, values, loaded[each.data])
        for number, (each, values) in enumerate(zip(alone, settings, strict=True))
    )


def trained_prompts(members: Sequence[Member]) -> tuple[TrainedPrompt, ...]:
    """Return the prompts that the run's files will hold, in their order."""
    prompts: list[TrainedPrompt] = []
    for member in members:
        if member.experiment.prompt.per_task:
            for task in member.tasks:
                settings = {**member.settings, "data.task": task.name}
                prompts.append(TrainedPrompt(len(prompts), member, task.name, (task,), settings))
        else:
            name = member.tasks[0].name if len(member.tasks) == 1 else str(member.experiment.data.task)
            prompts.append(TrainedPrompt(len(prompts), member, name, member.tasks, member.settings))
    return tuple(prompts)


def prompts_by_task(prompts: Iterable[TrainedPrompt]) -> dict[Task, list[TrainedPrompt]]:
    """Return the tasks of these prompts, each with the prompts that are trained on it."""
    tasks: dict[Task, list[TrainedPrompt]] = {}
    for prompt in prompts:
        for task in prompt.tasks:
            tasks.setdefault(task, []).append(prompt)
    return tasks


def _common_format(tasks: Sequence[Task], config: DataConfig) -> TaskFormat:
    """Return the tasks' format. If they differ, its template takes the rendered input of each task."""
    formats = [task.format for task in tasks]
    if len(set(formats)) == 1:
        return formats[0]
    same = len({(each.labels, each.metrics) for each in formats}) == 1
    return TaskFormat(
        NAMED_INPUTS if config.task_names else "{inputs}",
        labels=formats[0].labels if same else (),
        metrics=formats[0].metrics if same else ("accuracy",),
        input_length=max(each.input_length for each in formats),
        target_length=max(each.target_length for each in formats),
    )


def _initialization(method: Method, model: Model) -> str | None:
    """Return the initialization as text. It has only the end of a file's path, which reveals nothing of the machine."""
    init, file = getattr(method, "init", None), getattr(method, "init_file", None)
    if init is None and isinstance(method, PrefixTuning):
        init = method.default_init(model)
    if init != "file" or file is None:
        return init
    number = getattr(method, "init_member", None)
    member = "" if number is None else f", member {number}"
    return f"file {'/'.join(file.parts[-2:])}{member}"
