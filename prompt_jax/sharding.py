"""Where arrays are: the mesh of devices, and what is divided over it."""

from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from prompt_jax.config import ConfigError, MeshConfig


def make_mesh(config: MeshConfig) -> Mesh | None:
    """The devices of a run, with the axis `ensemble`; None for a single one.

    Raises:
      ConfigError: more devices than there are.
    """
    devices = jax.devices()
    count = len(devices) if config.ensemble == -1 else config.ensemble
    if count > len(devices):
        raise ConfigError(f"mesh.ensemble asks for {count} devices, and there are {len(devices)}")
    if count == 1:
        return None
    return jax.make_mesh((count,), ("ensemble",), devices=devices[:count], axis_types=(AxisType.Auto,))


def mesh_of(tree: Any) -> Mesh | None:
    """The mesh of `make_mesh` that arrays were placed on by the functions below; None without one."""
    sharding: Any = getattr(next(iter(jax.tree.leaves(tree)), None), "sharding", None)
    on_mesh = isinstance(sharding, NamedSharding) and "ensemble" in sharding.mesh.axis_names
    return sharding.mesh if on_mesh else None


def over_ensemble(mesh: Mesh | None) -> NamedSharding | None:
    """Arrays with a leading axis of members, or of rows, each device having its own; None without a mesh."""
    return None if mesh is None else NamedSharding(mesh, PartitionSpec("ensemble"))


def replicated(mesh: Mesh | None) -> NamedSharding | None:
    """Arrays that each device has whole; None without a mesh."""
    return None if mesh is None else NamedSharding(mesh, PartitionSpec())
