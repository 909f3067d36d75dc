"""Rows of a data set in a temporary file, so that a process only holds those that it uses.

In memory are the position and the size of each row. Append all rows before you read any.
"""

import functools
import os
import tempfile
import weakref
from array import array
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from prompt_jax.errors import DataError

_BLOCK = 2**20  # bytes that are written at once, and read at once where all rows are read


class RowFile:
    """A temporary file in the folder TMPDIR. It has no name and disappears when the process ends."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  # closed with this object
        weakref.finalize(self, self._file.close)
        self._buffer, self._size = bytearray(), 0

    def append(self, data: bytes) -> int:
        """Append data and return its position. Raise DataError if the disk is full."""
        position = self._size
        self._buffer += data
        self._size += len(data)
        if len(self._buffer) >= _BLOCK:
            self._flush()
        return position

    def read(self, position: int, size: int) -> bytes:
        """Return the bytes at a position. Raise DataError as `append`."""
        if self._buffer:
            self._flush()
        return os.pread(self._file.fileno(), size, position)

    def _flush(self) -> None:
        try:
            while self._buffer:
                del self._buffer[: self._file.write(self._buffer)]
        except OSError as error:
            raise DataError(
                f"{tempfile.gettempdir()}: the training examples could not be written there ({error.strerror}); "
                "set TMPDIR to a folder with enough space"
            ) from error


class _StoredRows(Sequence[Any]):
    """A column of a data set. Several columns may share a file."""

    def __init__(self, file: RowFile):
        self._file, self._positions, self._sizes = file, array("q"), array("i")

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            return [self[number] for number in range(*row.indices(len(self)))]
        return self._decode(self._file.read(self._positions[row], self._sizes[row]))

    def append(self, row: Any) -> None:
        """Add a row at the end."""
        data = self._encode(row)
        self._positions.append(self._file.append(data))
        self._sizes.append(len(data))

    def _encode(self, row: Any) -> bytes:
        raise NotImplementedError

    def _decode(self, data: bytes) -> Any:
        raise NotImplementedError


class StoredTexts(_StoredRows):
    """Texts in a file."""

    def _encode(self, row: str) -> bytes:
        return row.encode("utf-8")

    def _decode(self, data: bytes) -> str:
        return data.decode("utf-8")


class StoredTokens(_StoredRows):
    """Rows of token ids, int32 [T_i], in a file."""

    def _encode(self, row: np.ndarray) -> bytes:
        return row.astype(np.int32).tobytes()

    def _decode(self, data: bytes) -> np.ndarray:
        return np.frombuffer(data, np.int32)

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """The number of tokens of each row [N]."""
        return np.array(self._sizes, np.int32) // 4

    def blocks(self) -> Iterator[bytes]:
        """Yield the bytes of all rows in order, some rows at a time."""
        begins, ends = np.array(self._positions), np.array(self._positions) + np.array(self._sizes)
        first = 0
        while first < len(self):
            begin = int(begins[first])
            last = max(first + 1, int(np.searchsorted(ends, begin + _BLOCK)))
            data = memoryview(self._file.read(begin, int(ends[last - 1]) - begin))
            rows = zip(begins[first:last] - begin, ends[first:last] - begin, strict=True)
            yield b"".join(data[start:end] for start, end in rows)
            first = last


class Concatenated(Sequence[np.ndarray]):
    """The rows of several data sets in their order, without copies."""

    def __init__(self, parts: Sequence[Sequence[np.ndarray]]):
        self._parts = parts
        self._ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            return [self[number] for number in range(*row.indices(len(self)))]
        if not -len(self) <= row < len(self):
            raise IndexError(row)
        row %= len(self)
        part = int(np.searchsorted(self._ends, row, side="right"))
        return self._parts[part][int(row - self._ends[part])]  # counted from the part's end

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """The number of tokens of each row [N]."""
        return np.concatenate(list(map(row_lengths, self._parts)))

    def blocks(self) -> Iterator[bytes]:
        """Yield the bytes of all rows in order, some rows at a time."""
        for part in self._parts:
            yield from token_blocks(part)


def row_lengths(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Return the number of tokens of each row [N]. Rows in a file are not read."""
    if isinstance(rows, StoredTokens | Concatenated):
        return rows.lengths
    return np.array([len(row) for row in rows], np.int32)


def token_blocks(rows: Sequence[np.ndarray]) -> Iterator[bytes]:
    """Yield the bytes of all rows, int32, in order, some rows at a time."""
    if isinstance(rows, StoredTokens | Concatenated):
        yield from rows.blocks()
    else:
        yield from (np.asarray(row, np.int32).tobytes() for row in rows)
