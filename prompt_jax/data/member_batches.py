"""Batches of an ensemble: its members' batches, stacked along a leading axis."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from prompt_jax.data.batches import Batch, TrainBatches


class MemberBatches(Iterator[tuple[Batch, ...]]):
    """One batch [E, B, ...] for each group of members that train in one compiled step.

    Members that train on the same rows in the same order share a stream, whose batches are built once. If the members
    of a group have batches of different lengths, as members with different tasks may, the shorter ones are padded.
    """

    def __init__(self, streams: Sequence[TrainBatches], groups: Sequence[Sequence[int]]):
        """`groups` has, for each group, the stream index of each of its members."""
        self._streams, self._groups = streams, groups

    @property
    def fingerprint(self) -> str:
        """A hash of all streams' examples and of each member's stream."""
        parts = [[self._streams[stream].fingerprint for stream in group] for group in self._groups]
        return f"sha256:{hashlib.sha256(repr(parts).encode()).hexdigest()}"

    @property
    def position(self) -> dict[str, Any]:
        """The position of the next batches, as JSON values for `seek`."""
        return {"streams": [stream.position for stream in self._streams]}

    def seek(self, position: Mapping[str, Any]) -> None:
        """Move to a position. Raises as `TrainBatches.seek`."""
        positions = position.get("streams", [])
        if len(positions) != len(self._streams):
            raise ValueError(f"expected the positions of {len(self._streams)} streams, not {len(positions)}")
        for stream, each in zip(self._streams, positions, strict=True):
            stream.seek(each)

    def __next__(self) -> tuple[Batch, ...]:
        batches = [next(stream) for stream in self._streams]
        return tuple(_stack([batches[stream] for stream in group]) for group in self._groups)


def _stack(batches: Sequence[Batch]) -> Batch:
    """Stack batches [B, ...] into [E, B, ...], padded to the longest. Padding is masked, so it may hold any id."""
    stacked = {}
    for name in batches[0]:
        arrays = [batch[name] for batch in batches]
        longest = max(array.shape[-1] for array in arrays)
        widths = [[(0, 0)] * (array.ndim - 1) + [(0, longest - array.shape[-1])] for array in arrays]
        stacked[name] = np.stack([np.pad(array, width) for array, width in zip(arrays, widths, strict=True)])
    return stacked
