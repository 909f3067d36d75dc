"""Stacked batches of an ensemble: padding, shared streams, and exact resumption."""

import json

import numpy as np
import pytest

from prompt_jax.data.member_batches import MemberBatches
from token_rows import make, same

SHORT, LONG = [3, 5, 4, 6], [20, 30, 25, 28]


def test_each_member_gets_its_streams_batch():
    """The batches of a group are padded to the longest."""
    streams, alone = ([make(SHORT, 2), make(LONG, 2, seed=1)] for _ in range(2))
    batches = MemberBatches(streams, [[0, 1, 0], [1]])
    for _ in range(3):
        (mixed, single), expected = (group.read() for group in next(batches)), [next(stream) for stream in alone]
        assert mixed["inputs"].shape == (3, *expected[1]["inputs"].shape)
        assert same({name: leaf[0] for name, leaf in single.items()}, expected[1])
        for member, own in zip(range(3), (expected[0], expected[1], expected[0]), strict=True):
            length = own["inputs"].shape[1]
            for name in ("inputs", "inputs_mask"):
                np.testing.assert_array_equal(mixed[name][member, :, :length], own[name])
            assert not mixed["inputs_mask"][member, :, length:].any()


def test_a_part_of_a_groups_batch():
    """It is padded like the whole batch, and rows of other parts are not read."""
    streams = [make(SHORT, 2), make(LONG, 2, seed=1)]
    batch = next(MemberBatches(streams, [[0, 1, 0]]))[0]
    whole = batch.read()
    assert batch.shape == (3, 2)
    assert batch.tokens == (whole["inputs_mask"].sum((1, 2)) + whole["target_mask"].sum((1, 2))).tolist()
    for members, rows in ((slice(0, 1), slice(1, 2)), (slice(1, 3), slice(0, 1)), (slice(2, 3), slice(None))):
        part = batch.read(members, rows)
        assert same(part, {name: array[members, rows] for name, array in whole.items()})
    streams[1]._examples.inputs.clear()
    with pytest.raises(IndexError):
        batch.read(slice(1, 2))
    assert same(batch.read(slice(0, 1)), {name: array[:1] for name, array in whole.items()})


def test_they_resume_exactly():
    batches, resumed = (MemberBatches([make(SHORT, 2), make(LONG, 2)], [[0], [1, 1]]) for _ in range(2))
    next(batches)
    resumed.seek(json.loads(json.dumps(batches.position)))
    for one, other in zip(next(batches), next(resumed), strict=True):
        assert same(one.read(), other.read())
    with pytest.raises(ValueError, match="expected the positions of 2 streams, not 1"):
        batches.seek({"streams": [{}]})


def test_the_fingerprint_is_of_examples_and_members():
    streams = [make(SHORT, 2), make(LONG, 2)]
    prints = {MemberBatches(streams, groups).fingerprint for groups in ([[0, 1]], [[0], [1]], [[1, 0]], [[0, 0]])}
    assert len(prints) == 4
    assert MemberBatches([make(SHORT, 2), make(LONG, 2)], [[0, 1]]).fingerprint in prints
