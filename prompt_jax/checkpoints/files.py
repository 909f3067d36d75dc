"""Weight files as one table: PyTorch's parameter names to tensors that are read on demand.

safetensors and PyTorch files are read here, Flax's in `flax_msgpack`. Nothing trusts a file: no object is unpickled,
and what is truncated, misdeclared or no float tensor is a `CheckpointError`.
"""

import contextlib
import functools
import json
import math
import reprlib
import stat
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from prompt_jax.errors import CheckpointError, MissingPackage


class TensorInFile(NamedTuple):
    """A tensor in a file, in PyTorch's orientation. `read` opens it anew each time; what is used of it is read."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


Tensors = dict[str, TensorInFile]

_LARGEST_TEXT = 1 << 28  # bytes of a JSON file or a tokenizer's file; the largest known has a tenth of it

_DTYPES = {
    "float64": np.dtype(np.float64),
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


def one_line(error: BaseException | str, most: int = 300) -> str:
    """Return the message of an error as one line of limited length."""
    line = " ".join(str(error)[: 10 * most].split()) or type(error).__name__
    return line if len(line) <= most else f"{line[:most]}..."


def read_json(file: Path) -> Any:
    """The content of a JSON file of a checkpoint.

    Raises:
      CheckpointError: it is no regular file, too large, not UTF-8, not JSON, or nested too deeply.
    """
    check_text_file(file)
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is no JSON: {one_line(error)}") from error


def check_text_file(file: Path) -> None:
    """Raises a CheckpointError unless a file can be read whole: no device or pipe, not empty, and not too large."""
    try:
        status = file.stat()
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {one_line(error.strerror or error)}") from error
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(f"{file} is not a regular file")
    if status.st_size == 0:
        raise CheckpointError(f"{file} is empty")
    if status.st_size > _LARGEST_TEXT:
        raise CheckpointError(f"{file} has {status.st_size} bytes; at most {_LARGEST_TEXT} are read")


def unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, for `json.loads(object_pairs_hook=...)`, in which no name comes twice; else a ValueError."""
    values = dict(pairs)
    if len(values) < len(pairs):
        ((twice, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"{reprlib.repr(twice)} comes twice")
    return values


def float_dtype(name: str, tensor: str, file: Path) -> np.dtype:
    """The dtype of that name; a `CheckpointError` if it is not one of floats that weights are stored in."""
    if name not in _DTYPES:
        raise CheckpointError(f"{file}: {tensor} has dtype {name}; supported are {', '.join(_DTYPES)}")
    return _DTYPES[name]


def read_array(file: Path, dtype: np.dtype, count: int, offset: int) -> np.ndarray:
    """`count` elements from that byte on, flat. What is used of them is read, and in memory while the array is."""
    if count == 0:
        return np.empty(0, dtype)
    return np.memmap(file, np.uint8, "r", offset, count * dtype.itemsize).view(np.ndarray).view(dtype)


@contextlib.contextmanager
def open_safetensors(file: Path) -> Iterator[Tensors]:
    """The tensors of one safetensors file (https://github.com/huggingface/safetensors#format)."""
    from safetensors import SafetensorError, safe_open

    try:
        safe_open(file, framework="numpy")  # checks the header, and it against the file's size
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is not a whole safetensors file: {error}") from error
    with open(file, "rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(length))
    header.pop("__metadata__", None)

    names = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    tensors = {}
    for name, entry in header.items():
        dtype = names.get(entry["dtype"], entry["dtype"])
        shape, offset = tuple(entry["shape"]), 8 + length + entry["data_offsets"][0]
        tensors[name] = TensorInFile(shape, functools.partial(_read_shaped, file, name, dtype, shape, offset))
    yield tensors


def _read_shaped(file: Path, name: str, dtype: str, shape: tuple[int, ...], offset: int) -> np.ndarray:
    # The dtype is looked at now: old files of GPT-2 hold masks of others, which nobody reads.
    return read_array(file, float_dtype(dtype, name, file), math.prod(shape), offset).reshape(shape)


@contextlib.contextmanager
def open_torch(file: Path) -> Iterator[Tensors]:
    """The tensors of one PyTorch file (`pytorch_model.bin`). Needs PyTorch; loads tensors, never other objects."""
    try:
        import torch
    except ImportError as error:
        raise MissingPackage(
            f"{file} is a PyTorch file, and PyTorch is not installed. Either `pip install torch`, or use a revision "
            "of the model with model.safetensors or flax_model.msgpack, which need nothing more."
        ) from error

    try:
        # Files from before PyTorch 1.6 are not zip archives and cannot be mapped.
        mapped = zipfile.is_zipfile(file)
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # a damaged pickle can raise anything
        raise CheckpointError(
            f"{file} is not a whole PyTorch file of tensors ({type(error).__name__}): it is damaged, or holds "
            "objects of other kinds, which are not loaded"
        ) from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{file} holds a {type(state).__name__}, not a dict of tensors by name")

    tensors = {}
    for name, tensor in state.items():
        if not isinstance(tensor, torch.Tensor):
            raise CheckpointError(f"{file}: {name} is a {type(tensor).__name__}, not a tensor")
        tensors[name] = TensorInFile(tuple(tensor.shape), functools.partial(_numpy, tensor, name, file))
    yield tensors


def _numpy(tensor: Any, name: str, file: Path) -> np.ndarray:
    """A view of a PyTorch tensor; NumPy knows no bfloat16, so its bits go as integers."""
    import torch

    dtype = float_dtype(str(tensor.dtype).removeprefix("torch."), name, file)
    tensor = tensor.detach()
    return tensor.view(torch.int16).numpy().view(dtype) if dtype == ml_dtypes.bfloat16 else tensor.numpy()
