"""From an Experiment to the objects that training needs."""

import dataclasses
import functools
import itertools
import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from prompt_jax import experiment as experiments
from prompt_jax.checkpoints.load import Model, load_model
from prompt_jax.config.data import DataConfig
from prompt_jax.config.decoding import Decoding
from prompt_jax.data.batches import TrainBatches
from prompt_jax.data.buckets import length_buckets
from prompt_jax.data.examples import Examples
from prompt_jax.data.member_batches import MemberBatches
from prompt_jax.data.mixture_batches import MixtureBatches
from prompt_jax.data.registry import mixture_rates
from prompt_jax.distributed.sharding import (
    make_mesh,
    mesh_shape,
    named_sharding,
    parameter_sharding,
    to_devices,
    to_host,
)
from prompt_jax.errors import ConfigError
from prompt_jax.experiment import Experiment
from prompt_jax.inference import logits_rules
from prompt_jax.methods import Method
from prompt_jax.models import ContextError, check_context
from prompt_jax.models.delta import Delta
from prompt_jax.models.prompt import Prompt, unstack_prompts
from prompt_jax.prompt_files.io import ModelId, PromptMetadata
from prompt_jax.task_format import NAMED_INPUTS, TaskFormat
from prompt_jax.training.optimizers import make_optimizer
from prompt_jax.training.step import TrainState, frozen_base, make_train_step, vmap_members
from prompt_jax.training.tasks import Task, load_tasks, load_test


@dataclasses.dataclass(frozen=True)
class MemberState:
    """One of the prompts that are trained, or of those with a part for each task; a run without an ensemble has one."""

    experiment: Experiment  # what would train it alone
    settings: Mapping[str, Any]  # in what that differs from the other members', by field
    tasks: tuple[Task, ...]  # one, or those of a mixture

    @property
    def training_examples(self) -> int:
        return sum(len(task.examples["train"]) for task in self.tasks)


@dataclasses.dataclass(frozen=True)
class Stored:
    """One of the prompts that a run leaves: a member's, or with `prompt.per_task` a member's for one of its tasks."""

    member: int  # its number
    task: str  # that it is for, or the mixture
    tasks: tuple[Task, ...]  # the same
    settings: Mapping[str, Any]  # in what it differs from the others, by field


@dataclasses.dataclass(frozen=True)
class Setup:
    """Everything a run is made of, before its first step.

    A stack is of members whose trainable parameters have the same shapes: they are trained by one compiled step, as
    arrays with a leading axis E. Nothing trainable is padded, since optimizers would see it: Adafactor clips by the
    root mean square of a whole tensor.
    """

    model: Model
    members: tuple[MemberState, ...]
    stored: tuple[Stored, ...]  # in the order of the run's files
    steps: int
    further_tests: tuple[tuple[Examples, TaskFormat], ...]  # of tasks that no member is trained on
    stacks: tuple[tuple[int, ...], ...]  # the members' numbers
    batches: MemberBatches
    states: tuple[TrainState, ...]  # of each stack
    keys: tuple[jax.Array, ...]  # of each stack, [E]
    step: Callable  # jitted, for all stacks
    place: Callable  # puts batches [E, B, ...] where the step needs them
    place_members: Callable  # and arrays [E]
    method: Method

    def trainable(self, states: Sequence[TrainState]) -> list[Any]:
        """Each member's trainable variables, on the host."""
        members: dict[int, Any] = {}
        for numbers, state in zip(self.stacks, states, strict=True):
            stacked = to_host(state.trainable)
            members |= {n: jax.tree.map(operator.itemgetter(i), stacked) for i, n in enumerate(numbers)}
        return [members[number] for number in range(len(self.members))]

    def prompts(self, trainable: Sequence[Any]) -> list[Prompt | Delta]:
        """Return what the members' trainable parameters stand for, as it is stored: with `per_task` one per task."""
        made: list[Any] = [self.method.apply(variables["prompt"]) for variables in trainable]
        return [prompt for each in made for prompt in (unstack_prompts(each) if self.method.per_task else [each])]

    def own_scores(self, number: int, scores: Mapping[str, float]) -> dict[str, float]:
        """Those of a member's validation scores that are of a stored prompt, by metric."""
        stored = self.stored[number]
        if stored.tasks == self.members[stored.member].tasks:
            return dict(scores)
        own = f"{stored.task}/"
        return {name.removeprefix(own): score for name, score in scores.items() if name.startswith(own)}

    def by_task(self, members: Iterable[int] | None = None) -> list[tuple[Task, list[int]]]:
        """The tasks, each with the numbers of the stored prompts that are for it: of these members, or of all."""
        chosen = range(len(self.members)) if members is None else set(members)
        tasks: dict[Task, list[int]] = {}
        for number, stored in enumerate(self.stored):
            for task in stored.tasks if stored.member in chosen else ():
                tasks.setdefault(task, []).append(number)
        return list(tasks.items())

    @property
    def trained_parameters(self) -> int:
        """Of all members."""
        return sum(leaf.size for state in self.states for leaf in jax.tree.leaves(state.trainable))

    @property
    def stored_parameters(self) -> int:
        """Of all members' prompts."""
        prompts = [jax.eval_shape(jax.vmap(self.method.apply), state.trainable["prompt"]) for state in self.states]
        return sum(leaf.size for leaf in jax.tree.leaves(prompts))


def prepare(experiment: Experiment, tasks: Path | None = None) -> Setup:
    """Loads base and data, initializes what is trained, and builds the training step.

    Args:
      experiment: checked by `config_checks.check`.
      tasks: folder or file with the user's tasks; None is `tasks` in the working directory.

    Raises:
      ConfigError: members that cannot be divided over the mesh, or a base that lacks what is needed.
    """
    alone = experiments.members(experiment)
    stacks = stacks_of(alone)
    mesh = make_mesh(experiment.mesh)
    check_division(stacks, alone, mesh_shape(mesh))
    model = load_model(
        experiment.model.name, experiment.model.dtype, experiment.model.revision, sharding=parameter_sharding(mesh)
    )
    if model.tokenizer is None:
        raise ConfigError(
            f"the model {model.name} has no tokenizer, which training needs (spiece.model, tokenizer.json, or "
            "vocab.json with merges.txt)"
        )
    members = _load_members(alone, model, tasks)
    steps = _steps(experiment, members)
    trained_on = {task.name for member in members for task in member.tasks}
    if repeated := trained_on & set(experiment.data.test_tasks):
        raise ConfigError(f"data.test_tasks names {min(repeated)} again: a task of the mixture is tested on anyway")
    stored = tuple(each for number, member in enumerate(members) for each in _stored(number, member))
    answers = {tuple(task.format.labels for task in each.tasks) for each in stored}
    if experiment.data.test_tasks and len(answers) > 1:
        shown = " and ".join(str(labels) for own in answers for labels in own)
        raise ConfigError(
            f"data.test_tasks: the members vote there, and have other labels each ({shown}); "
            "leave it out, or train members of one set of labels"
        )

    further_tests = tuple(
        load_test(name, experiment.data, model, experiment.train.test_examples, tasks)
        for name in experiment.data.test_tasks
    )
    starts = [_start(member, model, steps) for member in members]
    for member, (state, _) in zip(members, starts, strict=True):
        made = jax.eval_shape(experiment.prompt.apply, state.trainable["prompt"])
        prompt = made if isinstance(made, Prompt) else None
        own = [(examples, task.format) for task in member.tasks for examples in task.examples.values()]
        for examples, task_format in (*own, *further_tests):
            _check_length(model, prompt, examples, task_format.target_length, experiment.decoding)
    of_members = named_sharding(mesh, "members")
    states = tuple(
        to_devices(jax.tree.map(lambda *leaves: jnp.stack(leaves), *(starts[n][0] for n in numbers)), of_members)
        for numbers in stacks
    )
    return Setup(
        model=model,
        members=members,
        stored=stored,
        steps=steps,
        further_tests=further_tests,
        stacks=stacks,
        batches=_batches(members, stacks, model),
        states=states,
        keys=tuple(to_devices(jnp.stack([starts[n][1] for n in numbers]), of_members) for numbers in stacks),
        step=train_step(experiment, model.config, steps, mesh),
        place=functools.partial(to_devices, sharding=named_sharding(mesh, "members", "batch")),
        place_members=functools.partial(to_devices, sharding=of_members),
        method=experiment.prompt,
    )


def train_step(experiment: Experiment, config: Any, steps: int, mesh: Mesh | None) -> Any:
    """The step of a stack of members, to be compiled; it gives its first argument's memory to the new states.

    Args:
      experiment: what is trained.
      config: the base's.
      steps: of the whole run.
      mesh: of the devices; None is one device.
    """
    options = experiment.train
    step = make_train_step(
        dataclasses.replace(config, dropout_rate=options.dropout_rate, remat=experiment.model.remat),
        experiment.prompt,
        frozen_base(make_optimizer(experiment.optimizer, steps)),
        loss=options.loss,
        z_loss=options.z_loss,
        dropout=options.dropout_rate > 0,
        accumulate=options.accumulate,
    )
    return jax.jit(vmap_members(step, group=experiment.ensemble.group, mesh=mesh), donate_argnums=0)


def stacks_of(alone: Sequence[Experiment]) -> tuple[tuple[int, ...], ...]:
    """The numbers of the members of each trainable shape."""
    numbers: dict[int, list[int]] = {}
    for number, member in enumerate(alone):
        numbers.setdefault(getattr(member.prompt, "length", 0), []).append(number)
    return tuple(map(tuple, numbers.values()))


def check_division(stacks: Sequence[Sequence[int]], alone: Sequence[Experiment], mesh: Mapping[str, int]) -> None:
    """That members, and the rows of each part of a batch, can be divided over the devices."""
    options = alone[0].train
    if (options.batch_size // options.accumulate) % mesh["data"]:
        parts = f" in {options.accumulate} parts" if options.accumulate > 1 else ""
        raise ConfigError(
            f"train.batch_size is {options.batch_size}{parts}, which cannot be divided over mesh.data {mesh['data']}"
        )
    count = mesh["ensemble"]
    for numbers in stacks:
        if len(numbers) % count:
            length = f" of length {getattr(alone[numbers[0]].prompt, 'length', 0)}" if len(stacks) > 1 else ""
            raise ConfigError(
                f"{len(numbers)} members{length} cannot be divided over mesh.ensemble {count}: make the number of "
                f"members a multiple of {count} (ensemble.size), or mesh.ensemble one of its divisors"
            )


def _load_members(alone: Sequence[Experiment], model: Model, tasks: Path | None) -> tuple[MemberState, ...]:
    """The members with their data, which are loaded once for all that share them."""
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
    return tuple(MemberState(e, own, loaded[e.data]) for e, own in zip(alone, settings, strict=True))


def _stored(number: int, member: MemberState) -> list[Stored]:
    if not member.experiment.prompt.per_task:
        name = member.tasks[0].name if len(member.tasks) == 1 else str(member.experiment.data.task)
        return [Stored(number, name, member.tasks, member.settings)]
    names = [task.name for task in member.tasks]
    return [
        Stored(number, name, (task,), {**member.settings, "data.task": name})
        for name, task in zip(names, member.tasks, strict=True)
    ]


def _check_length(
    model: Model, prompt: Prompt | None, examples: Examples, target_length: int, decoding: Decoding
) -> None:
    """Check before training that the model has enough positions and the decoding options suit it."""
    try:
        # An answer may be as long as targets are cut to.
        check_context(model.config, prompt, max(map(len, examples.inputs)), target_length)
        logits_rules.merged_settings(model.config, decoding, target_length)
    except (ContextError, ConfigError) as error:
        raise ConfigError(f"{examples.name}, {examples.split}: {error}") from error


def _steps(experiment: Experiment, members: Sequence[MemberState]) -> int:
    """How many steps the run has.

    Raises:
      ConfigError: epochs of members that differ in their number of examples.
    """
    options = experiment.train
    if options.epochs is None:
        return options.steps
    counts = sorted({member.training_examples for member in members})
    if len(counts) > 1:
        raise ConfigError(
            f"train.epochs: members take the same steps, and have {' and '.join(map(str, counts))} training examples; "
            "give train.steps"
        )
    return max(1, math.ceil(options.epochs * counts[0] / options.batch_size))


def _start(member: MemberState, model: Model, steps: int) -> tuple[TrainState, jax.Array]:
    """A member's state before the first step, and its key: functions of its own experiment alone."""
    experiment = member.experiment
    init_key, run_key = jax.random.split(jax.random.key(experiment.train.seed))
    # Those of several tasks in turn, so that a short prompt has some of each.
    turns = itertools.zip_longest(*(task.format.labels for task in member.tasks))
    labels = list(dict.fromkeys(label for turn in turns for label in turn if label is not None))
    trainable = member.experiment.prompt.initialize(init_key, model, labels, tasks=len(member.tasks))
    # The optimizer's state holds the member's own learning rate and weight decay.
    optimizer = frozen_base(make_optimizer(experiment.optimizer, steps))
    return TrainState.create(trainable, optimizer), run_key


def _batches(members: Sequence[MemberState], stacks: Sequence[Sequence[int]], model: Model) -> MemberBatches:
    """One stream of batches for each task, or mixture, and seed."""
    streams: dict[Any, TrainBatches] = {}
    for member in members:
        options, training = member.experiment.train, [task.examples["train"] for task in member.tasks]
        lengths = [len(ids) for examples in training for ids in examples.inputs]
        buckets = length_buckets(lengths, member.experiment.data.buckets, max(lengths))
        key = (member.experiment.data, options.seed)
        if key in streams:
            continue
        rest = options.batch_size, options.seed, buckets, model.config.pad_id, model.config.start_id
        per_task = member.experiment.prompt.per_task
        if len(training) == 1 and not per_task:
            streams[key] = TrainBatches(training[0], *rest)
        else:
            rates = [task.rate for task in member.tasks]
            streams[key] = MixtureBatches(training, rates, *rest, prompt_ids=per_task)
    number = {key: i for i, key in enumerate(streams)}
    of_member = [number[member.experiment.data, member.experiment.train.seed] for member in members]
    return MemberBatches(list(streams.values()), [[of_member[n] for n in numbers] for numbers in stacks])


def metadata(setup: Setup, number: int, step: int, scores: Mapping[str, float]) -> PromptMetadata:
    """What a prompt file of this run says of a stored prompt."""
    stored, model = setup.stored[number], setup.model
    experiment = setup.members[stored.member].experiment
    trained = experiment.prompt
    return PromptMetadata(
        base=ModelId(model.name, model.revision, model.fingerprint),
        method=trained.name,
        initialization=_initialization(trained),
        placement=getattr(trained, "placement", "before"),
        task=stored.task,
        format=_one_format(stored.tasks, experiment.data),
        step=step,
        scores=dict(scores),
        settings=dict(stored.settings),
    )


def _one_format(tasks: Sequence[Task], config: DataConfig) -> TaskFormat:
    """That of a prompt's tasks; where they differ, one whose column is the input that a task's own template makes."""
    formats = [task.format for task in tasks]
    if len(set(formats)) == 1:
        return formats[0]
    alike = len({(own.labels, own.metrics) for own in formats}) == 1
    return TaskFormat(
        NAMED_INPUTS if config.task_names else "{inputs}",
        labels=formats[0].labels if alike else (),
        metrics=formats[0].metrics if alike else ("accuracy",),
        input_length=max(own.input_length for own in formats),
        target_length=max(own.target_length for own in formats),
    )


def _initialization(method: Method) -> str | None:
    """Return the initialization as text. Of a file's path only the end, which says enough and hides the machine."""
    init, file = getattr(method, "init", None), getattr(method, "init_file", None)
    if init != "file" or file is None:
        return init
    number = getattr(method, "init_member", None)
    member = "" if number is None else f", member {number}"
    return f"file {'/'.join(file.parts[-2:])}{member}"
