"""Loading the nested parameters of a model from a folder of weight files, by the table `parameters(config)`.

Each leaf is read, cast or quantized, and transferred to the devices before the next one, so that host memory holds only
one leaf. Each process reads only its devices' shards.
"""

import contextlib
import math
import reprlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_dtypes
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from prompt_jax.checkpoints.files import TensorInFile, Tensors, one_line, open_safetensors, open_torch, read_json
from prompt_jax.checkpoints.fingerprint import Samples, sample
from prompt_jax.checkpoints.flax_msgpack import open_flax
from prompt_jax.errors import CheckpointError
from prompt_jax.models.parameter import Parameter
from prompt_jax.models.quantized import RANGES, Quantized, quantize, quantized_shape

# None for the default device, one sharding for all leaves, or a function from a row of the table to its sharding.
Shardings = jax.sharding.Sharding | Callable[[Parameter], jax.sharding.Sharding] | None

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
# The dtype of leaves that are not quantized.
DTYPES = {"float32": np.dtype(np.float32), "bfloat16": _BFLOAT16} | dict.fromkeys(RANGES, _BFLOAT16)
_MAX_LISTED = 12  # tensors of each kind in an error message


class Format(NamedTuple):
    """A format of weight files. `{file}.index.json` maps tensors to shards."""

    file: str
    open: Callable[[Path], contextlib.AbstractContextManager[Tensors]]

    @property
    def index_file(self) -> str:
        return f"{self.file}.index.json"


FORMATS = (  # in order of preference
    Format("model.safetensors", open_safetensors),
    Format("flax_model.msgpack", open_flax),
    Format("pytorch_model.bin", open_torch),
)


def shard_names(index: Path) -> list[str]:
    """Return the files that a shard index names. They must be plain file names, since an index is not trusted."""
    content = read_json(index)
    try:
        names = sorted(set(content["weight_map"].values()))
    except (LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is not a shard index: it has no 'weight_map' of tensors to files") from error
    if not names:
        raise CheckpointError(f"{index} names no files")
    for name in names:
        if not isinstance(name, str) or name in ("", "..") or Path(name).name != name:
            raise CheckpointError(f"{index} names the file {reprlib.repr(name)}, which is not a plain file name")
    return names


@contextlib.contextmanager
def open_checkpoint(folder: Path) -> Iterator[Tensors]:
    """Yield the tensors of a model folder, in the first of `FORMATS` that it has."""
    for form in FORMATS:
        if (folder / form.file).is_file():
            names = [form.file]
        elif (folder / form.index_file).is_file():
            names = shard_names(folder / form.index_file)
        else:
            continue
        break
    else:
        looked_for = ", ".join(f"{form.file} (or {form.index_file})" for form in FORMATS)
        raise CheckpointError(f"{folder} has no weights. Looked for: {looked_for}")

    with contextlib.ExitStack() as stack:
        tensors: Tensors = {}
        for name in names:
            if not (folder / name).is_file():
                raise CheckpointError(f"{folder / name} is missing; {form.index_file} names it")
            shard = stack.enter_context(form.open(folder / name))
            if twice := sorted(tensors.keys() & shard.keys()):
                raise CheckpointError(f"{folder / name}: {twice[0]} is in another shard too")
            tensors.update(shard)
        yield tensors


def assemble(
    table: list[Parameter], tensors: Tensors, dtype: str, sharding: Shardings = None, source: str = "checkpoint"
) -> tuple[dict[str, Any], Samples]:
    """Load the parameters of the table.

    Args:
      table: `parameters(config)`.
      tensors: the checkpoint, which must match the table exactly.
      dtype: as for `load_model`.
      sharding: as for `load_model`.
      source: named in errors.

    Returns:
      the nested parameters, and samples of each stored tensor for the fingerprint.

    Raises:
      CheckpointError: lists tensors that are missing, surplus or have another shape.
    """
    check(table, tensors, source)
    samples: Samples = {}
    for parameter in table:
        for index, name in enumerate(_names(parameter)):
            samples[f"{parameter.path}[{index}]"] = sample(_reorient(parameter, tensors[name].read()))
    leaves = {parameter.path: _load_leaf(parameter, tensors, dtype, sharding) for parameter in table}
    return _nest(leaves), samples


def abstract(table: list[Parameter], dtype: str, sharding: Shardings = None) -> dict[str, Any]:
    """Return the result of `assemble` as shapes, dtypes and shardings, for compilation without weights."""

    def leaf(parameter: Parameter) -> Any:
        shape, over = _shape(parameter, dtype), _sharding(parameter, sharding)
        if over is None:
            return shape
        return jax.tree.map(
            lambda part: part.update(sharding=_sharding_of_part(over, part.shape, _leaf_shape(parameter))), shape
        )

    return _nest({parameter.path: leaf(parameter) for parameter in table})


def check(table: list[Parameter], tensors: Mapping[str, TensorInFile], source: str) -> None:
    """Raise CheckpointError unless the tensors are exactly those of the table."""
    layers = max((parameter.layers or 0 for parameter in table), default=0)
    if layers > len(tensors):  # so that a damaged config.json cannot produce millions of names
        raise CheckpointError(f"{source}: the config has {layers} layers, and the weights {len(tensors)} tensors")
    expected = {name: stored_shape(parameter) for parameter in table for name in _names(parameter)}
    missing = [f"{name} {list(shape)}" for name, shape in expected.items() if name not in tensors]
    surplus = [f"{name} {list(stored.shape)}" for name, stored in tensors.items() if name not in expected]
    misshapen = [
        f"{name} {list(tensors[name].shape)}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in tensors and tensors[name].shape != shape
    ]
    faults = [("missing", missing), ("surplus", surplus), ("of another shape", misshapen)]
    if any(names for _, names in faults):
        parts = [f"{len(names)} {what}:\n{_listing(names)}" for what, names in faults if names]
        raise CheckpointError(f"{source}: the weights do not match the config.\n" + "\n".join(parts))


def _listing(lines: list[str]) -> str:
    rest = [f"and {len(lines) - _MAX_LISTED} more"] if len(lines) > _MAX_LISTED else []
    return "\n".join(f"  {one_line(line)}" for line in lines[:_MAX_LISTED] + rest)


def _names(parameter: Parameter) -> list[str]:
    """Return the names in the checkpoint, one per layer."""
    if parameter.layers is None:
        return [parameter.name]
    return [parameter.name.format(layer=layer) for layer in range(parameter.layers)]


def _leaf_shape(parameter: Parameter) -> tuple[int, ...]:
    return parameter.shape if parameter.layers is None else (parameter.layers, *parameter.shape)


def stored_shape(parameter: Parameter) -> tuple[int, ...]:
    """Return the shape in the checkpoint: a linear layer is [out, in], with heads and their width in one axis."""
    if parameter.stored is not None:
        return parameter.stored
    if not parameter.transposed:
        return parameter.shape
    inputs = int(np.prod(parameter.shape[: _input_axes(parameter)]))
    return (int(np.prod(parameter.shape)) // inputs, inputs)


def _input_axes(parameter: Parameter) -> int:
    """Return the number of leading input axes of a linear layer's shape: two if it merges heads, [H, K, D]."""
    return 2 if parameter.axes[0] == "heads" else 1


def _reorient(parameter: Parameter, tensor: np.ndarray) -> np.ndarray:
    """Return one layer's tensor in the orientation of the table."""
    if parameter.part is not None:
        outputs = slice(*parameter.part)
        tensor = tensor[outputs] if parameter.transposed else tensor[..., outputs]
    return (tensor.T if parameter.transposed else tensor).reshape(parameter.shape)


def _shape(parameter: Parameter, dtype: str) -> jax.ShapeDtypeStruct | Quantized:
    """Return the shape and dtype of a leaf.

    "int8", "fp8" and "int4" quantize the layers' matrices, but not the embedding tables. Prompts are initialized from
    embeddings and compared with them. In models that are large enough to need 8 bits, the tables are a few percent of
    the weights.
    """
    matrix = parameter.layers is not None and "embed" in parameter.axes and len(parameter.axes) > 1
    if dtype not in RANGES or not matrix:
        return jax.ShapeDtypeStruct(_leaf_shape(parameter), DTYPES[dtype])
    return jax.tree.map(
        lambda part: jax.ShapeDtypeStruct((parameter.layers, *part.shape), part.dtype),
        quantized_shape(parameter.shape, _input_axes(parameter), dtype),
    )


def _load_leaf(parameter: Parameter, tensors: Tensors, dtype: str, shardings: Shardings) -> jax.Array | Quantized:
    """Load a leaf onto the devices. Each process reads only its shards."""
    shape, sharding = _shape(parameter, dtype), _sharding(parameter, shardings)
    if sharding is None:
        everything = jax.tree.map(lambda part: (slice(None),) * len(part.shape), shape)
        return jax.device_put(_read_slice(parameter, tensors, dtype, everything))
    whole = _leaf_shape(parameter)
    over = jax.tree.map(lambda part: _sharding_of_part(sharding, part.shape, whole), shape)

    def index_on(device: Any) -> Any:
        return jax.tree.map(lambda part, each: each.addressable_devices_indices_map(part.shape)[device], shape, over)

    shards: dict[str, Any] = {}  # by index: replicated shards are read once
    placed = []
    for device in sharding.addressable_devices_indices_map(whole):
        index = index_on(device)
        if str(index) not in shards:
            shards[str(index)] = _read_slice(parameter, tensors, dtype, index)
        placed.append(jax.device_put(shards[str(index)], device))
    return jax.tree.map(
        lambda part, each, *arrays: jax.make_array_from_single_device_arrays(part.shape, each, list(arrays)),
        shape,
        over,
        *placed,
    )


def _read_slice(parameter: Parameter, tensors: Tensors, dtype: str, index: Any) -> np.ndarray | Quantized:
    """Read the part of a leaf at an index of its axes. For a quantized leaf, there are indices of values and scale."""
    names = _names(parameter)
    if parameter.layers is None:
        return np.array(_reorient(parameter, tensors[names[0]].read())[index], DTYPES[dtype])
    numbers, *within = index.values if isinstance(index, Quantized) else index
    layers = (_reorient(parameter, tensors[name].read()) for name in names[numbers])
    if isinstance(index, Quantized):
        quantized = (_quantize_slice(layer, _input_axes(parameter), dtype, index) for layer in layers)
        return _stack_layers(len(names[numbers]), quantized)
    return _stack_layers(len(names[numbers]), (layer[*within].astype(DTYPES[dtype], copy=False) for layer in layers))


def _quantize_slice(matrix: np.ndarray, inputs: int, dtype: str, index: Quantized) -> Quantized:
    """Quantize the part of a layer's matrix at an index of the leaf. A scale depends on inputs of other parts too."""
    outputs = index.values[1 + inputs :]
    quantized = quantize(matrix[(slice(None),) * inputs + outputs], inputs, dtype)
    return Quantized(quantized.values[index.values[1 : 1 + inputs]], quantized.scale[index.scale[1 : 1 + inputs]])


def _stack_layers(count: int, layers: Iterator[Any]) -> Any:
    """Stack layers into one leaf. In addition to the leaf, only one layer at a time is in memory."""
    stacked: Any = None
    for number, layer in enumerate(layers):
        if stacked is None:
            stacked = jax.tree.map(lambda leaf: np.empty((count, *leaf.shape), leaf.dtype), layer)
        for whole, leaf in zip(jax.tree.leaves(stacked), jax.tree.leaves(layer), strict=True):
            whole[number] = leaf
    return stacked


def _sharding(parameter: Parameter, sharding: Shardings) -> jax.sharding.Sharding | None:
    return sharding(parameter) if callable(sharding) else sharding


def _sharding_of_part(
    sharding: jax.sharding.Sharding, shape: tuple[int, ...], leaf: tuple[int, ...]
) -> jax.sharding.Sharding:
    """Return the sharding of a leaf for its values or scale, which have this shape.

    Where the scale has size 1, or a device's inputs are not whole groups, this axis of the scale is replicated.
    """
    if not isinstance(sharding, NamedSharding) or shape == leaf:
        return sharding
    axes = []
    for over, size in zip(sharding.spec, shape, strict=False):
        names = over if isinstance(over, tuple) else () if over is None else (over,)
        devices = math.prod(sharding.mesh.shape[name] for name in names)
        axes.append(over if size > 1 and size % devices == 0 else None)
    return NamedSharding(sharding.mesh, PartitionSpec(*axes))


def _nest(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested dicts from leaves by their paths."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return _tuples_of_layers(tree)


def _tuples_of_layers(node: Any) -> Any:
    """Replace each dict `layers` with keys "0", "1" and so on by a tuple."""
    if not isinstance(node, dict):
        return node
    return {
        key: tuple(value[str(index)] for index in range(len(value))) if key == "layers" else _tuples_of_layers(value)
        for key, value in node.items()
    }
