"""Rows of token ids that can be recognized in batches."""

import dataclasses

import numpy as np

from prompt_jax.data.batches import TrainBatches
from prompt_jax.data.buckets import length_buckets

PAD, START, EOS = 0, 7, 1


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Stands in for Examples. Row i begins with the token 100 + i."""

    inputs: list[np.ndarray]
    targets: list[np.ndarray]


def tokens(lengths, target_lengths=None):
    rows = [np.array([100 + i] + [5] * (n - 2) + [EOS] * (n > 1), np.int32) for i, n in enumerate(lengths)]
    target_lengths = target_lengths or [1 + i % 3 for i in range(len(lengths))]
    return Tokens(rows, [np.array([20 + i % 9] * (n - 1) + [EOS], np.int32) for i, n in enumerate(target_lengths)])


def make(lengths, batch_size, seed=0, count=3):
    return TrainBatches(tokens(lengths), batch_size, seed, length_buckets(lengths, count, 64), PAD, START)


def rows_of(batch):
    return [int(row[0]) - 100 for row in batch["inputs"]]


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)
