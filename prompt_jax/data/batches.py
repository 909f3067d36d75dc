"""Tokenized examples as batches of a few shapes, in an order that is a function of the seed.

NumPy only. B rows a batch, S source tokens (one of the bucket lengths), T target tokens (the same in all batches). A
batch is a dict of

    inputs [B, S] int32, inputs_mask [B, S] bool, decoder_inputs [B, T] int32 (the targets shifted right, the start
    token first), targets [B, T] int32, target_mask [B, T] bool

padded on the right with the pad id, and in evaluation `index` [B] int32. The first column of inputs_mask is always
true: attention over nothing would be NaN.
"""

import hashlib
import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np

from prompt_jax.data.files import DataError

Batch = dict[str, np.ndarray]
Item = TypeVar("Item")
Placed = TypeVar("Placed")


@runtime_checkable  # for the tests, which check types as they run
class Tokenized(Protocol):
    """What is needed of examples: `prompt_jax.data.examples.Examples` has it."""

    @property
    def inputs(self) -> Sequence[np.ndarray]: ...
    @property
    def targets(self) -> Sequence[np.ndarray]: ...


def length_buckets(lengths: Sequence[int], count: int, maximum: int, multiple: int = 8) -> tuple[int, ...]:
    """The bucket lengths, at most `count` of them, that pad the given lengths least in all.

    Exact, by a dynamic programme over the histogram of lengths rounded up to a multiple.

    Args:
      lengths: the lengths of a set's inputs in tokens.
      count: how many shapes may be compiled.
      maximum: the longest length there may be. It is a bucket's length if the longest input needs it, and then need
        not be a multiple.
      multiple: bucket lengths are multiples of this, which is what vector units are good at.

    Returns:
      Ascending lengths; the last holds the longest input.

    Raises:
      ValueError: no lengths, one above the maximum, or no bucket.
    """
    if count < 1:
        raise ValueError(f"at least one bucket is needed, not {count}")
    if len(lengths) == 0 or max(lengths) > maximum:
        found = f"one of {max(lengths)}" if len(lengths) else "none"
        raise ValueError(f"expected lengths of at most {maximum}, found {found}")
    rounded = np.minimum(-(-np.maximum(lengths, 1) // multiple) * multiple, maximum)
    edges, rows = np.unique(rounded, return_counts=True)
    rows_up_to = np.concatenate([[0], np.cumsum(rows)])

    # cost[j]: padded tokens of the rows up to edge j in buckets of which edge j-1 is the last.
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


class TrainBatches(Iterator[Batch]):
    """Endless batches of B whole rows, a pure function of the arguments; it can go on from any position exactly.

    In each epoch the rows of each bucket (the shortest that holds them) are permuted by a generator keyed by (seed,
    epoch). Each B of a bucket are a batch; what is left in a bucket at the end goes to the next longer one. Some rows,
    fewer than B, sit the epoch out, so that all batches are full. The batches come in random order, so that none comes
    late for its length. How many rows of each bucket sit out, and the order of the lengths, are drawn by a generator
    keyed by the epoch alone: members of an ensemble that differ by their seed run batches of one length at each step.
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
        """No example is read or copied yet.

        Args:
          examples: the tokenized examples; T is the length of their longest target.
          batch_size: B.
          seed: of the order; not negative.
          buckets: ascending bucket lengths, from length_buckets.
          pad_id: the id that fills rows up.
          start_id: the decoder's first input.

        Raises:
          DataError: fewer than B examples.
          ValueError: an input that no bucket holds.
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
        self._bucket_of = _bucket_of(np.array([len(row) for row in examples.inputs]), buckets)
        self._target_length = max(map(len, examples.targets))
        self._pad_id, self._start_id = pad_id, start_id
        self._epoch, self._batch = 0, 0
        self._plan = self._epoch_plan(0)

    @property
    def batches_per_epoch(self) -> int:
        """How many batches an epoch has, always the same."""
        return len(self._bucket_of) // self._size

    @property
    def fingerprint(self) -> str:
        """Of the examples and of what else decides the batches, but for the seed."""
        digest = hashlib.sha256(repr((self._size, tuple(self._buckets), self._pad_id, self._start_id)).encode())
        for rows in (self._examples.inputs, self._examples.targets):
            digest.update(np.array([len(row) for row in rows], np.int64).tobytes())
            digest.update(np.concatenate(rows).astype(np.int32).tobytes())
        return f"sha256:{digest.hexdigest()}"

    @property
    def position(self) -> dict[str, int]:
        """Where the next batch is: what `seek` takes, in terms that JSON can hold."""
        return {"epoch": self._epoch, "batch": self._batch}

    def seek(self, position: Mapping[str, int]) -> None:
        """Goes to a position, so that the next batch is the one that came after it. Costs one epoch's plan.

        Raises:
          ValueError: it is no position of these batches, e.g. one of another set or batch size.
        """
        epoch, batch = position.get("epoch", -1), position.get("batch", -1)
        if epoch < 0 or not 0 <= batch < self.batches_per_epoch:
            raise ValueError(
                f"expected a position with an epoch and a batch from 0 to {self.batches_per_epoch - 1}, "
                f"found {dict(position)}; was it made with other data or another batch size?"
            )
        self._epoch, self._batch = epoch, batch
        self._plan = self._epoch_plan(epoch)

    def __next__(self) -> Batch:
        length, rows = self._plan[self._batch]
        self._batch += 1
        if self._batch == len(self._plan):
            self._epoch, self._batch = self._epoch + 1, 0
            self._plan = self._epoch_plan(self._epoch)
        return self._batch_of(length, rows)

    def _batch_of(self, length: int, rows: np.ndarray) -> Batch:
        """The batch of these rows [B], whose inputs are padded to this length."""
        targets, target_mask = _padded(self._examples.targets, rows, self._size, self._target_length, self._pad_id)
        start = np.full((self._size, 1), self._start_id, np.int32)
        return {
            **_inputs(self._examples.inputs, rows, self._size, length, self._pad_id),
            "decoder_inputs": np.concatenate([start, targets[:, :-1]], axis=1),
            "targets": targets,
            "target_mask": target_mask,
        }

    def _epoch_plan(self, epoch: int) -> list[tuple[int, np.ndarray]]:
        """(bucket length, row numbers [B]) of each batch of an epoch."""
        shapes, order = _generator(epoch), _generator(self._seed, epoch)
        size = self._size
        plan, left = [], np.zeros(0, np.int64)
        for length, mine in zip(self._buckets, self._taking_part(epoch, shapes, order), strict=True):
            waiting = np.concatenate([left, mine])
            whole = len(waiting) - len(waiting) % size
            plan += [(length, rows) for rows in waiting[:whole].reshape(-1, size)]
            left = waiting[whole:]
        return [plan[i] for i in shapes.permutation(len(plan))]

    def _taking_part(self, epoch: int, shapes: np.random.Generator, order: np.random.Generator) -> Iterator[np.ndarray]:
        """The rows of each bucket that an epoch's batches have, in their order; in all a whole number of batches."""
        taking_part = shapes.permutation(self._bucket_of)[: self.batches_per_epoch * self._size]
        for number, count in enumerate(np.bincount(taking_part, minlength=len(self._buckets))):
            yield order.permutation(np.flatnonzero(self._bucket_of == number))[:count]


class MixtureBatches(TrainBatches):
    """Batches of rows of several tasks, each row's task drawn in proportion to the tasks' rates, as seqio draws them.

    Within a task the examples come in a random order, all of them before any comes again. What `TrainBatches` calls an
    epoch are as many rows as all tasks have together: how many of them are of which task, and their lengths, are drawn
    by generators keyed by the epoch and not by the seed; which examples they are depends on the seed too. Since a batch
    is of one length, it has more of the tasks whose examples are so long.
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
        """Further arguments and errors as of `TrainBatches`.

        Args:
          tasks: the examples of each.
          rates: of each, positive.
          prompt_ids: whether a batch says which task each row is of, from 0, as `prompt_ids` [B].
        """
        self._task_of = np.repeat(np.arange(len(tasks), dtype=np.int32), [len(task.inputs) for task in tasks])
        self._shares = np.array(rates, np.float64) / sum(rates)
        self._drawn = [np.zeros(len(tasks), np.int64)]  # of each task, before each epoch, as far as it is known
        self._prompt_ids = prompt_ids
        together = _Together(
            [row for task in tasks for row in task.inputs], [row for task in tasks for row in task.targets]
        )
        super().__init__(together, batch_size, seed, buckets, pad_id, start_id)

    @property
    def fingerprint(self) -> str:
        """Of the examples, and of what else decides the batches, but for the seed."""
        own = (super().fingerprint, np.bincount(self._task_of).tolist(), self._shares.tolist(), self._prompt_ids)
        return f"sha256:{hashlib.sha256(repr(own).encode()).hexdigest()}"

    def _batch_of(self, length: int, rows: np.ndarray) -> Batch:
        batch = super()._batch_of(length, rows)
        return batch | {"prompt_ids": self._task_of[rows]} if self._prompt_ids else batch

    def _taking_part(self, epoch: int, shapes: np.random.Generator, order: np.random.Generator) -> Iterator[np.ndarray]:
        del shapes  # earlier epochs' draws are needed too
        for number in range(len(self._drawn) - 1, epoch + 1):
            more = _generator(number, 1).multinomial(self.batches_per_epoch * self._size, self._shares)
            self._drawn.append(self._drawn[-1] + more)
        parts = zip(self._drawn[epoch].tolist(), self._drawn[epoch + 1].tolist(), strict=True)
        rows = np.concatenate([self._rows_of(task, *part) for task, part in enumerate(parts)])
        for number in range(len(self._buckets)):
            yield order.permutation(rows[self._bucket_of[rows] == number])

    def _rows_of(self, task: int, start: int, end: int) -> np.ndarray:
        """What is drawn of a task from its start-th row on: passes over its examples, one after the other."""
        own = np.flatnonzero(self._task_of == task)
        first, last = start // len(own), -(-end // len(own))
        passes = [self._pass(own, task, number) for number in range(first, last)]
        return np.concatenate([own[:0], *passes])[start - first * len(own) :][: end - start]

    def _pass(self, own: np.ndarray, task: int, number: int) -> np.ndarray:
        """A task's rows in a random order, their lengths in one that does not depend on the seed."""
        lengths, order = self._bucket_of[own], _generator(self._seed, number, task, 2)
        places = _generator(number, task, 2).permutation(lengths)
        result = np.empty_like(own)
        for bucket in np.unique(lengths):
            result[places == bucket] = order.permutation(own[lengths == bucket])
        return result


class _Together(NamedTuple):
    inputs: list[np.ndarray]
    targets: list[np.ndarray]


class MemberBatches(Iterator[tuple[Batch, ...]]):
    """Batches of an ensemble: for each stack of members one batch of arrays [E, B, ...].

    Members that train on the same rows in the same order share a stream, whose batches are made once. Where the
    members of a stack have batches of different lengths, as those of different tasks may, the shorter are padded.
    """

    def __init__(self, streams: Sequence[TrainBatches], stacks: Sequence[Sequence[int]]):
        """`stacks` has for each stack the number of the stream of each of its members."""
        self._streams, self._stacks = streams, stacks

    @property
    def fingerprint(self) -> str:
        """Of all streams' examples, and of which member has which."""
        parts = [[self._streams[stream].fingerprint for stream in stack] for stack in self._stacks]
        return f"sha256:{hashlib.sha256(repr(parts).encode()).hexdigest()}"

    @property
    def position(self) -> dict[str, Any]:
        """Where the next batches are: what `seek` takes, in terms that JSON can hold."""
        return {"streams": [stream.position for stream in self._streams]}

    def seek(self, position: Mapping[str, Any]) -> None:
        """Goes to a position. Raises as `TrainBatches.seek`."""
        positions = position.get("streams", [])
        if len(positions) != len(self._streams):
            raise ValueError(f"expected the positions of {len(self._streams)} streams, found {len(positions)}")
        for stream, where in zip(self._streams, positions, strict=True):
            stream.seek(where)

    def __next__(self) -> tuple[Batch, ...]:
        batches = [next(stream) for stream in self._streams]
        return tuple(_stacked([batches[stream] for stream in stack]) for stack in self._stacks)


def _stacked(batches: Sequence[Batch]) -> Batch:
    """Batches [B, ...] as one [E, B, ...], padded to the longest; what is padded is masked, so that any id will do."""
    stacked = {}
    for name in batches[0]:
        own = [batch[name] for batch in batches]
        longest = max(array.shape[-1] for array in own)
        widths = [[(0, 0)] * (array.ndim - 1) + [(0, longest - array.shape[-1])] for array in own]
        stacked[name] = np.stack([np.pad(array, width) for array, width in zip(own, widths, strict=True)])
    return stacked


def eval_batches(inputs: Sequence[np.ndarray], batch_size: int, buckets: Sequence[int], pad_id: int) -> Iterator[Batch]:
    """Each input once, the longest first: least padding, and what does not fit in memory fails at once.

    A batch has `inputs`, `inputs_mask` and `index` [B] int32, the place of each row's input. The last batch is filled
    up with rows whose index is -1; such a row is padding, with its first token unmasked.

    Args:
      inputs: the token ids of each input.
      batch_size: B.
      buckets: ascending bucket lengths, from length_buckets.
      pad_id: the id that fills rows up.

    Raises:
      ValueError: an input that no bucket holds.
    """
    lengths = np.array([len(row) for row in inputs])
    bucket_of = _bucket_of(lengths, buckets)
    order = np.argsort(-lengths, kind="stable")

    def packed(rows: np.ndarray) -> Batch:
        index = np.full(batch_size, -1, np.int32)
        index[: len(rows)] = rows
        return _inputs(inputs, rows, batch_size, buckets[bucket_of[rows[0]]], pad_id) | {"index": index}

    return map(packed, (order[i : i + batch_size] for i in range(0, len(order), batch_size)))


def prefetch(
    batches: Iterable[Item], place: Callable[[Item], Placed], depth: int = 2
) -> Generator[tuple[Placed, dict[str, Any] | None], None, None]:
    """Makes and places batches in a thread of its own, up to `depth` ahead of the consumer.

    Args:
      batches: TrainBatches, MemberBatches, or any iterable. It belongs to the thread until the generator is closed.
      place: puts a batch where it is needed, e.g. `jax.device_put`; runs in the thread.
      depth: how many batches may be ready and waiting.

    The thread starts when the first batch is asked for.

    Yields:
      (placed batch, position after it): going on from that position gives the next batch. The position is None if
      `batches` has none.

    Raises:
      Whatever `batches` or `place` raise, after the batches before it. Closing the generator, as
      `contextlib.closing` does, ends the thread once the work in its hands is done.
    """
    source = iter(batches)
    end: Any = object()

    def work() -> Any:
        batch = next(source, end)
        return end if batch is end else (place(batch), getattr(batches, "position", None))

    with ThreadPoolExecutor(1, "prefetch") as thread:
        waiting = deque(thread.submit(work) for _ in range(depth))
        try:
            while (item := waiting.popleft().result()) is not end:
                waiting.append(thread.submit(work))
                yield item
        finally:
            for future in waiting:
                future.cancel()


def _generator(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


def _inputs(rows: Sequence[np.ndarray], chosen: np.ndarray, batch_size: int, length: int, pad_id: int) -> Batch:
    """The chosen inputs, up to B, padded to one length; missing rows are padding."""
    ids, mask = _padded(rows, chosen, batch_size, length, pad_id)
    mask[:, 0] = True  # also where there is no token, so that attention has something to look at
    return {"inputs": ids, "inputs_mask": mask}


def _padded(
    rows: Sequence[np.ndarray], chosen: np.ndarray, batch_size: int, length: int, pad_id: int
) -> tuple[np.ndarray, np.ndarray]:
    padded = np.full((batch_size, length), pad_id, np.int32)
    mask = np.zeros((batch_size, length), bool)
    for place, row in enumerate(chosen):
        padded[place, : len(rows[row])] = rows[row]
        mask[place, : len(rows[row])] = True
    return padded, mask


def _bucket_of(lengths: np.ndarray, buckets: Sequence[int]) -> np.ndarray:
    """The number of the bucket of each input [N]: the shortest that holds it."""
    if len(buckets) == 0 or any(a >= b for a, b in itertools.pairwise((0, *buckets))):
        raise ValueError(f"expected ascending positive bucket lengths, found {list(buckets)}")
    if (longest := max(lengths, default=0)) > buckets[-1]:
        raise ValueError(f"the longest input has {longest} tokens; expected at most {buckets[-1]}")
    return np.searchsorted(buckets, lengths)
