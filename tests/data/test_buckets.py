"""Bucket lengths: the least padding of all choices."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prompt_jax.data.buckets import length_buckets

lengths_of = st.lists(st.integers(1, 40), min_size=1, max_size=40)

SMALL = settings(max_examples=50)


def padding(lengths, buckets):
    return sum(next(b for b in buckets if b >= n) - n for n in lengths)


@SMALL
@given(lengths_of, st.integers(1, 4))
def test_buckets_pad_least_of_all_choices(lengths, count):
    buckets = length_buckets(lengths, count, 40)
    assert list(buckets) == sorted(set(buckets)) and len(buckets) <= count
    assert all(b % 8 == 0 for b in buckets) and buckets[-1] >= max(lengths) > buckets[-1] - 8
    others = itertools.combinations(range(8, 41, 8), min(count, 5))
    assert padding(lengths, buckets) == min(padding(lengths, o) for o in others if o[-1] >= max(lengths))


def test_the_last_bucket_does_not_exceed_the_maximum():
    assert length_buckets([3, 30], 2, 30) == (8, 30)


@pytest.mark.parametrize(("lengths", "count", "message"), [([], 2, "none"), ([9], 2, "9"), ([3], 0, "bucket")])
def test_impossible_buckets_are_refused(lengths, count, message):
    with pytest.raises(ValueError, match=message):
        length_buckets(lengths, count, 8)
