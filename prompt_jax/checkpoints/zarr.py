"""Arrays in zarr's format, version 2, as T5X writes them: floats, uncompressed or compressed by gzip.

Format: https://zarr-specs.readthedocs.io/en/latest/v2/v2.0.html. Files may come from strangers: links are not followed,
and sizes are compared before memory is allocated.
"""

import functools
import json
import math
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from prompt_jax.checkpoints.files import TensorInFile, float_dtype, unique_names
from prompt_jax.errors import CheckpointError

_MAX_METADATA = 1 << 16  # bytes of a .zarray, which has about 200
_MAX_AXES = 8
_MAX_SIZE = 1 << 40  # of an axis
_MAX_RATIO = 100  # of an array's bytes to its files' bytes, for arrays that cannot be constant: weights hardly compress
_MAY_BE_CONSTANT = 1 << 26  # bytes
_PIECE = 1 << 20  # bytes to decompress at a time


def open_zarr(folder: Path) -> TensorInFile:
    """An array of zarr, version 2, in floats, uncompressed or by gzip, as T5X writes it."""
    file = folder / ".zarray"
    if folder.is_symlink() or file.is_symlink():
        raise CheckpointError(f"{folder} is a symbolic link or has one, which is not followed; copy the files")
    if not file.is_file():
        raise CheckpointError(f"{folder} has no .zarray, which says what is in it")
    with file.open("rb") as opened:
        text = opened.read(_MAX_METADATA + 1)
    try:
        said = json.loads(text, object_pairs_hook=unique_names) if len(text) <= _MAX_METADATA else None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is no JSON: {error}") from error
    if not isinstance(said, dict):
        raise CheckpointError(f"{file} is no JSON object of at most {_MAX_METADATA} bytes")
    shape, chunks = (_sizes(file, said, name) for name in ("shape", "chunks"))
    if len(chunks) != len(shape) or any(chunk > size for chunk, size in zip(chunks, shape, strict=True)):
        raise CheckpointError(f"{file}: chunks of {list(chunks)} are not those of an array {list(shape)}")
    compressor = said.get("compressor")
    compressed = isinstance(compressor, dict) and compressor.get("id") == "gzip"
    if not compressed and compressor is not None:
        raise CheckpointError(f"{file}: compressor {compressor!r:.80}; T5X has gzip")
    expected = {"zarr_format": 2, "order": "C", "filters": None, "dimension_separator": "."}
    for name, value in expected.items():
        if said.get(name, value) != value:
            raise CheckpointError(f"{file}: {name} is {said[name]!r:.80}; T5X has {value!r}")
    stored = said.get("dtype")
    if not isinstance(stored, str) or not re.fullmatch(r"<f[248]|bfloat16", stored):
        raise CheckpointError(f"{file}: dtype {stored!r:.80}; weights are <f2, <f4, <f8 or bfloat16")
    dtype = float_dtype(stored if stored == "bfloat16" else np.dtype(stored).name, folder.name, file)
    _check_bytes(folder, shape, chunks, dtype, compressed)
    return TensorInFile(shape, functools.partial(_read_zarr, folder, shape, chunks, dtype, compressed))


def _sizes(file: Path, said: dict[str, Any], name: str) -> tuple[int, ...]:
    sizes: Any = said.get(name)
    few = isinstance(sizes, list) and len(sizes) <= _MAX_AXES
    if few and all(type(size) is int and 0 < size <= _MAX_SIZE for size in sizes):
        return tuple(sizes)
    raise CheckpointError(f"{file}: {name} is no list of at most {_MAX_AXES} sizes from 1 to {_MAX_SIZE}")


def _chunk_files(folder: Path, shape: tuple[int, ...], chunks: tuple[int, ...]) -> Iterator[Path]:
    counts = [-(-size // chunk) for size, chunk in zip(shape, chunks, strict=True)]
    return (folder / (".".join(map(str, index)) or "0") for index in np.ndindex(*counts))


def _check_bytes(
    folder: Path, shape: tuple[int, ...], chunks: tuple[int, ...], dtype: np.dtype, compressed: bool
) -> None:
    """That all chunks are there, as files of a plausible size: one that is missing would be read as zeros."""
    sizes = {path.name: path.lstat().st_size for path in folder.iterdir() if path.is_file() and not path.is_symlink()}
    if math.prod(-(-size // chunk) for size, chunk in zip(shape, chunks, strict=True)) > len(sizes):
        raise CheckpointError(f"{folder}: chunks are missing; {list(shape)} has more of {list(chunks)} than are there")
    there, chunk_bytes = 0, math.prod(chunks) * dtype.itemsize
    for path in _chunk_files(folder, shape, chunks):
        if path.name not in sizes:
            raise CheckpointError(f"{path} is missing, or no file of its own")
        if not compressed and sizes[path.name] != chunk_bytes:
            raise CheckpointError(f"{path} has {sizes[path.name]} bytes; {list(chunks)} of {dtype} is {chunk_bytes}")
        there += sizes[path.name]
    claimed = math.prod(shape) * dtype.itemsize
    if claimed > _MAX_RATIO * there + _MAY_BE_CONSTANT:
        raise CheckpointError(f"{folder}: {list(shape)} of {dtype} is {claimed} bytes, and its files have {there}")


def _read_zarr(
    folder: Path, shape: tuple[int, ...], chunks: tuple[int, ...], dtype: np.dtype, compressed: bool
) -> np.ndarray:
    import tensorstore

    if compressed:
        # TensorStore unpacks a chunk, however large it grows, before it looks at its size.
        for path in _chunk_files(folder, shape, chunks):
            _check_gzip(path, math.prod(chunks) * dtype.itemsize)
    try:
        spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": f"{folder.resolve()}/"}}
        array = tensorstore.open(spec, open=True, read=True).result().read().result()
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{folder} cannot be read: {error}") from error
    if array.shape != shape or array.dtype != dtype:
        raise CheckpointError(f"{folder} has become {array.dtype} {list(array.shape)} while it was read")
    return check_finite(array, str(folder))


def _check_gzip(path: Path, size: int) -> None:
    """That a chunk unpacks to so many bytes, without keeping them."""
    unpacked, unpacking = 0, zlib.decompressobj(wbits=31)
    try:
        with path.open("rb") as file:
            while not unpacking.eof and (packed := unpacking.unconsumed_tail or file.read(_PIECE)):
                unpacked += len(unpacking.decompress(packed, _PIECE))
                if unpacked > size:
                    break
            surplus = unpacking.unused_data or file.read(1)
    except zlib.error as error:
        raise CheckpointError(f"{path} is no whole gzip: {error}") from error
    if unpacked != size or not unpacking.eof or surplus:
        raise CheckpointError(f"{path} does not unpack to the {size} bytes that a chunk has")


def check_finite(array: np.ndarray, where: str) -> np.ndarray:
    if not np.isfinite(array).all():
        raise CheckpointError(f"{where:.300} has {int((~np.isfinite(array)).sum())} values that are not finite")
    return array
