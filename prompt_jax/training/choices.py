"""Choose the mesh (`mesh.auto`) and the recomputation (`model.remat auto`) for the devices of a run."""

import dataclasses
import math
from typing import Any

import jax
from jax.sharding import Mesh

from prompt_jax import experiment as experiments
from prompt_jax.checkpoints.load import Model, load_config
from prompt_jax.checkpoints.weights import abstract
from prompt_jax.config.mesh import MeshConfig
from prompt_jax.config.model import ModelConfig
from prompt_jax.distributed.chips import Chip, chip_of
from prompt_jax.distributed.costs import Workload, choose_mesh, choose_remat, takes_kernel, virtual_slots
from prompt_jax.distributed.sharding import mesh_shape
from prompt_jax.experiment import Experiment
from prompt_jax.methods import Method
from prompt_jax.methods.full import FullTuning
from prompt_jax.methods.last_layers import LastLayersTuning
from prompt_jax.models import Config, family
from prompt_jax.models.fused_attention import is_fused
from prompt_jax.task_format import TaskFormat


def with_mesh(experiment: Experiment) -> Experiment:
    """Return the experiment with the mesh that `mesh.auto` chooses for JAX's devices, or unchanged without it.

    Raises:
      ConfigError: the devices are unknown, or the run does not fit on them.
      CheckpointError: as `load_model`.
    """
    if not experiment.mesh.auto:
        return experiment
    config = load_config(experiment.model.name, experiment.model.revision)
    chip = chip_of(jax.local_devices())
    mesh = choose_mesh(config, workload(experiment, config), chip, jax.device_count())
    return dataclasses.replace(experiment, mesh=mesh)


def with_remat(experiment: Experiment, config: Config, work: Workload, mesh: Mesh | None, chip: Chip) -> Experiment:
    """Return the experiment with the remat that `model.remat auto` chooses, or unchanged without it.

    Args:
      experiment: the experiment to train.
      config: the base's configuration.
      work: the work of the longest step.
      mesh: the devices; None is a single device.
      chip: the devices' chip.
    """
    if experiment.model.remat != "auto":
        return experiment
    axes = mesh_shape(mesh)
    fsdp = experiment.mesh.fsdp and mesh is not None
    sizes = MeshConfig(ensemble=axes["ensemble"], data=axes["data"], model=axes["model"], fsdp=fsdp)
    remat = choose_remat(config, work, sizes, chip)
    return dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, remat=remat))


def workload(experiment: Experiment, config: Config) -> Workload:
    """Return the work of an experiment's steps, for inputs and targets of the greatest length."""
    data, default = experiment.data, TaskFormat("{text}")
    longest = max(experiments.members(experiment), key=lambda member: member.prompt.stored_length).prompt
    source, target = data.input_length or default.input_length, data.target_length or default.target_length
    return work_of(experiment, config, longest, _trained(longest, experiment.model, config), source, target)


def work_of(experiment: Experiment, config: Config, method: Method, trained: Any, source: int, target: int) -> Workload:
    """Return the work of an experiment's steps.

    Args:
      experiment: the experiment to train.
      config: the base's configuration.
      method: that of the member with the longest prompt.
      trained: shapes of this member's trainable parameters.
      source: tokens of an input.
      target: tokens of a target.
    """
    train = experiment.train
    tokens, slots = virtual_slots(config, jax.eval_shape(method.apply, trained))
    return Workload(
        groups=tuple(map(len, experiments.group_members(experiments.members(experiment)))),
        at_once=experiment.ensemble.group,
        rows=train.batch_size // train.accumulate,
        parts=train.accumulate,
        source=source,
        target=target,
        tokens=tokens,
        slots=slots,
        trained=sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(trained)),
        dtype=experiment.model.dtype,
        remat=experiment.model.remat,
        fused=is_step_fused(experiment) and takes_kernel(config, experiment.model.dtype, train.dropout_rate),
    )


def is_step_fused(experiment: Experiment) -> bool:
    """Return whether a training step uses fused kernels. They have no gradient of relative positions of the base."""
    trains_base = isinstance(experiment.prompt, FullTuning | LastLayersTuning)
    return is_fused(experiment.model.attention) and not trains_base


def _trained(method: Method, options: ModelConfig, config: Config) -> Any:
    """Return the shapes of a member's trainable parameters."""
    table = family(config).parameters(config)
    simple: Any = dataclasses.replace(method, **{"init": "uniform"} if hasattr(method, "init") else {})

    def initialize(key: jax.Array, base: Any) -> Any:
        return simple.initialize(key, Model(options.name, None, base, config, None, ""))

    return jax.eval_shape(initialize, jax.eval_shape(lambda: jax.random.key(0)), abstract(table, options.dtype))
