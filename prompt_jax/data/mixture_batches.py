"""Training batches of a mixture of tasks."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from prompt_jax.data.batches import Batch, Tokenized, TrainBatches, random_generator
from prompt_jax.data.stored_rows import Concatenated


class _AllExamples(NamedTuple):
    """The examples of all tasks."""

    inputs: Concatenated
    targets: Concatenated


class MixtureBatches(TrainBatches):
    """Batches of rows from several tasks. As in seqio, each row's task is drawn in proportion to the tasks' rates.

    Within a task, examples come in random order, and each comes once before any comes again. An epoch in the sense of
    `TrainBatches` has as many rows as all tasks have in total. Generators keyed by the epoch, not by the seed, draw the
    number of rows of each task, and their lengths. The seed only decides which examples have these lengths. All rows of
    a batch have one length, so a batch contains more rows of tasks with examples of that length.
    """

    def __init__(
        self,
        tasks: Sequence[Tokenized],
        rates: Sequence[float],
        batch_size: int,
        seed: int,
        buckets: Sequence[int],
        pad_id: int,
        start_id: int,
        *,
        prompt_ids: bool = False,
    ):
        """Plan the batches. Other arguments and errors as for `TrainBatches`.

        Args:
          tasks: the examples of each task.
          rates: the rate of each task, positive.
          prompt_ids: whether a batch has `prompt_ids` [B], the index of each row's task.
        """
        self._task_of = np.repeat(np.arange(len(tasks), dtype=np.int32), [len(task.inputs) for task in tasks])
        self._shares = np.array(rates, np.float64) / sum(rates)
        # The number of rows drawn from each task before each epoch, extended on demand.
        self._drawn = [np.zeros(len(tasks), np.int64)]
        self._prompt_ids = prompt_ids
        inputs, targets = ([getattr(task, part) for task in tasks] for part in ("inputs", "targets"))
        examples = _AllExamples(Concatenated(inputs), Concatenated(targets))
        super().__init__(examples, batch_size, seed, buckets, pad_id, start_id)

    @property
    def fingerprint(self) -> str:
        """A hash of the examples and of everything else that determines the batches, except the seed."""
        parts = (super().fingerprint, np.bincount(self._task_of).tolist(), self._shares.tolist(), self._prompt_ids)
        return f"sha256:{hashlib.sha256(repr(parts).encode()).hexdigest()}"

    def read(self, rows: np.ndarray, input_length: int, target_length: int) -> Batch:
        """Return a batch of these rows, padded to these lengths."""
        batch = super().read(rows, input_length, target_length)
        return batch | {"prompt_ids": self._task_of[rows]} if self._prompt_ids else batch

    def _epoch_rows(self, epoch: int, shapes: np.random.Generator, order: np.random.Generator) -> Iterator[np.ndarray]:
        del shapes  # the draws of earlier epochs are needed as well
        for number in range(len(self._drawn) - 1, epoch + 1):
            more = random_generator(number, 1).multinomial(self.batches_per_epoch * self._size, self._shares)
            self._drawn.append(self._drawn[-1] + more)
        ranges = zip(self._drawn[epoch].tolist(), self._drawn[epoch + 1].tolist(), strict=True)
        rows = np.concatenate([self._task_rows(task, start, end) for task, (start, end) in enumerate(ranges)])
        for number in range(len(self._buckets)):
            yield order.permutation(rows[self._bucket_of[rows] == number])

    def _task_rows(self, task: int, start: int, end: int) -> np.ndarray:
        """Return the rows of a task from draw `start` to draw `end`, in consecutive passes over its examples."""
        rows = np.flatnonzero(self._task_of == task)
        first, last = start // len(rows), -(-end // len(rows))
        passes = [self._pass(rows, task, number) for number in range(first, last)]
        return np.concatenate([rows[:0], *passes])[start - first * len(rows) :][: end - start]

    def _pass(self, rows: np.ndarray, task: int, number: int) -> np.ndarray:
        """Return a task's rows in random order. The order of their lengths does not depend on the seed."""
        lengths, order = self._bucket_of[rows], random_generator(self._seed, number, task, 2)
        places = random_generator(number, task, 2).permutation(lengths)
        result = np.empty_like(rows)
        for bucket in np.unique(lengths):
            result[places == bucket] = order.permutation(rows[lengths == bucket])
        return result
