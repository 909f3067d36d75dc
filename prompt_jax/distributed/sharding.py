"""Where arrays are: the mesh of devices, and which of their axes are divided over it.

A mesh has the axes `ensemble`, `data` and `model`; a run on a single device has none, and None stands for it
everywhere. Arrays may span the devices of several processes. `to_devices` and `to_host` transfer them; every
process must call both in the same order.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from prompt_jax.config.mesh import MeshConfig
from prompt_jax.errors import ConfigError
from prompt_jax.models.parameter import Parameter


@dataclasses.dataclass(frozen=True)
class Rules:
    """The mesh axis, or axes, that each logical axis is divided over. None: each device has it whole."""

    members: str = "ensemble"
    batch: str = "data"
    rows: tuple[str, ...] = ("ensemble", "data")  # in evaluation, where no row is a member's
    # Of parameters (`models.parameter`): each device has some of the heads, of the feed-forward width, of the words.
    heads: str = "model"
    mlp: str = "model"
    vocab: str = "model"
    layers: None = None
    embed: None = None
    kv: None = None
    buckets: None = None
    positions: None = None

    def spec(self, *axes: str) -> PartitionSpec:
        """How an array with these logical axes is divided; an AttributeError for one that is none."""
        return PartitionSpec(*(getattr(self, axis) for axis in axes))


RULES = Rules()


def make_mesh(config: MeshConfig, devices: list[Any] | None = None) -> Mesh | None:
    """The devices of a run, all of them where there are several processes; None for a single one.

    Args:
      config: the sizes.
      devices: those to choose from; None is all there are.

    Raises:
      ConfigError: sizes that do not fit the devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = dataclasses.asdict(config)
    text = " x ".join(f"mesh.{name} {size}" for name, size in sizes.items())
    fixed = int(np.prod([size for size in sizes.values() if size != -1]))
    rest = len(devices) // fixed if -1 in sizes.values() else 1
    shape = tuple(rest if size == -1 else size for size in sizes.values())
    count = int(np.prod(shape))
    if not 0 < count <= len(devices):
        raise ConfigError(f"{text} asks for {fixed} devices, and there are {len(devices)}")
    if jax.process_count() > 1 and count != len(devices):
        raise ConfigError(
            f"{text} is {count} devices, and the {jax.process_count()} processes have {len(devices)}: "
            "all have to take part; -1 for one of the sizes is what the others leave"
        )
    if count == 1:
        return None
    # An axis of ours may be a part of one of the machine's, as 2 of a ring of 4.
    try:
        placed = mesh_utils.create_device_mesh(shape, devices[:count], allow_split_physical_axes=True)
    except AssertionError as error:  # of TPUs
        raise ConfigError(
            f"{text} is {count} of {len(devices)} chips, and the first {count} are no block of them without a gap; "
            f"sizes that make {len(devices)} take all"
        ) from error
    return Mesh(placed, tuple(sizes), axis_types=(AxisType.Auto,) * len(shape))


def mesh_of(tree: Any) -> Mesh | None:
    """The mesh of `make_mesh` that arrays were placed on; None without one."""
    sharding: Any = getattr(next(iter(jax.tree.leaves(tree)), None), "sharding", None)
    on_mesh = isinstance(sharding, NamedSharding) and "ensemble" in sharding.mesh.axis_names
    return sharding.mesh if on_mesh else None


def named_sharding(mesh: Mesh | None, *axes: str) -> NamedSharding | None:
    """The sharding of arrays whose first axes are these logical ones, the others whole; None without a mesh."""
    return None if mesh is None else NamedSharding(mesh, RULES.spec(*axes))


def parameter_sharding(mesh: Mesh | AbstractMesh | None) -> Callable[[Parameter], NamedSharding] | None:
    """Where each parameter of a base goes: the `sharding` of `load_model`; None without a mesh.

    A vocabulary that cannot be divided (GPT-2's 50,257 words) is whole on each device.

    Raises:
      ConfigError: heads or feed-forward width that cannot be divided over `model`.
    """
    if mesh is None:
        return None

    def sharding(parameter: Parameter) -> NamedSharding:
        axes, shape = list(parameter.axes), parameter.shape
        for number, (axis, size) in enumerate(zip(axes, shape, strict=True)):
            over = getattr(RULES, axis)
            if over is None or size % mesh.shape[over] == 0:
                continue
            if axis != "vocab":
                raise ConfigError(
                    f"mesh.{over} is {mesh.shape[over]}, and {parameter.path} has {size} {axis}, which cannot be "
                    "divided by it"
                )
            axes[number] = "embed"  # as whole as that
        stacked = [] if parameter.layers is None else ["layers"]
        return NamedSharding(mesh, RULES.spec(*stacked, *axes))

    return sharding


def to_devices(tree: Any, sharding: NamedSharding | None = None) -> Any:
    """Host arrays on the devices: each process makes the parts that its own devices have.

    Args:
      tree: NumPy arrays, or keys; every process has the same.
      sharding: from `named_sharding`; None is the default device.
    """
    if sharding is None:
        return jax.device_put(tree)

    def one(leaf: Any) -> jax.Array:
        if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(one(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
        leaf = np.asarray(jax.device_get(leaf))
        return jax.make_array_from_callback(leaf.shape, sharding, leaf.__getitem__)

    return jax.tree.map(one, tree)


def to_host(tree: Any) -> Any:
    """The arrays on the host, whole, whichever processes' devices have them."""
    mesh = next((m for leaf in jax.tree.leaves(tree) if not _addressable(leaf) and (m := mesh_of(leaf))), None)
    if mesh is not None:
        tree = jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec()))(tree)
    return jax.device_get(tree)


def _addressable(leaf: Any) -> bool:
    return not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated


def mesh_shape(mesh: Mesh | None) -> Mapping[str, int]:
    """The sizes of the mesh's axes, all 1 without one."""
    return dict.fromkeys(("ensemble", "data", "model"), 1) if mesh is None else mesh.shape
