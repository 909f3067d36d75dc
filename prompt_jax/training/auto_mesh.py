"""`mesh.auto`: choose the mesh from the base, the batch and the devices."""

import dataclasses
import math
from typing import Any

import jax

from prompt_jax import experiment as experiments
from prompt_jax.checkpoints.load import Model, load_config
from prompt_jax.checkpoints.weights import abstract
from prompt_jax.config.model import ModelConfig
from prompt_jax.distributed.chips import chip_of
from prompt_jax.distributed.costs import Workload, choose_mesh, virtual_slots
from prompt_jax.experiment import Experiment
from prompt_jax.methods import Method
from prompt_jax.models import family
from prompt_jax.models.fused_attention import is_fused, takes
from prompt_jax.task_format import TaskFormat
from prompt_jax.training.setup import group_members


def with_mesh(experiment: Experiment) -> Experiment:
    """Return the experiment with the mesh that `mesh.auto` chooses for JAX's devices, or unchanged without it.

    Raises:
      ConfigError: the devices are unknown, or the run does not fit on them.
      CheckpointError: as `load_model`.
    """
    if not experiment.mesh.auto:
        return experiment
    devices = jax.devices()
    config = load_config(experiment.model.name, experiment.model.revision)
    mesh = choose_mesh(config, workload(experiment, config), chip_of(devices), len(devices))
    return dataclasses.replace(experiment, mesh=mesh)


def workload(experiment: Experiment, config: Any) -> Workload:
    """Return the work of an experiment's steps, for inputs and targets of the greatest length."""
    train, data, default = experiment.train, experiment.data, TaskFormat("{text}")
    alone = experiments.members(experiment)
    longest = max(alone, key=lambda member: member.prompt.stored_length).prompt
    trained = _trained(longest, experiment.model, config)
    made = jax.eval_shape(longest.apply, trained)
    tokens, slots = virtual_slots(config, made)
    return Workload(
        groups=tuple(map(len, group_members(alone))),
        at_once=experiment.ensemble.group,
        rows=train.batch_size // train.accumulate,
        parts=train.accumulate,
        source=data.input_length or default.input_length,
        target=data.target_length or default.target_length,
        tokens=tokens,
        slots=slots,
        trained=sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(trained)),
        dtype=experiment.model.dtype,
        remat=experiment.model.remat,
        fused=is_fused(experiment.model.attention) and takes(experiment.model.dtype, train.dropout_rate),
    )


def _trained(method: Method, options: ModelConfig, config: Any) -> Any:
    """Return the shapes of a member's trainable parameters."""
    table = family(config).parameters(config)
    simple: Any = dataclasses.replace(method, **{"init": "uniform"} if hasattr(method, "init") else {})

    def initialize(key: jax.Array, base: Any) -> Any:
        return simple.initialize(key, Model(options.name, None, base, config, None, ""))

    return jax.eval_shape(initialize, jax.eval_shape(lambda: jax.random.key(0)), abstract(table, options.dtype))
