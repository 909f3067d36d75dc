"""Weight files as tables from PyTorch's parameter names to tensors that are read on demand.

This module reads safetensors and PyTorch files, `flax_msgpack` Flax's. Files are not trusted: no object is unpickled,
and a tensor that is truncated, declared wrongly or not of floats raises CheckpointError.
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
    """A tensor in a file, in PyTorch's orientation. Each `read` maps the file; only accessed parts are read."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


Tensors = dict[str, TensorInFile]

_MAX_TEXT = 1 << 28  # bytes of a JSON file or a tokenizer's file; ten times the largest known

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
    """Return the content of a JSON file.

    Raises:
      CheckpointError: not a regular file, too large, not UTF-8, not JSON, or nested too deeply.
    """
    check_text_file(file)
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is not JSON: {one_line(error)}") from error


def check_text_file(file: Path) -> None:
    """Raise CheckpointError unless a file is a regular file, not empty, and not too large to be read whole."""
    try:
        status = file.stat()
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {one_line(error.strerror or error)}") from error
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(f"{file} is not a regular file")
    if status.st_size == 0:
        raise CheckpointError(f"{file} is empty")
    if status.st_size > _MAX_TEXT:
        raise CheckpointError(f"{file} has {status.st_size} bytes; at most {_MAX_TEXT} are read")


def unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object, for `json.loads(object_pairs_hook=...)`. Raises ValueError for duplicate names."""
    values = dict(pairs)
    if len(values) < len(pairs):
        ((twice, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"{reprlib.repr(twice)} comes twice")
    return values


def float_dtype(name: str, tensor: str, file: Path) -> np.dtype:
    """Return the dtype of that name. Raises CheckpointError unless it is a supported float dtype."""
    if name not in _DTYPES:
        raise CheckpointError(f"{file}: {tensor} has dtype {name}; supported are {', '.join(_DTYPES)}")
    return _DTYPES[name]


def read_array(file: Path, dtype: np.dtype, count: int, offset: int) -> np.ndarray:
    """Return `count` elements from that byte offset, flat and memory-mapped: only accessed parts are read."""
    if count == 0:
        return np.empty(0, dtype)
    return np.memmap(file, np.uint8, "r", offset, count * dtype.itemsize).view(np.ndarray).view(dtype)


@contextlib.contextmanager
def open_safetensors(file: Path) -> Iterator[Tensors]:
    """Yield the tensors of a safetensors file (https://github.com/huggingface/safetensors#format)."""
    from safetensors import SafetensorError, safe_open

    try:
        safe_open(file, framework="numpy")  # checks the header and the file's size
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is not a complete safetensors file: {error}") from error
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
    # Check the dtype only here: old GPT-2 files contain masks of other dtypes, which are never read.
    return read_array(file, float_dtype(dtype, name, file), math.prod(shape), offset).reshape(shape)


@contextlib.contextmanager
def open_torch(file: Path) -> Iterator[Tensors]:
    """Yield the tensors of a PyTorch file (`pytorch_model.bin`). Needs PyTorch; loads only tensors."""
    try:
        import torch
    except ImportError as error:
        raise MissingPackage(
            f"{file} is a PyTorch file, and PyTorch is not installed. Either `pip install torch`, or use a revision "
            "of the model with model.safetensors or flax_model.msgpack, which do not need PyTorch."
        ) from error

    try:
        # Files from before PyTorch 1.6 are not zip archives and cannot be mapped.
        mapped = zipfile.is_zipfile(file)
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # a damaged pickle can raise anything
        raise CheckpointError(
            f"{file} is not a complete PyTorch file of tensors ({type(error).__name__}): it is damaged, or contains "
            "other objects, which are not loaded"
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
    """Return a view of a PyTorch tensor. bfloat16 passes as integers, because NumPy lacks it."""
    import torch

    dtype = float_dtype(str(tensor.dtype).removeprefix("torch."), name, file)
    tensor = tensor.detach()
    return tensor.view(torch.int16).numpy().view(dtype) if dtype == ml_dtypes.bfloat16 else tensor.numpy()
