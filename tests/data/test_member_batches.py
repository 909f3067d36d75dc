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
        (mixed, single), expected = next(batches), [next(stream) for stream in alone]
        assert mixed["inputs"].shape == (3, *expected[1]["inputs"].shape)
        assert same({name: leaf[0] for name, leaf in single.items()}, expected[1])
        for member, own in zip(range(3), (expected[0], expected[1], expected[0]), strict=True):
            length = own["inputs"].shape[1]
            for name in ("inputs", "inputs_mask"):
                np.testing.assert_array_equal(mixed[name][member, :, :length], own[name])
            assert not mixed["inputs_mask"][member, :, length:].any()


def test_they_resume_exactly():
    batches, resumed = (MemberBatches([make(SHORT, 2), make(LONG, 2)], [[0], [1, 1]]) for _ in range(2))
    next(batches)
    resumed.seek(json.loads(json.dumps(batches.position)))
    for one, other in zip(next(batches), next(resumed), strict=True):
        assert same(one, other)
    with pytest.raises(ValueError, match="expected the positions of 2 streams, not 1"):
        batches.seek({"streams": [{}]})


def test_the_fingerprint_is_of_examples_and_members():
    streams = [make(SHORT, 2), make(LONG, 2)]
    prints = {MemberBatches(streams, groups).fingerprint for groups in ([[0, 1]], [[0], [1]], [[1, 0]], [[0, 0]])}
    assert len(prints) == 4
    assert MemberBatches([make(SHORT, 2), make(LONG, 2)], [[0, 1]]).fingerprint in prints
