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
_MAX_SIZE = 1 << 40  # the maximum length of an axis
_MAX_RATIO = 100  # of array bytes to file bytes, for arrays above _MAY_BE_CONSTANT: weights hardly compress
_MAY_BE_CONSTANT = 1 << 26  # bytes
_PIECE = 1 << 20  # bytes to decompress at a time


def open_zarr(folder: Path) -> TensorInFile:
    """Return the array of a folder, after checking its metadata and the sizes of its files.

    Raises:
      CheckpointError: a damaged or incomplete array, or one that T5X would not write.
    """
    file = folder / ".zarray"
    if folder.is_symlink() or file.is_symlink():
        raise CheckpointError(f"{folder} is or contains a symbolic link, which is not followed; copy the files")
    if not file.is_file():
        raise CheckpointError(f"{folder} has no .zarray, which describes an array")
    with file.open("rb") as opened:
        text = opened.read(_MAX_METADATA + 1)
    try:
        metadata = json.loads(text, object_pairs_hook=unique_names) if len(text) <= _MAX_METADATA else None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is not JSON: {error}") from error
    if not isinstance(metadata, dict):
        raise CheckpointError(f"{file} is not a JSON object of at most {_MAX_METADATA} bytes")
    shape, chunks = (_sizes(file, metadata, name) for name in ("shape", "chunks"))
    if len(chunks) != len(shape) or any(chunk > size for chunk, size in zip(chunks, shape, strict=True)):
        raise CheckpointError(f"{file}: chunks of {list(chunks)} do not fit an array {list(shape)}")
    compressor = metadata.get("compressor")
    compressed = isinstance(compressor, dict) and compressor.get("id") == "gzip"
    if not compressed and compressor is not None:
        raise CheckpointError(f"{file}: compressor {compressor!r:.80}; T5X uses gzip")
    expected = {"zarr_format": 2, "order": "C", "filters": None, "dimension_separator": "."}
    for name, value in expected.items():
        if metadata.get(name, value) != value:
            raise CheckpointError(f"{file}: {name} is {metadata[name]!r:.80}; T5X uses {value!r}")
    stored = metadata.get("dtype")
    if not isinstance(stored, str) or not re.fullmatch(r"<f[248]|bfloat16", stored):
        raise CheckpointError(f"{file}: dtype {stored!r:.80}; weights are <f2, <f4, <f8 or bfloat16")
    dtype = float_dtype(stored if stored == "bfloat16" else np.dtype(stored).name, folder.name, file)
    _check_bytes(folder, shape, chunks, dtype, compressed)
    return TensorInFile(shape, functools.partial(_read_zarr, folder, shape, chunks, dtype, compressed))


def _sizes(file: Path, metadata: dict[str, Any], name: str) -> tuple[int, ...]:
    sizes: Any = metadata.get(name)
    few = isinstance(sizes, list) and len(sizes) <= _MAX_AXES
    if few and all(type(size) is int and 0 < size <= _MAX_SIZE for size in sizes):
        return tuple(sizes)
    raise CheckpointError(f"{file}: {name} is not a list of at most {_MAX_AXES} sizes from 1 to {_MAX_SIZE}")


def _chunk_files(folder: Path, shape: tuple[int, ...], chunks: tuple[int, ...]) -> Iterator[Path]:
    counts = [-(-size // chunk) for size, chunk in zip(shape, chunks, strict=True)]
    return (folder / (".".join(map(str, index)) or "0") for index in np.ndindex(*counts))


def _check_bytes(
    folder: Path, shape: tuple[int, ...], chunks: tuple[int, ...], dtype: np.dtype, compressed: bool
) -> None:
    """Check that all chunks are files of a plausible size. TensorStore would read a missing one as zeros."""
    sizes = {path.name: path.lstat().st_size for path in folder.iterdir() if path.is_file() and not path.is_symlink()}
    if math.prod(-(-size // chunk) for size, chunk in zip(shape, chunks, strict=True)) > len(sizes):
        raise CheckpointError(
            f"{folder}: chunks are missing; {list(shape)} needs more of {list(chunks)} than there are"
        )
    stored_bytes, chunk_bytes = 0, math.prod(chunks) * dtype.itemsize
    for path in _chunk_files(folder, shape, chunks):
        if path.name not in sizes:
            raise CheckpointError(f"{path} is missing, or not a regular file")
        if not compressed and sizes[path.name] != chunk_bytes:
            raise CheckpointError(f"{path} has {sizes[path.name]} bytes; {list(chunks)} of {dtype} is {chunk_bytes}")
        stored_bytes += sizes[path.name]
    claimed = math.prod(shape) * dtype.itemsize
    if claimed > _MAX_RATIO * stored_bytes + _MAY_BE_CONSTANT:
        raise CheckpointError(
            f"{folder}: {list(shape)} of {dtype} is {claimed} bytes, and its files have {stored_bytes}"
        )


def _read_zarr(
    folder: Path, shape: tuple[int, ...], chunks: tuple[int, ...], dtype: np.dtype, compressed: bool
) -> np.ndarray:
    import tensorstore

    if compressed:
        # TensorStore decompresses a whole chunk before it checks its size.
        for path in _chunk_files(folder, shape, chunks):
            _check_gzip(path, math.prod(chunks) * dtype.itemsize)
    try:
        spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": f"{folder.resolve()}/"}}
        array = tensorstore.open(spec, open=True, read=True).result().read().result()
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{folder} cannot be read: {error}") from error
    if array.shape != shape or array.dtype != dtype:
        raise CheckpointError(f"{folder} changed to {array.dtype} {list(array.shape)} while it was read")
    return check_finite(array, str(folder))


def _check_gzip(path: Path, size: int) -> None:
    """Check that a chunk decompresses to exactly that many bytes, without keeping them."""
    unpacked, unpacking = 0, zlib.decompressobj(wbits=31)
    try:
        with path.open("rb") as file:
            while not unpacking.eof and (packed := unpacking.unconsumed_tail or file.read(_PIECE)):
                unpacked += len(unpacking.decompress(packed, _PIECE))
                if unpacked > size:
                    break
            surplus = unpacking.unused_data or file.read(1)
    except zlib.error as error:
        raise CheckpointError(f"{path} is not a complete gzip file: {error}") from error
    if unpacked != size or not unpacking.eof or surplus:
        raise CheckpointError(f"{path} does not decompress to the {size} bytes of a chunk")


def check_finite(array: np.ndarray, where: str) -> np.ndarray:
    """Return the array. Raises CheckpointError, which names `where`, unless all values are finite."""
    if not np.isfinite(array).all():
        raise CheckpointError(f"{where:.300} has {int((~np.isfinite(array)).sum())} values that are not finite")
    return array
