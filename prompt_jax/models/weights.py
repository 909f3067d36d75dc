"""From a folder of weight files to the nested parameters of a model, along the table `parameters(config)`.

Each leaf is read, cast and placed before the next one is begun, so that host memory holds the model once in its final
dtype, and one leaf more.
"""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_dtypes
import numpy as np

from prompt_jax.models.checkpoint_files import (
    CheckpointError,
    Stored,
    Tensors,
    open_safetensors,
    open_torch,
)
from prompt_jax.models.fingerprint import Samples, sample
from prompt_jax.models.flax_msgpack import open_flax
from prompt_jax.models.parameter import Parameter

# Where leaves go: the default device, one sharding for all, or one for each path ("encoder/layers/0/self/q").
Placement = jax.sharding.Sharding | Callable[[str], jax.sharding.Sharding] | None

DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
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
    try:
        weight_map = json.loads(index.read_text())["weight_map"]
        names = sorted(set(weight_map.values()))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is no shard index: it needs a 'weight_map' of tensor to file name") from error
    if not names:
        raise CheckpointError(f"{index} names no files")
    for name in names:
        if not isinstance(name, str) or name in ("", "..") or Path(name).name != name:
            raise CheckpointError(f"{index} names the file {name!r}, which is not a plain file name")
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
    table: list[Parameter], tensors: Tensors, dtype: str, placement: Placement = None, source: str = "checkpoint"
) -> tuple[dict[str, Any], Samples]:
    """Reads the parameters of the table.

    Args:
      table: `parameters(config)`.
      tensors: the checkpoint; nothing may be missing or left over.
      dtype: of the result, "float32" or "bfloat16".
      placement: where each leaf goes; None is the default device.
      source: named in errors.

    Returns:
      the nested parameters, and samples of each tensor as stored for the fingerprint.

    Raises:
      CheckpointError: lists tensors that are missing, surplus or of another shape.
    """
    check(table, tensors, source)
    tree: dict[str, Any] = {}
    samples: Samples = {}
    for parameter in table:
        leaf = np.empty(_leaf_shape(parameter), DTYPES[dtype])
        for index, name in enumerate(_names(parameter)):
            tensor = _ours(parameter, tensors[name].read())
            layer = f"{parameter.path}[{index}]"
            samples[layer] = sample(tensor)
            leaf[... if parameter.layers is None else index] = tensor
        *parents, last = parameter.path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = _place(leaf, parameter.path, placement)
    return _stacks(tree), samples


def check(table: list[Parameter], tensors: Mapping[str, Stored], source: str) -> None:
    """Raises a `CheckpointError` unless the tensors are exactly those of the table."""
    expected = {name: _stored_shape(parameter) for parameter in table for name in _names(parameter)}
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
    return "\n".join(f"  {line}" for line in lines[:_LISTED] + rest)


def _names(parameter: Parameter) -> list[str]:
    """The names in the checkpoint, one a layer."""
    if parameter.layers is None:
        return [parameter.name]
    return [parameter.name.format(layer=layer) for layer in range(parameter.layers)]


def _leaf_shape(parameter: Parameter) -> tuple[int, ...]:
    return parameter.shape if parameter.layers is None else (parameter.layers, *parameter.shape)


def _stored_shape(parameter: Parameter) -> tuple[int, ...]:
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
    return (tensor.T if parameter.transposed else tensor).reshape(parameter.shape)


def _place(leaf: np.ndarray, path: str, placement: Placement) -> jax.Array:
    sharding = placement(path) if callable(placement) else placement
    if sharding is None:
        return jax.device_put(leaf)
    # Each process places the shards that it can address; `device_put` would compare all processes' leaves.
    return jax.make_array_from_callback(leaf.shape, sharding, leaf.__getitem__)


def _stacks(node: Any) -> Any:
    """`layers` as a tuple of stacks, from a dict of "0", "1" and so on."""
    if not isinstance(node, dict):
        return node
    return {
        key: tuple(value[str(index)] for index in range(len(value))) if key == "layers" else _stacks(value)
        for key, value in node.items()
    }
