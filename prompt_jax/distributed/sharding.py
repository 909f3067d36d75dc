"""The device mesh, and the mesh axes over which arrays are sharded.

A mesh has the axes `ensemble`, `data` and `model`. Only `ensemble` extends over several TPU slices, since members do
not communicate in training. On a single device there is no mesh, and functions take and return None for it. Arrays may
span the devices of several processes. `to_devices` and `to_host` transfer them; every process must call both in the
same order.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
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
    """The mesh axes over which each logical axis is sharded; None means replicated."""

    members: str = "ensemble"
    batch: str = "data"
    rows: tuple[str, ...] = ("ensemble", "data")  # the batch in evaluation, where rows do not belong to a member
    # Axes of parameters (`models.parameter`).
    heads: str = "model"
    mlp: str = "model"
    vocab: str = "model"
    layers: None = None
    embed: None = None
    kv: None = None
    buckets: None = None
    positions: None = None

    def spec(self, *axes: str) -> PartitionSpec:
        """Return the PartitionSpec of an array with these logical axes."""
        return PartitionSpec(*(getattr(self, axis) for axis in axes))


RULES = Rules()


def make_mesh(config: MeshConfig, devices: list[Any] | None = None) -> Mesh | None:
    """Return the mesh of a run, or None for a single device. Several processes must use all their devices.

    Args:
      config: the sizes of the axes.
      devices: the devices to choose from; None means all.

    Raises:
      ConfigError: the sizes do not fit the devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = config.sizes
    text = " x ".join(f"mesh.{name} {size}" for name, size in sizes.items())
    fixed = int(np.prod([size for size in sizes.values() if size != -1]))
    rest = len(devices) // fixed if -1 in sizes.values() else 1
    shape = tuple(rest if size == -1 else size for size in sizes.values())
    count = int(np.prod(shape))
    if not 0 < count <= len(devices):
        raise ConfigError(f"{text} asks for {fixed} devices, and there are {len(devices)}")
    if jax.process_count() > 1 and count != len(devices):
        raise ConfigError(
            f"{text} needs {count} devices, and the {jax.process_count()} processes have {len(devices)}: "
            "all must be used; set one of the sizes to -1 for all remaining devices"
        )
    if count == 1:
        return None
    slices = _slices(devices[:count])
    if shape[0] % len(slices) or len(set(map(len, slices))) > 1:
        raise ConfigError(
            f"{text} needs {count} chips of {len(slices)} slices, and only mesh.ensemble may extend over slices: make "
            f"it a multiple of {len(slices)}, and use all chips of each slice"
        )
    shape_of_slice = shape[0] // len(slices), *shape[1:]
    # A mesh axis may be part of a physical axis, e.g. 2 of a ring of 4.
    try:
        placed = [mesh_utils.create_device_mesh(shape_of_slice, own, allow_split_physical_axes=True) for own in slices]
    except AssertionError as error:  # on TPUs
        raise ConfigError(
            f"{text} needs {count} of {len(devices)} chips, and the first {count} do not form a contiguous block; "
            f"choose sizes whose product is {len(devices)}"
        ) from error
    return Mesh(np.concatenate(placed), tuple(sizes), axis_types=(AxisType.Auto,) * len(shape))


def _slices(devices: Sequence[Any]) -> list[list[Any]]:
    """Return the chips of each TPU slice, and other devices as one slice.

    Slices communicate over the slow data-center network. On GPUs, `slice_index` numbers hosts with fast networks.
    """
    slices: dict[int, list[Any]] = {}
    for device in devices:
        index = getattr(device, "slice_index", 0) if device.platform == "tpu" else 0
        slices.setdefault(index, []).append(device)
    return [slices[index] for index in sorted(slices)]


def mesh_of(tree: Any) -> Mesh | None:
    """Return the mesh from `make_mesh` that holds the arrays, or None."""
    sharding: Any = getattr(next(iter(jax.tree.leaves(tree)), None), "sharding", None)
    on_mesh = isinstance(sharding, NamedSharding) and "ensemble" in sharding.mesh.axis_names
    return sharding.mesh if on_mesh else None


def named_sharding(mesh: Mesh | None, *axes: str) -> NamedSharding | None:
    """Return the sharding of arrays whose first axes are these logical axes; None without a mesh."""
    return None if mesh is None else NamedSharding(mesh, RULES.spec(*axes))


def parameter_sharding(
    mesh: Mesh | AbstractMesh | None, *, fsdp: bool = False
) -> Callable[[Parameter], NamedSharding] | None:
    """Return the sharding of each parameter of a base, for `load_model`; None without a mesh.

    A vocabulary whose size is not divisible (GPT-2's 50,257 tokens) is replicated.

    Args:
      mesh: from `make_mesh`.
      fsdp: `mesh.fsdp`: shard the largest axis of each matrix over `data`.

    Raises:
      ConfigError: the heads or the feed-forward width are not divisible by the size of `model`.
    """
    if mesh is None:
        return None
    if fsdp and mesh.shape["model"] > 1:
        raise ConfigError(f"mesh.fsdp shards the base over mesh.data, and mesh.model is {mesh.shape['model']}, not 1")
    data = mesh.shape["data"]

    def fully_sharded(parameter: Parameter) -> NamedSharding:
        first = 0 if parameter.layers is None else 1
        axes: list[str | None] = [None] * (first + len(parameter.shape))
        divisible = [axis for axis, size in enumerate(parameter.shape) if size % data == 0]
        if len(parameter.shape) > 1 and divisible and "buckets" not in parameter.axes:
            axes[first + max(divisible, key=lambda axis: parameter.shape[axis])] = "data"
        return NamedSharding(mesh, PartitionSpec(*axes))

    if fsdp:
        return fully_sharded

    def sharding(parameter: Parameter) -> NamedSharding:
        axes, shape = list(parameter.axes), parameter.shape
        for number, (axis, size) in enumerate(zip(axes, shape, strict=True)):
            mesh_axis = getattr(RULES, axis)
            if mesh_axis is None or size % mesh.shape[mesh_axis] == 0:
                continue
            if axis != "vocab":
                raise ConfigError(
                    f"mesh.{mesh_axis} is {mesh.shape[mesh_axis]}, and {parameter.path} has {size} {axis}, which is "
                    "not divisible by it"
                )
            axes[number] = "embed"  # a replicated axis
        stacked = [] if parameter.layers is None else ["layers"]
        return NamedSharding(mesh, RULES.spec(*stacked, *axes))

    return sharding


def to_devices(tree: Any, sharding: NamedSharding | None = None) -> Any:
    """Transfer arrays to the devices; each process transfers only the shards of its devices.

    Args:
      tree: NumPy arrays or PRNG keys, the same in every process.
      sharding: from `named_sharding`; None means the default device.
    """
    if sharding is None:
        return jax.device_put(tree)

    def one(leaf: Any) -> jax.Array:
        if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(one(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
        leaf = np.asarray(jax.device_get(leaf))
        return jax.make_array_from_callback(leaf.shape, sharding, leaf.__getitem__)

    return jax.tree.map(one, tree)


def read_to_devices(
    read: Callable[[slice, slice], dict[str, np.ndarray]], shape: tuple[int, int], sharding: NamedSharding | None
) -> dict[str, jax.Array]:
    """Transfer arrays of which each process reads only the shards of its devices.

    Args:
      read: returns the part of all arrays at slices of their first two axes.
      shape: the sizes of these axes.
      sharding: from `named_sharding`, over these axes; None means the default device.
    """
    if sharding is None:
        return jax.device_put(read(slice(None), slice(None)))

    def part_of(index: Any) -> tuple[int, ...]:
        return sum((axis.indices(size)[:2] for axis, size in zip(index[:2], shape, strict=True)), ())

    parts: dict[tuple[int, ...], dict[str, np.ndarray]] = {}
    for index in sharding.addressable_devices_indices_map(shape).values():
        part = part_of(index)
        if part not in parts:  # devices along `model` have equal shards
            parts[part] = read(slice(*part[:2]), slice(*part[2:]))

    def one(name: str, array: np.ndarray) -> jax.Array:
        sizes = (*shape, *array.shape[2:])
        return jax.make_array_from_callback(sizes, sharding, lambda index: parts[part_of(index)][name])

    return {name: one(name, array) for name, array in next(iter(parts.values())).items()}


def to_host(tree: Any) -> Any:
    """Return whole NumPy arrays in every process, from arrays that may span the devices of all."""
    mesh = next((m for leaf in jax.tree.leaves(tree) if not _addressable(leaf) and (m := mesh_of(leaf))), None)
    if mesh is not None:
        tree = jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec()))(tree)
    return jax.device_get(tree)


def _addressable(leaf: Any) -> bool:
    return not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated


def mesh_shape(mesh: Mesh | None) -> Mapping[str, int]:
    """Return the sizes of the mesh's axes, all 1 without a mesh."""
    return dict.fromkeys(("ensemble", "data", "model"), 1) if mesh is None else mesh.shape
