"""Bucket lengths: the few lengths that inputs are padded to, so that few shapes are compiled."""

import itertools
from collections.abc import Sequence

import numpy as np


def length_buckets(lengths: Sequence[int], count: int, maximum: int, multiple: int = 8) -> tuple[int, ...]:
    """Return at most `count` bucket lengths that minimize the total padding of the given lengths.

    Exact, by dynamic programming over the histogram of the lengths rounded up to a multiple.

    Args:
      lengths: the lengths of a set's inputs in tokens.
      count: the maximum number of buckets, each of which compiles one shape.
      maximum: the maximum length of an input. The last bucket does not exceed it, even if it is not a multiple.
      multiple: bucket lengths are multiples of this, which suits vector units.

    Returns:
      Ascending lengths. The last one holds the longest input.

    Raises:
      ValueError: no lengths, a length above the maximum, or no bucket.
    """
    if count < 1:
        raise ValueError(f"at least one bucket is needed, not {count}")
    if len(lengths) == 0 or max(lengths) > maximum:
        given = f"one of {max(lengths)}" if len(lengths) else "none"
        raise ValueError(f"expected lengths of at most {maximum}, not {given}")
    rounded = np.minimum(-(-np.maximum(lengths, 1) // multiple) * multiple, maximum)
    edges, rows = np.unique(rounded, return_counts=True)
    rows_up_to = np.concatenate([[0], np.cumsum(rows)])

    # cost[j]: the padded tokens of the rows up to edge j if edge j-1 is the last bucket.
    cost = np.where(np.arange(len(edges) + 1) == 0, 0.0, np.inf)
    choices = []
    for _ in range(min(count, len(edges))):
        step = np.full((len(edges) + 1, len(edges) + 1), np.inf)
        for end in range(1, len(edges) + 1):
            step[end, :end] = cost[:end] + edges[end - 1] * (rows_up_to[end] - rows_up_to[:end])
        choices.append(step.argmin(axis=1))
        cost = step.min(axis=1)
    buckets, end = [], len(edges)
    for choice in reversed(choices):
        buckets.append(int(edges[end - 1]))
        end = int(choice[end])
    return tuple(reversed(buckets))


def bucket_indices(lengths: np.ndarray, buckets: Sequence[int]) -> np.ndarray:
    """Return for each input [N] the index of the shortest bucket that holds it."""
    if len(buckets) == 0 or any(a >= b for a, b in itertools.pairwise((0, *buckets))):
        raise ValueError(f"expected ascending positive bucket lengths, not {list(buckets)}")
    if (longest := max(lengths, default=0)) > buckets[-1]:
        raise ValueError(f"the longest input has {longest} tokens; expected at most {buckets[-1]}")
    return np.searchsorted(buckets, lengths)
