"""Build the objects that training needs from an Experiment."""

import contextlib
import dataclasses
import functools
import itertools
import math
import operator
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from prompt_jax import experiment as experiments
from prompt_jax.checkpoints.load import Model, load_model
from prompt_jax.config.decoding import Decoding
from prompt_jax.config.model import RematOption
from prompt_jax.config.optimizer import OptimizerConfig
from prompt_jax.data.batches import TrainBatches
from prompt_jax.data.buckets import length_buckets
from prompt_jax.data.examples import Examples
from prompt_jax.data.member_batches import GroupBatch, MemberBatches
from prompt_jax.data.mixture_batches import MixtureBatches
from prompt_jax.data.stored_rows import row_lengths
from prompt_jax.distributed.chips import CHIPS, Chip, chip_of
from prompt_jax.distributed.costs import Workload
from prompt_jax.distributed.memory import total_memory
from prompt_jax.distributed.processes import smallest
from prompt_jax.distributed.sharding import (
    make_mesh,
    mesh_shape,
    named_sharding,
    parameter_sharding,
    read_to_devices,
    to_devices,
    to_host,
)
from prompt_jax.errors import ConfigError
from prompt_jax.experiment import Experiment
from prompt_jax.inference import logits_rules
from prompt_jax.methods import Method
from prompt_jax.models import Config, ContextError, check_context
from prompt_jax.models.delta import Delta
from prompt_jax.models.fused_attention import is_fused
from prompt_jax.models.prompt import Prompt, unstack_prompts
from prompt_jax.models.rope import long_rope
from prompt_jax.task_format import TaskFormat
from prompt_jax.training.choices import is_step_fused, with_remat, work_of
from prompt_jax.training.members import Member, TrainedPrompt, load_members, trained_prompts
from prompt_jax.training.optimizers import absolute_rate, embedding_rms, make_optimizer, rate_unit
from prompt_jax.training.step import TrainState, frozen_base, is_frozen, make_train_step, vmap_members
from prompt_jax.training.tasks import load_test


@dataclasses.dataclass(frozen=True)
class Setup:
    """Everything that a run needs before its first step.

    Members whose trainable parameters have equal shapes form a group: one compiled step trains them, as arrays with a
    leading axis E. Trainable parameters are never padded, because optimizers would see the padding: Adafactor clips by
    the root mean square of a whole tensor.

    Attributes:
      model: the base.
      method: turns trainable parameters into prompts.
      members: the members in the order of their numbers.
      prompts: the prompts of the run's files, in their order.
      groups: the members of each group.
      steps: number of optimizer steps.
      further_tests: test splits of tasks that no member is trained on.
      batches: training batches of all groups.
      states: the state of each group before the first step.
      keys: random keys [E] of each group.
      step: the compiled training step of a group.
      place: puts the batch [E, B, ...] of a group on the devices.
      place_members: puts arrays [E] on the devices.
      rate_rms: the root mean square of the base's embeddings, if learning rates are in this unit.
      remat: what the backward pass recomputes.
    """

    model: Model
    method: Method
    members: tuple[Member, ...]
    prompts: tuple[TrainedPrompt, ...]
    groups: tuple[tuple[Member, ...], ...]
    steps: int
    further_tests: tuple[tuple[Examples, TaskFormat], ...]
    batches: MemberBatches
    states: tuple[TrainState, ...]
    keys: tuple[jax.Array, ...]
    step: Callable
    place: Callable
    place_members: Callable
    rate_rms: float | None
    remat: RematOption

    def trainable(self, states: Sequence[TrainState]) -> list[Any]:
        """Return each member's trainable variables, on the host."""
        by_number: dict[int, Any] = {}
        for group, state in zip(self.groups, states, strict=True):
            stacked = to_host(state.trainable)
            by_number |= {m.number: jax.tree.map(operator.itemgetter(i), stacked) for i, m in enumerate(group)}
        return [by_number[member.number] for member in self.members]

    def make_prompts(self, trainable: Sequence[Any]) -> list[Prompt | Delta]:
        """Turn the members' trainable variables into prompts or Deltas, in the order of `prompts`."""
        made: list[Any] = [self._prompt(variables["prompt"]) for variables in trainable]
        return [prompt for each in made for prompt in (unstack_prompts(each) if self.method.per_task else [each])]

    def _prompt(self, trainable: Any) -> Prompt | Delta:
        """Return the prompt of a member, which records the rotary positions of the run."""
        made: Any = self.method.apply(trainable)
        if isinstance(made, Delta):
            return made
        rope = long_rope(self.model.config)
        return Prompt(**{name: part.replace(long_rope=rope) for name, part in made.parts.items()})

    def absolute_rate(self, number: int) -> OptimizerConfig:
        """Return the optimizer's options of a member, with an absolute learning rate."""
        experiment = self.members[number].experiment
        return absolute_rate(experiment.optimizer, experiment.prompt, self.rate_rms)

    @property
    def trained_parameters(self) -> int:
        """Number of trainable parameters of all members."""
        leaves = [pair for state in self.states for pair in jax.tree_util.tree_leaves_with_path(state.trainable)]
        return sum(leaf.size for path, leaf in leaves if not is_frozen(path))

    @property
    def stored_parameters(self) -> int:
        """Number of parameters of all prompts, as files store them."""
        prompts = [jax.eval_shape(jax.vmap(self.method.apply), state.trainable["prompt"]) for state in self.states]
        return sum(leaf.size for leaf in jax.tree.leaves(prompts))


def prepare(experiment: Experiment, tasks: Path | None = None) -> Setup:
    """Load base and data, initialize the trainable parameters, and build the training step.

    Args:
      experiment: checked by `prompt_jax.experiment.check`.
      tasks: folder or file with the user's tasks; None is `tasks` in the working directory.

    Raises:
      ConfigError: the mesh does not suit the members, or an option needs something that the base lacks.
    """
    alone = experiments.members(experiment)
    numbers = experiments.group_members(alone)
    mesh = make_mesh(experiment.mesh)
    check_division(numbers, alone, mesh_shape(mesh))
    sharding, base = parameter_sharding(mesh, fsdp=experiment.mesh.fsdp), experiment.model
    model = load_model(base.name, base.dtype, base.revision, sharding=sharding)
    if base.attention != "auto":
        fused = is_fused(base.attention) and mesh is None
        model = dataclasses.replace(model, config=dataclasses.replace(model.config, fused_attention=fused))
    if model.tokenizer is None:
        raise ConfigError(
            f"the model {model.name} has no tokenizer, which training needs (spiece.model, tokenizer.json, or "
            "vocab.json with merges.txt)"
        )
    members = load_members(alone, model, tasks)
    groups = tuple(tuple(members[number] for number in group) for group in numbers)
    steps = _steps(experiment, members)
    trained_on = {task.name for member in members for task in member.tasks}
    if repeated := trained_on & set(experiment.data.test_tasks):
        raise ConfigError(f"data.test_tasks names {min(repeated)} again; the tasks of the mixture are always tested")
    prompts = trained_prompts(members)
    answers = {tuple(task.format.labels for task in prompt.tasks) for prompt in prompts}
    if experiment.data.test_tasks and len(answers) > 1:
        label_sets = " and ".join(str(labels) for each in answers for labels in each)
        raise ConfigError(
            f"data.test_tasks: the members vote there, but their labels differ ({label_sets}); "
            "leave it out, or train members with the same labels"
        )

    further_tests = tuple(
        load_test(name, experiment.data, model, experiment.train.test_examples, tasks)
        for name in experiment.data.test_tasks
    )
    _check_memory(members, model)
    for member in members:  # before `_start`, since the activations of a text depend on the rotary positions
        prompt = _prompt_shapes(member, model)
        splits = [(examples, task.format) for task in member.tasks for examples in task.examples.values()]
        for examples, task_format in (*splits, *further_tests):
            model = _fitted(model, prompt, examples, task_format.target_length, experiment.decoding)
    experiment = with_remat(experiment, model.config, _work(experiment, members, model), mesh, _chip())
    unit = rate_unit(experiment.optimizer, experiment.prompt, model.config)
    rms = embedding_rms(model) if unit == "embedding_rms" else None
    starts = [_start(member, model, steps, rms) for member in members]
    of_members = named_sharding(mesh, "members")
    states = tuple(
        to_devices(jax.tree.map(lambda *leaves: jnp.stack(leaves), *(starts[n][0] for n in group)), of_members)
        for group in numbers
    )
    return Setup(
        model=model,
        members=members,
        prompts=prompts,
        steps=steps,
        further_tests=further_tests,
        groups=groups,
        batches=_batches(members, groups, model),
        states=states,
        keys=tuple(to_devices(jnp.stack([starts[n][1] for n in group]), of_members) for group in numbers),
        step=train_step(experiment, model.config, steps, mesh),
        place=functools.partial(_place, sharding=named_sharding(mesh, "members", "batch")),
        place_members=functools.partial(to_devices, sharding=of_members),
        method=experiment.prompt,
        rate_rms=rms,
        remat=experiment.model.remat,
    )


def _place(batch: GroupBatch, sharding: NamedSharding | None) -> dict[str, jax.Array]:
    """Put a batch on the devices. Each process only reads the rows of its devices."""
    return read_to_devices(batch.read, batch.shape, sharding)


def train_step(experiment: Experiment, config: Config, steps: int, mesh: Mesh | None) -> Any:
    """Return the jitted step of a group of members. It donates the memory of its first argument to the new states.

    Args:
      experiment: the experiment to train.
      config: the base's configuration.
      steps: number of steps of the whole run.
      mesh: the devices; None is a single device.
    """
    options, fsdp = experiment.train, experiment.mesh.fsdp and mesh is not None
    remat = experiment.model.remat
    assert remat != "auto"  # `prepare` has chosen
    step = make_train_step(
        dataclasses.replace(
            config,
            dropout_rate=options.dropout_rate,
            remat=remat,
            fused_attention=is_step_fused(experiment),
            fsdp=fsdp,
        ),
        experiment.prompt,
        frozen_base(make_optimizer(experiment.optimizer, steps)),
        loss=options.loss,
        z_loss=options.z_loss,
        dropout=options.dropout_rate > 0,
        accumulate=options.accumulate,
    )
    return jax.jit(vmap_members(step, group=experiment.ensemble.group, mesh=mesh, fsdp=fsdp), donate_argnums=0)


def check_division(groups: Sequence[Sequence[int]], alone: Sequence[Experiment], mesh: Mapping[str, int]) -> None:
    """Raise ConfigError unless the mesh can shard the members, and the rows of each accumulated part of a batch."""
    options = alone[0].train
    if (options.batch_size // options.accumulate) % mesh["data"]:
        parts = f" in {options.accumulate} parts" if options.accumulate > 1 else ""
        raise ConfigError(
            f"train.batch_size is {options.batch_size}{parts}, which cannot be divided over mesh.data {mesh['data']}"
        )
    count = mesh["ensemble"]
    for numbers in groups:
        if len(numbers) % count:
            length = f" of length {getattr(alone[numbers[0]].prompt, 'length', 0)}" if len(groups) > 1 else ""
            raise ConfigError(
                f"{len(numbers)} members{length} cannot be divided over mesh.ensemble {count}: make the number of "
                f"members a multiple of {count} (ensemble.size), or mesh.ensemble one of its divisors"
            )


def _check_memory(members: Sequence[Member], model: Model) -> None:
    """Raise ConfigError if the trainable parameters alone exceed the memory. XLA would end the process."""
    count = 0
    for (method, tasks), number in Counter((m.experiment.prompt, len(m.tasks)) for m in members).items():
        with contextlib.suppress(jax.errors.JAXTypeError):  # the shapes are not known before `initialize`
            shapes = method.shapes(model, tasks=tasks)
            count += number * sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    needed, available = 4 * count, jax.process_count() * total_memory()
    if needed > available:
        method = members[0].experiment.prompt
        sizes = {field.name: getattr(method, field.name) for field in dataclasses.fields(method)}
        named = [
            f"prompt.{name} {value}" for name, value in sizes.items() if type(value) is int and name[:5] != "init_"
        ]
        of_members = f" of {len(members)} members" if len(members) > 1 else ""
        raise ConfigError(
            f"the {count:,} trainable parameters{of_members} take {needed / 2**30:,.1f} GiB in float32, and there are "
            f"{available / 2**30:,.1f} GiB of memory; choose smaller sizes ({', '.join(named) or method.name})"
        )


def _prompt_shapes(member: Member, model: Model) -> Prompt | None:
    """Return the shapes of a member's prompt; None if the method changes weights of the base."""
    method = member.experiment.prompt
    made = jax.eval_shape(method.apply, method.shapes(model, tasks=len(member.tasks)))
    return made if isinstance(made, Prompt) else None


def _fitted(model: Model, prompt: Prompt | None, examples: Examples, target_length: int, decoding: Decoding) -> Model:
    """Return the model for texts as long as the examples.

    Raises:
      ConfigError: the model has too few positions, or the decoding options do not suit it.
    """
    try:
        # An answer may be as long as the longest target after truncation.
        config = check_context(model.config, prompt, int(row_lengths(examples.inputs).max()), target_length)
        logits_rules.merged_settings(model.config, decoding, target_length)
    except (ContextError, ConfigError) as error:
        raise ConfigError(f"{examples.name}, {examples.split}: {error}") from error
    return dataclasses.replace(model, config=config)


def _chip() -> Chip:
    """Return the chip, with the least memory of a device in all processes. Unknown ones are bound by computation."""
    chip = chip_of(jax.local_devices(), unknown=CHIPS["cpu"])
    return dataclasses.replace(chip, memory=smallest(chip.memory >> 20) << 20)


def _work(experiment: Experiment, members: Sequence[Member], model: Model) -> Workload:
    """Return the work of a step with the longest inputs."""
    longest = max(members, key=lambda member: member.experiment.prompt.stored_length)
    method, tasks = longest.experiment.prompt, [task for member in members for task in member.tasks]
    trained = method.shapes(model, tasks=len(longest.tasks))
    source = max(int(row_lengths(task.examples["train"].inputs).max()) for task in tasks)
    target = max(int(row_lengths(task.examples["train"].targets).max()) for task in tasks)
    return work_of(experiment, model.config, method, trained, source, target)


def _steps(experiment: Experiment, members: Sequence[Member]) -> int:
    """Return the number of steps of the run.

    Raises:
      ConfigError: `train.epochs` with members whose numbers of examples differ.
    """
    options = experiment.train
    if options.epochs is None:
        return options.steps
    counts = sorted({member.training_examples for member in members})
    if len(counts) > 1:
        raise ConfigError(
            f"train.epochs: members take the same steps, but have {' and '.join(map(str, counts))} training examples; "
            "give train.steps"
        )
    return max(1, math.ceil(options.epochs * counts[0] / options.batch_size))


def _start(member: Member, model: Model, steps: int, rms: float | None) -> tuple[TrainState, jax.Array]:
    """Return a member's initial state and its key. They depend only on the member's experiment and the base.

    `rms` is the unit of the learning rate; None for an absolute rate.
    """
    experiment = member.experiment
    init_key, run_key = jax.random.split(jax.random.key(experiment.train.seed))
    # Take the labels of several tasks in turn, so that a short prompt has some of each.
    turns = itertools.zip_longest(*(task.format.labels for task in member.tasks))
    labels = list(dict.fromkeys(label for turn in turns for label in turn if label is not None))
    trainable = member.experiment.prompt.initialize(init_key, model, labels, tasks=len(member.tasks))
    # The optimizer's state holds the member's learning rate and weight decay.
    options = absolute_rate(experiment.optimizer, experiment.prompt, rms)
    return TrainState.create(trainable, frozen_base(make_optimizer(options, steps))), run_key


def _batches(members: Sequence[Member], groups: Sequence[Sequence[Member]], model: Model) -> MemberBatches:
    """Return the batches of all groups, from one stream for each combination of data and seed."""
    streams: dict[Any, TrainBatches] = {}
    for member in members:
        options, training = member.experiment.train, [task.examples["train"] for task in member.tasks]
        lengths = np.concatenate([row_lengths(examples.inputs) for examples in training]).tolist()
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
    streams_of_groups = [[number[m.experiment.data, m.experiment.train.seed] for m in group] for group in groups]
    return MemberBatches(list(streams.values()), streams_of_groups)
