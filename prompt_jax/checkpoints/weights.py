"""From a folder of weight files to the nested parameters of a model, along the table `parameters(config)`.

Each leaf is read, cast or quantized, and placed before the next one is begun, so that host memory holds one leaf beside
what is placed. Of a leaf that is divided over devices, a process reads what its own devices have, and no more.
"""

import contextlib
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
from prompt_jax.models.quantized import Quantized, quantize

# Where leaves go: the default device, one sharding for all, or one for each row of the table.
Shardings = jax.sharding.Sharding | Callable[[Parameter], jax.sharding.Sharding] | None

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
# With "int8" it is that of what is not quantized.
DTYPES = {"float32": np.dtype(np.float32), "bfloat16": _BFLOAT16, "int8": _BFLOAT16}
_LISTED = 12  # tensors that an error names, of each kind


class Format(NamedTuple):
    """A kind of weight file. In shards, `{file}.index.json` says which tensor is in which."""

    file: str
    open: Callable[[Path], contextlib.AbstractContextManager[Tensors]]

    @property
    def index_file(self) -> str:
        return f"{self.file}.index.json"


FORMATS = (  # in the order in which they are looked for
    Format("model.safetensors", open_safetensors),
    Format("flax_model.msgpack", open_flax),
    Format("pytorch_model.bin", open_torch),
)


def shard_names(index: Path) -> list[str]:
    """The files that a shard index names. They must be plain names: an index is not trusted to lead elsewhere."""
    content = read_json(index)
    try:
        names = sorted(set(content["weight_map"].values()))
    except (LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is no shard index: it needs a 'weight_map' of tensor to file name") from error
    if not names:
        raise CheckpointError(f"{index} names no files")
    for name in names:
        if not isinstance(name, str) or name in ("", "..") or Path(name).name != name:
            raise CheckpointError(f"{index} names the file {reprlib.repr(name)}, which is not a plain file name")
    return names


@contextlib.contextmanager
def open_checkpoint(folder: Path) -> Iterator[Tensors]:
    """The tensors of a model folder, in the first format of `FORMATS` that it has."""
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
    """Reads the parameters of the table.

    Args:
      table: `parameters(config)`.
      tensors: the checkpoint; nothing may be missing or left over.
      dtype: of the result, as for `load_model`.
      sharding: where each leaf goes; None is the default device.
      source: named in errors.

    Returns:
      the nested parameters, and samples of each tensor as stored for the fingerprint.

    Raises:
      CheckpointError: lists tensors that are missing, surplus or of another shape.
    """
    check(table, tensors, source)
    samples: Samples = {}
    for parameter in table:
        for index, name in enumerate(_names(parameter)):
            samples[f"{parameter.path}[{index}]"] = sample(_ours(parameter, tensors[name].read()))
    leaves = {parameter.path: _placed(parameter, tensors, dtype, sharding) for parameter in table}
    return _nested(leaves), samples


def abstract(table: list[Parameter], dtype: str, sharding: Shardings = None) -> dict[str, Any]:
    """What `assemble` would give, as shapes with dtypes and shardings: enough to compile for, without any weights.

    Arguments as for `assemble`.
    """

    def leaf(parameter: Parameter) -> Any:
        own = _sharding(parameter, sharding)
        return jax.tree.map(
            lambda part: jax.ShapeDtypeStruct(part.shape, part.dtype, sharding=_fitting(own, part.shape)),
            _shape(parameter, dtype),
        )

    return _nested({parameter.path: leaf(parameter) for parameter in table})


def check(table: list[Parameter], tensors: Mapping[str, TensorInFile], source: str) -> None:
    """Raises a `CheckpointError` unless the tensors are exactly those of the table."""
    layers = max((parameter.layers or 0 for parameter in table), default=0)
    if layers > len(tensors):  # so that a damaged config.json cannot ask for millions of names
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
        raise CheckpointError(f"{source}: the weights are not those of the config.\n" + "\n".join(parts))


def _listing(lines: list[str]) -> str:
    rest = [f"and {len(lines) - _LISTED} more"] if len(lines) > _LISTED else []
    return "\n".join(f"  {one_line(line)}" for line in lines[:_LISTED] + rest)


def _names(parameter: Parameter) -> list[str]:
    """The names in the checkpoint, one a layer."""
    if parameter.layers is None:
        return [parameter.name]
    return [parameter.name.format(layer=layer) for layer in range(parameter.layers)]


def _leaf_shape(parameter: Parameter) -> tuple[int, ...]:
    return parameter.shape if parameter.layers is None else (parameter.layers, *parameter.shape)


def stored_shape(parameter: Parameter) -> tuple[int, ...]:
    """The shape in the checkpoint: a linear layer is [out, in], with heads and their width in one axis."""
    if parameter.stored is not None:
        return parameter.stored
    if not parameter.transposed:
        return parameter.shape
    inputs = int(np.prod(parameter.shape[: _input_axes(parameter)]))
    return (int(np.prod(parameter.shape)) // inputs, inputs)


def _input_axes(parameter: Parameter) -> int:
    """How many leading axes of a linear layer's shape are its input: two where it merges heads, [H, K, D]."""
    return 2 if parameter.axes[0] == "heads" else 1


def _ours(parameter: Parameter, tensor: np.ndarray) -> np.ndarray:
    """One layer's tensor in our orientation."""
    if parameter.third is not None:
        tensor = np.split(tensor, 3, axis=-1)[parameter.third]
    return (tensor.T if parameter.transposed else tensor).reshape(parameter.shape)


def _shape(parameter: Parameter, dtype: str) -> jax.ShapeDtypeStruct | Quantized:
    """Shape and dtype of a leaf.

    With "int8" the layers' matrices are quantized. The tables of words are not: prompts are made of embeddings and
    compared with them, and in models that are large enough to need 8 bits they are a few hundredths of the whole.
    """
    shape = _leaf_shape(parameter)
    matrix = parameter.layers is not None and "embed" in parameter.axes and len(parameter.axes) > 1
    if dtype != "int8" or not matrix:
        return jax.ShapeDtypeStruct(shape, DTYPES[dtype])
    inputs = 1 + _input_axes(parameter)  # with the layers'
    scale = shape[0], *[1] * (inputs - 1), *shape[inputs:]
    return Quantized(jax.ShapeDtypeStruct(shape, np.int8), jax.ShapeDtypeStruct(scale, np.float32))


def _placed(parameter: Parameter, tensors: Tensors, dtype: str, shardings: Shardings) -> jax.Array | Quantized:
    """A leaf on the devices; each process reads the parts of its own."""
    shape, sharding = _shape(parameter, dtype), _sharding(parameter, shardings)
    index: Any
    if sharding is None:
        return jax.device_put(_part(parameter, tensors, dtype, (slice(None),) * len(_leaf_shape(parameter))))
    parts: dict[str, Any] = {}  # by place: several devices may have the same
    placed = []
    for device, index in sharding.addressable_devices_indices_map(_leaf_shape(parameter)).items():
        if str(index) not in parts:
            parts[str(index)] = _part(parameter, tensors, dtype, index)
        placed.append(jax.device_put(parts[str(index)], device))
    return jax.tree.map(
        lambda whole, *own: jax.make_array_from_single_device_arrays(
            whole.shape, _fitting(sharding, whole.shape) or sharding, list(own)
        ),
        shape,
        *placed,
    )


def _part(parameter: Parameter, tensors: Tensors, dtype: str, index: tuple[slice, ...]) -> np.ndarray | Quantized:
    """The part of a leaf at an index of its axes."""
    names = _names(parameter)
    if parameter.layers is None:
        return np.array(_ours(parameter, tensors[names[0]].read())[index], DTYPES[dtype])
    own, within = names[index[0]], index[1:]
    layers = (_ours(parameter, tensors[name].read()) for name in own)
    if isinstance(_shape(parameter, dtype), Quantized):
        # An output's scale is of all its weights.
        inputs = _input_axes(parameter)
        outputs = (slice(None),) * inputs + within[inputs:]
        return _stacked(len(own), (_inputs(quantize(layer[outputs], inputs), within[:inputs]) for layer in layers))
    return _stacked(len(own), (layer[within].astype(DTYPES[dtype], copy=False) for layer in layers))


def _inputs(matrix: Quantized, index: tuple[slice, ...]) -> Quantized:
    """Some inputs of a matrix, whose scale is the same for all of them."""
    return Quantized(matrix.values[index], matrix.scale)


def _stacked(count: int, layers: Iterator[Any]) -> Any:
    """Layers as one leaf, of which there is never more than one besides."""
    stacked: Any = None
    for number, layer in enumerate(layers):
        if stacked is None:
            stacked = jax.tree.map(lambda leaf: np.empty((count, *leaf.shape), leaf.dtype), layer)
        for whole, leaf in zip(jax.tree.leaves(stacked), jax.tree.leaves(layer), strict=True):
            whole[number] = leaf
    return stacked


def _sharding(parameter: Parameter, sharding: Shardings) -> jax.sharding.Sharding | None:
    return sharding(parameter) if callable(sharding) else sharding


def _fitting(sharding: jax.sharding.Sharding | None, shape: tuple[int, ...]) -> jax.sharding.Sharding | None:
    """The sharding of a matrix for its scale too: there is nothing to be divided along an axis of length 1."""
    if not isinstance(sharding, NamedSharding):
        return sharding
    return NamedSharding(
        sharding.mesh,
        PartitionSpec(*[over if size > 1 else None for over, size in zip(sharding.spec, shape, strict=False)]),
    )


def _nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The leaves of paths as nested dicts."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return _stacks(tree)


def _stacks(node: Any) -> Any:
    """`layers` as a tuple of stacks, from a dict of "0", "1" and so on."""
    if not isinstance(node, dict):
        return node
    return {
        key: tuple(value[str(index)] for index in range(len(value))) if key == "layers" else _stacks(value)
        for key, value in node.items()
    }
