"""Chooses mesh, dtype, remat, member group and evaluation batch of a run for a TPU slice."""

import dataclasses
import itertools
import math
from typing import NamedTuple, get_args

import jax

from prompt_jax.config.mesh import MeshConfig
from prompt_jax.config.model import Dtype, Remat
from prompt_jax.distributed.costs import Cost, evaluation_rows, fits, meshes, training_cost
from prompt_jax.errors import ConfigError
from prompt_jax.experiment import Experiment
from prompt_jax.training.choices import workload
from tools.planner.chips import Topology
from tools.planner.estimate import Estimate, TooLarge, estimate
from tools.planner.programs import base_config, generation, training_steps, with_choices

COMPILED = 3  # candidates that the compiler ranks


class Candidate(NamedTuple):
    """A way to run an experiment, and its analytic estimate."""

    experiment: Experiment
    cost: Cost

    @property
    def label(self) -> str:
        model, group = self.experiment.model, self.experiment.ensemble.group
        return f"{mesh_label(self.experiment.mesh)}, {model.dtype}, remat {model.remat}" + (
            f", group {group}" if group else ""
        )

    def rank(self, seconds: float) -> float:
        """Return the step time by which to rank the candidate: a narrower dtype has to be 2 % faster."""
        return seconds * 1.02 ** get_args(Dtype).index(self.experiment.model.dtype)


def mesh_label(mesh: MeshConfig) -> str:
    """Return the mesh as tables show it: `32 x 8 x 1 fsdp`."""
    return " x ".join(map(str, mesh.sizes.values())) + " fsdp" * mesh.fsdp


def options(experiment: Experiment) -> str:
    """Return the options of `prompt-jax train` that a search chooses."""
    values: dict[str, object] = {f"mesh.{axis}": size for axis, size in experiment.mesh.sizes.items()}
    values |= {"mesh.fsdp": ""} if experiment.mesh.fsdp else {}
    values |= {"model.dtype": experiment.model.dtype, "model.remat": experiment.model.remat}
    values |= {"ensemble.group": experiment.ensemble.group} if experiment.ensemble.group else {}
    values |= {"train.eval-batch-size": experiment.train.eval_batch_size}
    return " ".join(f"--{name} {value}".strip() for name, value in values.items())


def candidates(experiment: Experiment, where: Topology) -> list[Candidate]:
    """Return the candidates that fit by the analytic estimate, fastest first.

    There is one for each dtype (the experiment's, and bfloat16 and int8 if narrower), remat, size of `mesh.model`, and
    `mesh.fsdp`: the one whose other sizes are the best by the estimate.

    Raises:
      ConfigError: nothing fits.
    """
    config, experiment = base_config(experiment.model.name), with_choices(experiment, where.devices)
    work = workload(experiment, config)
    best: dict[tuple[str, str, int, bool], Candidate] = {}
    for dtype, mesh, remat in itertools.product(
        _dtypes(experiment.model.dtype),
        list(meshes(config, work, len(where.devices))),
        get_args(Remat),  # from none to full
    ):
        for group in _groups(work.groups, mesh):
            chosen = dataclasses.replace(work, dtype=dtype, remat=remat, at_once=group)
            cost = training_cost(config, chosen, mesh, where.chip)
            known = best.get(key := (dtype, remat, mesh.model, mesh.fsdp))
            if fits(cost, where.chip) and (known is None or cost.seconds < known.cost.seconds):
                best[key] = Candidate(_with(experiment, mesh, dtype, remat, group), cost)
    if not best:
        raise ConfigError(
            f"nothing fits on {where.name} by the analytic estimate: use a larger slice, a smaller train.batch_size or "
            "a larger train.accumulate"
        )
    return sorted(best.values(), key=lambda each: each.rank(each.cost.seconds))


def _dtypes(given: Dtype) -> list[Dtype]:
    """Return the dtype and those that are narrower. int4 changes answers too much to be chosen for someone."""
    order = get_args(Dtype)
    return [given, *(each for each in order[order.index(given) + 1 :] if each in ("bfloat16", "int8"))]


def _groups(members: tuple[int, ...], mesh: MeshConfig) -> list[int | None]:
    """Return the numbers of members that a device can process at once; None for a single member."""
    largest = max(members) // mesh.ensemble
    if max(members) == 1:
        return [None]
    return [group for group in range(1, largest + 1) if largest % group == 0]


def _with(experiment: Experiment, mesh: MeshConfig, dtype: Dtype, remat: Remat, group: int | None) -> Experiment:
    return dataclasses.replace(
        experiment,
        mesh=mesh,
        model=dataclasses.replace(experiment.model, dtype=dtype, remat=remat),
        ensemble=dataclasses.replace(experiment.ensemble, group=group),
    )


def rank(found: list[Candidate], where: Topology) -> list[tuple[Candidate, list[Estimate | TooLarge]]]:
    """Compile the training steps of the first candidates, until enough fit. Those that fit come first, by their time.

    A candidate has one training step for each prompt length.
    """
    ranked: list[tuple[float, Candidate, list[Estimate | TooLarge]]] = []
    for candidate in found[: 2 * COMPILED]:
        results = [estimate(step, where) for step in training_steps(candidate.experiment, where.devices)]
        seconds = sum(each.seconds if isinstance(each, Estimate) else math.inf for each in results)
        ranked.append((candidate.rank(seconds), candidate, results))
        jax.clear_caches()
        if sum(each < math.inf for each, *_ in ranked) == COMPILED:
            break
    return [(candidate, results) for _, candidate, results in sorted(ranked, key=lambda each: each[0])]


def largest_evaluation(experiment: Experiment, where: Topology) -> tuple[Experiment, Estimate]:
    """Return the experiment with the largest evaluation batch that fits, a power of two, and the cost of generation.

    Raises:
      ConfigError: not even one row fits.
    """
    config = base_config(experiment.model.name)
    rows = max(1, evaluation_rows(config, workload(experiment, config), experiment.mesh, where.chip))
    while rows:
        train = dataclasses.replace(experiment.train, eval_batch_size=rows)
        experiment = dataclasses.replace(experiment, train=train)
        result = estimate(generation(experiment, where.devices), where)
        if isinstance(result, Estimate):
            return experiment, result
        rows //= 2
    raise ConfigError(f"generation for a single row does not fit on {where.name}")
