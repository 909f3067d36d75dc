"""Batches of tokenized examples in a few shapes, in an order that is a function of the seed.

NumPy only. B rows per batch, S source tokens (a bucket length), T target tokens (equal for all batches). A batch is a
dict of

    inputs [B, S] int32, inputs_mask [B, S] bool,
    decoder_inputs [B, T] int32 (the targets shifted right, after the start token),
    targets [B, T] int32, target_mask [B, T] bool

padded on the right with the pad id. Evaluation batches have `index` [B] int32 instead of targets. The first column of
inputs_mask is always true, since attention over no tokens would be NaN.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from prompt_jax.data.buckets import bucket_indices
from prompt_jax.data.stored_rows import row_lengths, token_blocks
from prompt_jax.errors import DataError

Batch = dict[str, np.ndarray]


@runtime_checkable  # for the tests, which check types at run time
class Tokenized(Protocol):
    """The part of `prompt_jax.data.examples.Examples` that batches use."""

    @property
    def inputs(self) -> Sequence[np.ndarray]: ...
    @property
    def targets(self) -> Sequence[np.ndarray]: ...


class BatchPlan(NamedTuple):
    """A training batch whose rows are not read yet."""

    batches: "TrainBatches"
    rows: np.ndarray  # the index of each row in the examples [B]
    input_length: int  # S
    target_length: int  # T

    @property
    def tokens(self) -> int:
        """The number of unmasked input and target tokens."""
        return self.batches.count_tokens(self.rows)

    def read(self, rows: slice = slice(None)) -> Batch:
        """Return the batch, or some of its rows."""
        return self.batches.read(self.rows[rows], self.input_length, self.target_length)


class TrainBatches(Iterator[Batch]):
    """Endless batches of B complete rows, a pure function of the arguments. Resumes exactly from any position.

    In each epoch, a generator keyed by (seed, epoch) permutes the rows of each bucket. Every B rows of a bucket form a
    batch, and the remainder moves to the next longer bucket. To make all batches full, an epoch leaves out fewer than B
    random rows. Batches come in random order, so lengths are mixed throughout the epoch. A generator keyed by the epoch
    alone draws the order of lengths, and the number of rows that each bucket leaves out. So ensemble members with
    different seeds have batches of equal length at each step.
    """

    def __init__(
        self,
        examples: Tokenized,
        batch_size: int,
        seed: int,
        buckets: Sequence[int],
        pad_id: int,
        start_id: int,
    ):
        """Plan the batches, without reading any example.

        Args:
          examples: the tokenized examples. T is the length of their longest target.
          batch_size: B.
          seed: the seed of the order, not negative.
          buckets: ascending bucket lengths from `length_buckets`.
          pad_id: the id of padding.
          start_id: the decoder's start token.

        Raises:
          DataError: fewer than B examples.
          ValueError: an input is longer than every bucket.
        """
        rows = len(examples.inputs)
        if rows < batch_size:
            raise DataError(
                f"the training set has {rows} examples, fewer than the {batch_size} of one batch; "
                f"expected a batch size of at most {rows}"
            )
        self._examples = examples
        self._size = batch_size
        self._seed = seed
        self._buckets = buckets
        self._input_lengths, self._target_lengths = row_lengths(examples.inputs), row_lengths(examples.targets)
        self._bucket_of = bucket_indices(self._input_lengths, buckets).astype(np.int16)
        self._target_length = int(self._target_lengths.max())
        self._pad_id, self._start_id = pad_id, start_id
        self._epoch, self._batch = 0, 0
        self._plan = self._epoch_plan(0)

    @property
    def batches_per_epoch(self) -> int:
        """The number of batches, equal for all epochs."""
        return len(self._bucket_of) // self._size

    @property
    def fingerprint(self) -> str:
        """A hash of the examples and of everything else that determines the batches, except the seed."""
        digest = hashlib.sha256(repr((self._size, tuple(self._buckets), self._pad_id, self._start_id)).encode())
        for rows in (self._examples.inputs, self._examples.targets):
            digest.update(row_lengths(rows).astype(np.int64).tobytes())
            for block in token_blocks(rows):
                digest.update(block)
        return f"sha256:{digest.hexdigest()}"

    @property
    def position(self) -> dict[str, int]:
        """The position of the next batch, as JSON values for `seek`."""
        return {"epoch": self._epoch, "batch": self._batch}

    def seek(self, position: Mapping[str, int]) -> None:
        """Move to a position. Costs as much as planning one epoch.

        Raises:
          ValueError: not a position of these batches, but e.g. of another data set or batch size.
        """
        epoch, batch = position.get("epoch", -1), position.get("batch", -1)
        if epoch < 0 or not 0 <= batch < self.batches_per_epoch:
            raise ValueError(
                f"expected a position with an epoch and a batch from 0 to {self.batches_per_epoch - 1}, "
                f"not {dict(position)}; was it saved with other data or another batch size?"
            )
        self._epoch, self._batch = epoch, batch
        self._plan = self._epoch_plan(epoch)

    def __next__(self) -> Batch:
        return self.next_plan().read()

    def next_plan(self) -> BatchPlan:
        """Return the next batch without reading its rows."""
        length, rows = self._plan[self._batch]
        self._batch += 1
        if self._batch == len(self._plan):
            self._epoch, self._batch = self._epoch + 1, 0
            self._plan = self._epoch_plan(self._epoch)
        return BatchPlan(self, rows, length, self._target_length)

    def count_tokens(self, rows: np.ndarray) -> int:
        """Return the number of unmasked input and target tokens of these rows."""
        unmasked = np.maximum(self._input_lengths[rows], 1)  # the first column of inputs_mask is always true
        return int(unmasked.sum() + self._target_lengths[rows].sum())

    def read(self, rows: np.ndarray, input_length: int, target_length: int) -> Batch:
        """Return a batch of these rows, padded to these lengths."""
        targets, target_mask = _pad(self._examples.targets, rows, len(rows), target_length, self._pad_id)
        start = np.full((len(rows), 1), self._start_id, np.int32)
        return {
            **_pad_inputs(self._examples.inputs, rows, len(rows), input_length, self._pad_id),
            "decoder_inputs": np.concatenate([start, targets[:, :-1]], axis=1),
            "targets": targets,
            "target_mask": target_mask,
        }

    def _epoch_plan(self, epoch: int) -> list[tuple[int, np.ndarray]]:
        """Return (bucket length, row numbers [B]) for each batch of an epoch."""
        shapes, order = random_generator(epoch), random_generator(self._seed, epoch)
        size = self._size
        plan = []
        remainder: np.ndarray = np.zeros(0, np.int32)
        for length, bucket_rows in zip(self._buckets, self._epoch_rows(epoch, shapes, order), strict=True):
            waiting = np.concatenate([remainder, bucket_rows]).astype(np.int32)
            whole = len(waiting) - len(waiting) % size
            plan += [(length, rows) for rows in waiting[:whole].reshape(-1, size)]
            remainder = waiting[whole:]
        return [plan[i] for i in shapes.permutation(len(plan))]

    def _epoch_rows(self, epoch: int, shapes: np.random.Generator, order: np.random.Generator) -> Iterator[np.ndarray]:
        """Yield an epoch's rows of each bucket in their order. Their total is a multiple of B."""
        chosen = shapes.permutation(self._bucket_of)[: self.batches_per_epoch * self._size]
        for number, count in enumerate(np.bincount(chosen, minlength=len(self._buckets))):
            yield order.permutation(np.flatnonzero(self._bucket_of == number))[:count]


def eval_batches(inputs: Sequence[np.ndarray], batch_size: int, buckets: Sequence[int], pad_id: int) -> Iterator[Batch]:
    """Return batches with each input once, the longest first. So a lack of memory shows in the first batch.

    A batch has `inputs`, `inputs_mask` and `index` [B] int32, the position of each row in `inputs`. The last batch is
    filled with rows of padding whose index is -1 and whose first token is unmasked.

    Args:
      inputs: the token ids of each input.
      batch_size: B.
      buckets: ascending bucket lengths from `length_buckets`.
      pad_id: the id of padding.

    Raises:
      ValueError: an input is longer than every bucket.
    """
    lengths = np.array([len(row) for row in inputs])
    bucket_of = bucket_indices(lengths, buckets)
    order = np.argsort(-lengths, kind="stable")

    def packed(rows: np.ndarray) -> Batch:
        index = np.full(batch_size, -1, np.int32)
        index[: len(rows)] = rows
        return _pad_inputs(inputs, rows, batch_size, buckets[bucket_of[rows[0]]], pad_id) | {"index": index}

    return map(packed, (order[i : i + batch_size] for i in range(0, len(order), batch_size)))


def random_generator(*key: int) -> np.random.Generator:
    """Return a generator that depends on the key alone."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


def _pad_inputs(rows: Sequence[np.ndarray], chosen: np.ndarray, batch_size: int, length: int, pad_id: int) -> Batch:
    """Pad the chosen inputs to one length, and add rows of padding up to B rows."""
    ids, mask = _pad(rows, chosen, batch_size, length, pad_id)
    mask[:, 0] = True  # so that rows without tokens attend to something
    return {"inputs": ids, "inputs_mask": mask}


def _pad(
    rows: Sequence[np.ndarray], chosen: np.ndarray, batch_size: int, length: int, pad_id: int
) -> tuple[np.ndarray, np.ndarray]:
    padded = np.full((batch_size, length), pad_id, np.int32)
    mask = np.zeros((batch_size, length), bool)
    for place, index in enumerate(chosen):
        row = rows[index]
        padded[place, : len(row)] = row
        mask[place, : len(row)] = True
    return padded, mask
