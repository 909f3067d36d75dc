"""The tasks of a run, loaded with the configuration's lengths and metrics."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prompt_jax.checkpoints.load import Model
from prompt_jax.config.data import DataConfig
from prompt_jax.data.examples import Examples
from prompt_jax.data.files import file_task
from prompt_jax.data.load import LoadOptions, load_examples
from prompt_jax.data.registry import discover_tasks, find_task, mixture_rates, short_name
from prompt_jax.errors import ConfigError, DataError
from prompt_jax.metrics import is_share
from prompt_jax.task_format import LOWER_IS_BETTER, TaskFormat


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """A task to train on."""

    examples: Mapping[str, Examples]  # by split
    format: TaskFormat  # with the configuration's lengths
    rate: float = 1.0  # sampling weight in a mixture

    @property
    def name(self) -> str:
        return self.examples["train"].name


def load_tasks(
    config: DataConfig, model: Model, limits: Mapping[str, int | None], tasks: Path | None
) -> tuple[Task, ...]:
    """Return the configuration's task, or the tasks of its mixture. Arguments as for `load_splits`."""
    rates = None
    if config.task is not None:
        discover_tasks(tasks)
        rates = mixture_rates(config.task)
    if rates is None:
        return (Task(*load_splits(config, model, limits, tasks)),)
    if config.task_names and len({short_name(name) for name in rates}) < len(rates):
        raise ConfigError(f"data.task_names: two tasks of {config.task} have one short name")
    plain = [name for name in rates if getattr(find_task(name), "task_format", None) is None]
    if len(rates) > 1 and plain:
        raise ConfigError(
            f"{config.task} contains {plain[0]}, a plain seqio task, whose metrics may have any unit, and their mean "
            "over all tasks decides which prompt is best; register it with prompt_jax.add_task, or train on it "
            "alone"
        )
    loaded = tuple(
        Task(*load_splits(dataclasses.replace(config, task=name), model, limits, tasks), rate)
        for name, rate in rates.items()
    )
    used = {metric for task in loaded for metric in task.format.metrics}
    if used & set(LOWER_IS_BETTER) or len(used) > 1 and not all(map(is_share, used)):
        raise ConfigError(
            f"{config.task} has the metrics {', '.join(sorted(used))}, and their mean over all tasks decides which "
            "prompt is best; this needs shares of which higher is better, or a single metric: choose with data.metrics"
        )
    return loaded


def load_splits(
    config: DataConfig, model: Model, limits: Mapping[str, int | None], tasks: Path | None
) -> tuple[dict[str, Examples], TaskFormat]:
    """Return the splits `train`, `validation`, and `test` if it has labels, and the format of the task.

    `limits` has the maximum number of examples of `validation` and `test`.
    """
    if config.task is not None:
        discover_tasks(tasks)
        task = find_task(config.task)
        task_format = getattr(task, "task_format", None)
    else:
        files = {"train": config.train, "validation": config.validation, "test": config.test}
        task_format = TaskFormat(config.template, config.labels, config.metrics or ("accuracy",))
        share = 0.0 if config.validation else config.validation_share
        named = {split: path for split, path in files.items() if path is not None}
        task = file_task("files", named, task_format, target=config.target, validation_share=share)

    task_format = _configured_format(task, task_format, config)
    limits = {**limits, "train": config.train_examples}
    splits = {}
    for split in ("train", "validation", "test"):
        if split == "test" and split not in task.splits:
            continue
        seed = config.subset_seed if split == "train" else 0
        options = _load_options(task, task_format, config, limits.get(split), seed)
        loaded = _load(task, model, split, options)
        if split == "test" and loaded.unlabeled:  # as in benchmarks with hidden test answers
            continue
        if loaded.unlabeled:
            raise DataError(f"{loaded.name}, {split}: {loaded.unlabeled} of {len(loaded)} examples have no label")
        splits[split] = loaded
    return splits, task_format


def load_test(
    name: str, config: DataConfig, model: Model, limit: int | None, tasks: Path | None
) -> tuple[Examples, TaskFormat]:
    """Return the test split of a task that no member is trained on."""
    discover_tasks(tasks)
    task = find_task(name)
    if "test" not in task.splits:
        raise DataError(f"data.test_tasks: {name} has no test split; it has {', '.join(task.splits)}")
    task_format = _configured_format(task, getattr(task, "task_format", None), config)
    loaded = _load(task, model, "test", _load_options(task, task_format, config, limit))
    if loaded.unlabeled:
        raise DataError(f"data.test_tasks: the test split of {name} has no labels")
    return loaded, task_format


def _input_prefix(task: Any, config: DataConfig) -> str:
    """Return the text before a task's inputs: its name, or nothing."""
    return f"{short_name(task.name)} " if config.task_names else ""


def _configured_format(task: Any, task_format: TaskFormat | None, config: DataConfig) -> TaskFormat:
    """Return a task's format with the configuration's lengths, metrics and text before inputs."""
    task_format = task_format or TaskFormat("{inputs}")  # a plain seqio task has no template
    return dataclasses.replace(
        task_format,
        template=_input_prefix(task, config) + task_format.template,
        input_length=config.input_length or task_format.input_length,
        target_length=config.target_length or task_format.target_length,
        metrics=config.metrics or task_format.metrics,
    )


def _load_options(
    task: Any, task_format: TaskFormat, config: DataConfig, limit: int | None, seed: int = 0
) -> LoadOptions:
    return LoadOptions(
        input_length=task_format.input_length,
        target_length=task_format.target_length,
        limit=limit,
        seed=seed,
        metrics=config.metrics,
        prepend=_input_prefix(task, config),
    )


def _load(task: Any, model: Model, split: str, options: LoadOptions) -> Examples:
    assert model.tokenizer is not None  # prepare
    return load_examples(task, model.tokenizer, split, options, on_disk=split == "train")
