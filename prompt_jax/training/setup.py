"""From an Experiment to the objects that training needs."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from prompt_jax import data
from prompt_jax.batches import TrainBatches, length_buckets
from prompt_jax.config import ConfigError, DataConfig, Experiment
from prompt_jax.data_files import DataError
from prompt_jax.examples import Examples
from prompt_jax.models.hub import Model, load_model
from prompt_jax.models.prompt import Prompt
from prompt_jax.prompts import soft_prompt
from prompt_jax.prompts.files import Base, PromptMetadata
from prompt_jax.task_format import TaskFormat
from prompt_jax.training.optimizers import make_optimizer
from prompt_jax.training.step import TrainState, frozen_base, make_train_step


@dataclasses.dataclass(frozen=True)
class Setup:
    """Everything a run is made of, before its first step."""

    model: Model
    examples: Mapping[str, Examples]  # by split
    task_format: TaskFormat  # with the lengths that are used
    batches: TrainBatches
    state: TrainState
    frozen: Any  # the variables that are not trained, None in place of the others
    key: jax.Array
    step: Callable  # jitted
    apply: Callable  # the method's

    def prompt(self, state: TrainState) -> Prompt:
        """The prompt that a state stands for."""
        return self.apply(state.trainable["prompt"], None)[1]


def prepare(experiment: Experiment, tasks: Path | None = None) -> Setup:
    """Loads base and data, initialises what is trained, and builds the training step.

    Args:
      experiment: checked by `config.check`.
      tasks: folder or file with the user's tasks; None is `tasks` in the working directory.
    """
    options = experiment.train
    model = load_model(experiment.model.name, experiment.model.dtype, experiment.model.revision)
    config = dataclasses.replace(model.config, dropout_rate=options.dropout_rate, remat=experiment.model.remat)
    if model.tokenizer is None:
        raise ConfigError(
            f"the model {model.name} has no tokenizer (spiece.model or tokenizer.json), which training needs"
        )
    examples, task_format = load_splits(experiment.data, model, options.eval_examples, tasks)
    training = examples["train"]

    init_key, run_key = jax.random.split(jax.random.key(options.seed))
    labels = training.format.labels if training.format else ()
    trainable = {"base": None, "prompt": soft_prompt.init(init_key, experiment.prompt, model, labels)}
    apply = functools.partial(soft_prompt.apply, placement=experiment.prompt.placement)
    optimizer = frozen_base(make_optimizer(experiment.optimizer, options.steps))
    step = make_train_step(
        config,
        apply,
        optimizer,
        z_loss=options.z_loss,
        dropout=options.dropout_rate > 0,
        accumulate=options.accumulate,
    )
    lengths = [len(ids) for ids in training.inputs]
    buckets = length_buckets(lengths, experiment.data.buckets, max(lengths))
    return Setup(
        model=model,
        examples=examples,
        task_format=task_format,
        batches=TrainBatches(training, options.batch_size, options.seed, buckets, config.pad_id, config.start_id),
        state=TrainState.create(trainable, optimizer),
        frozen={"base": model.params, "prompt": None},
        key=run_key,
        step=jax.jit(step, donate_argnums=0),
        apply=apply,
    )


def load_splits(
    config: DataConfig, model: Model, eval_examples: int | None, tasks: Path | None
) -> tuple[dict[str, Examples], TaskFormat]:
    """The splits "train" and "validation", "test" where there is a labelled one, and the format of the task."""
    if config.task is not None:
        data.discover_tasks(tasks)
        task = data.find_task(config.task)
        task_format = getattr(task, "task_format", None)
    else:
        files = {"train": config.train, "validation": config.validation, "test": config.test}
        task_format = TaskFormat(config.template, config.labels, config.metrics)
        share = 0.0 if config.validation else config.validation_share
        named = {split: path for split, path in files.items() if path is not None}
        task = data.file_task("files", named, task_format, target=config.target, validation_share=share)

    task_format = task_format or TaskFormat("{inputs}")  # of a plain seqio task, which has no template
    task_format = dataclasses.replace(
        task_format,
        input_length=config.input_length or task_format.input_length,
        target_length=config.target_length or task_format.target_length,
    )
    assert model.tokenizer is not None  # prepare
    splits = {}
    for split in ("train", "validation", "test"):
        if split == "test" and split not in task.splits:
            continue
        limit = eval_examples if split == "validation" else None
        loaded = data.load_examples(
            task,
            model.tokenizer,
            split,
            input_length=task_format.input_length,
            target_length=task_format.target_length,
            limit=limit,
        )
        if split == "test" and loaded.unlabelled:  # benchmarks keep the answers of their test sets to themselves
            continue
        if loaded.unlabelled:
            raise DataError(f"{loaded.name}, {split}: {loaded.unlabelled} of {len(loaded)} examples have no label")
        splits[split] = loaded
    return splits, task_format


def metadata(experiment: Experiment, setup: Setup, step: int, scores: Mapping[str, float]) -> PromptMetadata:
    """What a prompt file of this run says of its prompt."""
    training, model = setup.examples["train"], setup.model
    return PromptMetadata(
        base=Base(model.name, model.revision, model.fingerprint),
        method="soft_prompt",
        initialization=experiment.prompt.init,
        placement=experiment.prompt.placement,
        task=training.name,
        format=setup.task_format,
        step=step,
        scores=dict(scores),
    )
