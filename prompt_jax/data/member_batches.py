"""Batches of an ensemble: its members' batches, stacked along a leading axis."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from prompt_jax.data.batches import Batch, BatchPlan, TrainBatches


class GroupBatch:
    """A training batch [E, B, ...] of a group of members, whose rows are not read yet.

    If the members have batches of different lengths, as members with different tasks may, the shorter ones are padded.

    Attributes:
      shape: (E, B).
      tokens: the number of unmasked input and target tokens of each member [E].
    """

    def __init__(self, plans: Sequence[BatchPlan]):
        """`plans` has the batch of each member."""
        lengths = {name: max(getattr(plan, name) for plan in plans) for name in ("input_length", "target_length")}
        self._plans = [plan._replace(**lengths) for plan in plans]
        self.shape = len(plans), len(plans[0].rows)
        self.tokens = [plan.tokens for plan in plans]

    def read(self, members: slice = slice(None), rows: slice = slice(None)) -> Batch:
        """Return the batch, or the part of it of some members and rows. Only reads these rows."""
        plans = self._plans[members]
        # Members that share a stream have the same rows.
        batches = {id(plan.batches): plan for plan in plans}
        read = {stream: plan.read(rows) for stream, plan in batches.items()}
        return {name: np.stack([read[id(plan.batches)][name] for plan in plans]) for name in next(iter(read.values()))}


class MemberBatches(Iterator[tuple[GroupBatch, ...]]):
    """One batch [E, B, ...] for each group of members that train in one compiled step.

    Members that train on the same rows in the same order share a stream.
    """

    def __init__(self, streams: Sequence[TrainBatches], groups: Sequence[Sequence[int]]):
        """`groups` has, for each group, the stream index of each of its members."""
        self._streams, self._groups = streams, groups

    @property
    def fingerprint(self) -> str:
        """A hash of all streams' examples and of each member's stream."""
        of_streams = [stream.fingerprint for stream in self._streams]
        parts = [[of_streams[stream] for stream in group] for group in self._groups]
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

    def __next__(self) -> tuple[GroupBatch, ...]:
        plans = [stream.next_plan() for stream in self._streams]
        return tuple(GroupBatch([plans[stream] for stream in group]) for group in self._groups)
