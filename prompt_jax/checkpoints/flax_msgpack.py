"""Flax's msgpack checkpoints, read without loading them into memory.

`flax.serialization.msgpack_restore` loads the whole file and then the whole tree. Here the file is mapped and its
structure is walked. Array data is skipped, and read in place on demand. The encoding is nested maps.
An array is extension type 1 and contains msgpack of (shape, dtype name, bytes); arrays above 1 GiB are in chunks. See
`flax/serialization.py` and https://github.com/msgpack/msgpack/blob/master/spec.md.
"""

import contextlib
import dataclasses
import functools
import math
import mmap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from prompt_jax.checkpoints.files import TensorInFile, Tensors, float_dtype, read_array
from prompt_jax.errors import CheckpointError


@contextlib.contextmanager
def open_flax(file: Path) -> Iterator[Tensors]:
    """Yield the tensors of a file written by `flax.serialization`, under PyTorch's names and in its orientation."""
    tensors: Tensors = {}
    for path, array in flax_arrays(file).items():
        *modules, leaf = path.split("/")
        name = ".".join([*modules, "weight" if leaf in ("kernel", "embedding", "scale") else leaf])
        if name in tensors:
            raise CheckpointError(f"{file}: {path} occurs twice")
        if leaf != "kernel":
            tensors[name] = array.stored(file)
        elif len(array.shape) == 2:  # [in, out]; PyTorch has [out, in]
            tensors[name] = TensorInFile(array.shape[::-1], functools.partial(_read_transposed, array, file))
        else:
            raise CheckpointError(f"{file}: {path} has shape {list(array.shape)}; a kernel has two axes")
    yield tensors


def flax_arrays(file: Path) -> dict[str, "FlaxArray"]:
    """Return the arrays of a file by their paths. The file must contain nothing else."""
    return _walked(file, _Walk.arrays)


def flax_part(file: Path, below: Sequence[str], marker: str) -> tuple[dict[str, "FlaxArray"], set[str]]:
    """Return the arrays of a part of a file by their paths in it, and the paths of maps that have the key `marker`.

    Args:
      below: the keys that lead to the part. Everything outside the part, and everything in it but arrays, is skipped.
      marker: a key that identifies maps that represent an array.
    """
    return _walked(file, lambda walk: walk.marked(below, marker))


def _walked(file: Path, walk: Callable[["_Walk"], Any]) -> Any:
    with open(file, "rb") as opened:
        try:
            mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as error:  # raised only for empty files
            raise CheckpointError(f"{file} is empty") from error
    with mapped, memoryview(mapped) as data:
        return walk(_Walk(data, file))


def _read_transposed(array: "FlaxArray", file: Path) -> np.ndarray:
    return array.read(file).T


class FlaxArray(NamedTuple):
    """The location of an array in the file, in one or several pieces."""

    shape: tuple[int, ...]
    dtype: np.dtype
    pieces: tuple[tuple[int, int], ...]  # offset, number of elements

    def read(self, file: Path) -> np.ndarray:
        flat = [read_array(file, self.dtype, count, offset) for offset, count in self.pieces]
        return (flat[0] if len(flat) == 1 else np.concatenate(flat)).reshape(self.shape)

    def stored(self, file: Path) -> TensorInFile:
        return TensorInFile(self.shape, functools.partial(self.read, file))


_CHUNKED = "__msgpack_chunked_array__"
_MAX_DEPTH = 32  # a model's maps are nested about eight deep
_MAX_AXES = 8
_MAX_OBJECTS = 1 << 20  # numbers, names, maps and arrays; about ten per tensor

# An object's first byte -> its kind, and the number of bytes that follow with its size (for an integer, its value).
_HEADERS = {
    0xC0: ("nil", 0), 0xC2: ("bool", 0), 0xC3: ("bool", 0),
    0xC4: ("bytes", 1), 0xC5: ("bytes", 2), 0xC6: ("bytes", 4),
    0xC7: ("ext", 1), 0xC8: ("ext", 2), 0xC9: ("ext", 4),
    0xCA: ("float", 4), 0xCB: ("float", 8),
    0xCC: ("int", 1), 0xCD: ("int", 2), 0xCE: ("int", 4), 0xCF: ("int", 8),
    0xD0: ("signed", 1), 0xD1: ("signed", 2), 0xD2: ("signed", 4), 0xD3: ("signed", 8),
    0xD9: ("bytes", 1), 0xDA: ("bytes", 2), 0xDB: ("bytes", 4),
    0xDC: ("array", 2), 0xDD: ("array", 4),
    0xDE: ("map", 2), 0xDF: ("map", 4),
}  # fmt: skip


@dataclasses.dataclass
class _Walk:
    """A walk over a file's structure; `at` is the offset of the next object."""

    data: memoryview
    file: Path
    at: int = 0
    objects: int = 0
    marker: str | None = None  # if given, skip everything but arrays, and look for this key
    places: set[str] = dataclasses.field(default_factory=set)  # the paths of maps with the marker

    def arrays(self) -> dict[str, FlaxArray]:
        """Return every array of the file by its path."""
        arrays: dict[str, FlaxArray] = {}
        self.tree((), arrays)
        self.end()
        return arrays

    def marked(self, below: Sequence[str], marker: str) -> tuple[dict[str, FlaxArray], set[str]]:
        """See `flax_part`."""
        arrays: dict[str, FlaxArray] = {}
        self.marker = marker
        self.part(below, arrays)
        self.end()
        return arrays, self.places

    def end(self) -> None:
        if self.at != len(self.data):
            raise self.error("unexpected data after the parameters")

    def part(self, below: Sequence[str], arrays: dict[str, FlaxArray]) -> None:
        """Follow the keys from the next object, and add the arrays there to `arrays`."""
        if not below:
            return self.tree((), arrays)
        for key in self.keys(self.expect("map")):
            if key == below[0]:
                self.part(below[1:], arrays)
            else:
                self.skip()

    def keys(self, count: int) -> Iterator[str]:
        """Yield the keys of a map. The caller reads each value before the next key. Duplicate keys are an error."""
        seen = set()
        for _ in range(count):
            key = self.text()
            if key in seen:
                raise self.error(f"'{key:.80}' occurs twice")
            seen.add(key)
            yield key

    def skip(self) -> None:
        """Skip the next object."""
        left = 1
        while left:
            kind, size = self.header()
            left += {"array": size, "map": 2 * size}.get(kind, 0) - 1
            if kind in ("bytes", "ext"):
                self.take(size + (kind == "ext"))

    def tree(self, path: tuple[str, ...], arrays: dict[str, FlaxArray]) -> None:
        """Add the arrays at and below this path to `arrays`."""
        before = self.at
        kind, size = self.header()
        where = "/".join(path)
        if kind == "ext":
            arrays[where] = self.array(size, where)
        elif self.marker is not None and kind != "map":
            self.at = before
            self.skip()
        elif kind != "map" or len(path) == _MAX_DEPTH:
            raise self.error(f"'{where:.80}' should be an array or a map of arrays; it is of kind {kind}")
        else:
            for index, key in enumerate(self.keys(size)):
                if index == 0 and key == _CHUNKED:
                    arrays[where] = self.chunked(size, where)
                    return
                if key == self.marker:
                    self.places.add(where)
                self.tree((*path, key), arrays)

    def array(self, size: int, where: str) -> FlaxArray:
        """Read an array after its extension header."""
        code = self.take(1)[0]
        end = self.at + size
        if code != 1 or self.expect("array") != 3:
            raise self.error(f"'{where:.80}' is no array (extension type {code}; an array has 1)")
        axes = self.expect("array")
        if axes > _MAX_AXES:
            raise self.error(f"'{where:.80}' has {axes} axes; a tensor has at most {_MAX_AXES}")
        shape = tuple(self.expect("int") for _ in range(axes))
        dtype = float_dtype(self.text(), where, self.file)
        size, count = self.expect("bytes"), math.prod(shape)
        pieces = ((self.at, count),)
        self.take(size)
        if size != count * dtype.itemsize or self.at != end:
            raise self.error(f"'{where:.80}' has {size} bytes; {list(shape)} of {dtype} is {count * dtype.itemsize}")
        return FlaxArray(shape, dtype, pieces)

    def chunked(self, entries: int, where: str) -> FlaxArray:
        """Read {"shape": {"0": n, ...}, "chunks": {"0": array, ...}}, an array in chunks, after the marker."""
        if entries != 3:
            raise self.error(f"the chunked array '{where:.80}' has {entries} entries; 3 were expected")
        self.expect("bool")
        shape = self.numbered("shape", lambda: self.expect("int"))
        if len(shape) > _MAX_AXES:
            raise self.error(f"'{where:.80}' has {len(shape)} axes; a tensor has at most {_MAX_AXES}")
        chunks = self.numbered("chunks", lambda: self.array(self.expect("ext"), where))
        pieces = tuple(piece for chunk in chunks for piece in chunk.pieces)
        dtypes = {chunk.dtype for chunk in chunks}
        if len(dtypes) != 1 or sum(count for _, count in pieces) != math.prod(shape):
            raise self.error(f"the chunks of '{where:.80}' do not make up its shape {list(shape)}")
        return FlaxArray(tuple(shape), dtypes.pop(), pieces)

    def numbered(self, name: str, item: Callable[[], Any]) -> list[Any]:
        """Read the items of `name: {"0": item, "1": item, ...}`, in any order."""
        actual_name = self.text()
        items = {}
        for _ in range(self.expect("map")):
            key = self.text()
            items[key] = item()
        keys = [str(index) for index in range(len(items))]
        if actual_name != name or set(keys) != set(items):
            raise self.error(f"a chunked array has '{actual_name}' with {sorted(items)}; '{name}' was expected")
        return [items[key] for key in keys]

    def expect(self, kind: str) -> int:
        """Return the size or value of the next object. Raise an error if it has another kind."""
        actual, size = self.header()
        if actual != kind:
            raise self.error(f"expected {kind}, found {actual}")
        return size

    def text(self) -> str:
        try:
            return str(self.take(self.expect("bytes")), "utf-8")
        except UnicodeDecodeError as error:
            raise self.error("a name is not UTF-8") from error

    def header(self) -> tuple[str, int]:
        """Return the kind of the next object, and its size in bytes or items, or its value."""
        self.objects += 1
        if self.objects > _MAX_OBJECTS:
            raise self.error(f"a model has at most {_MAX_OBJECTS} objects")
        first = self.take(1)[0]
        if first < 0x80:
            return "int", first
        if first >= 0xE0:
            return "signed", first
        if first < 0xC0:
            kind = ("map", "array", "bytes", "bytes")[(first - 0x80) >> 4]
            return kind, first & (0x1F if kind == "bytes" else 0x0F)
        if 0xD4 <= first <= 0xD8:
            return "ext", 1 << (first - 0xD4)
        if first not in _HEADERS:
            raise self.error(f"Flax writes no object that begins with byte {first:#x}")
        kind, width = _HEADERS[first]
        return kind, int.from_bytes(self.take(width), "big")

    def take(self, size: int) -> memoryview:
        """Return the next bytes."""
        if self.at + size > len(self.data):
            raise self.error(f"{size} bytes are missing")
        self.at += size
        return self.data[self.at - size : self.at]

    def error(self, message: str) -> CheckpointError:
        return CheckpointError(f"{self.file} is not a complete Flax checkpoint: {message} (at byte {self.at})")
