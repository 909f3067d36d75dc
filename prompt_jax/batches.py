"""Tokenised examples as batches of a few shapes, in an order that is a function of the seed.

NumPy only. B rows a batch, S source tokens (one of the bucket lengths), T target tokens (the same in all batches). A
batch is a dict of

    inputs [B, S] int32, inputs_mask [B, S] bool, decoder_inputs [B, T] int32 (the targets shifted right, the start
    token first), targets [B, T] int32, target_mask [B, T] bool

padded on the right with the pad id, and in evaluation `index` [B] int32. The first column of inputs_mask is always
true: attention over nothing would be NaN.
"""

import dataclasses
import itertools
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

Batch = dict[str, np.ndarray]
Item = TypeVar("Item")
Placed = TypeVar("Placed")


class Tokenised(Protocol):
    """What is needed of examples: `prompt_jax.data.Examples` has it."""

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

    In each epoch the rows are permuted by a generator keyed by (seed, epoch). The last rows of the permutation, fewer
    than B, sit the epoch out, so that all batches are full; which ones is chosen anew each time. The others go to the
    shortest bucket that holds them, and each B of a bucket are a batch; what is left in a bucket at the end goes
    to the next longer one. The batches of an epoch then come in random order, so that none comes late for its length.
    """

    def __init__(
        self,
        examples: Tokenised,
        batch_size: int,
        seed: int,
        buckets: Sequence[int],
        pad_id: int,
        start_id: int,
        target_length: int | None = None,
    ):
        """Nothing is read or copied yet.

        Args:
          examples: the tokenised examples.
          batch_size: B.
          seed: of the order; not negative.
          buckets: ascending bucket lengths, from length_buckets.
          pad_id: the id that fills rows up.
          start_id: the decoder's first input.
          target_length: T; None for the length of the longest target. (One shape needs no rounding.)

        Raises:
          ValueError: fewer than B examples, or lengths that are too small for them.
        """
        self._packing = _Packing(
            examples, batch_size, tuple(buckets), pad_id, start_id, _target_length(examples, target_length)
        )
        rows = len(examples.inputs)
        if rows < batch_size:
            raise ValueError(
                f"the training set has {rows} examples, fewer than the {batch_size} of one batch; "
                f"expected a batch size of at most {rows}"
            )
        self._seed = seed
        self._bucket_of = self._packing.bucket_of()
        self._epoch, self._batch = 0, 0
        self._plan = self._epoch_plan(0)

    @property
    def batches_per_epoch(self) -> int:
        """How many batches an epoch has, always the same."""
        return len(self._bucket_of) // self._packing.batch_size

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
        bucket, rows = self._plan[self._batch]
        self._batch += 1
        if self._batch == len(self._plan):
            self._epoch, self._batch = self._epoch + 1, 0
            self._plan = self._epoch_plan(self._epoch)
        return self._packing.pack(rows, bucket)

    def _epoch_plan(self, epoch: int) -> list[tuple[int, np.ndarray]]:
        """(bucket length, row numbers [B]) of each batch of an epoch."""
        generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([self._seed, epoch])))
        size = self._packing.batch_size
        order = generator.permutation(len(self._bucket_of))[: self.batches_per_epoch * size]
        plan, left = [], np.zeros(0, order.dtype)
        for number, length in enumerate(self._packing.buckets):
            waiting = np.concatenate([left, order[self._bucket_of[order] == number]])
            whole = len(waiting) - len(waiting) % size
            plan += [(length, rows) for rows in waiting[:whole].reshape(-1, size)]
            left = waiting[whole:]
        return [plan[i] for i in generator.permutation(len(plan))]


def eval_batches(
    examples: Tokenised,
    batch_size: int,
    buckets: Sequence[int],
    pad_id: int,
    start_id: int,
    target_length: int | None = None,
) -> Iterator[Batch]:
    """Each example once, longest inputs first: least padding, and what does not fit in memory fails at once.

    A batch also has `index` [B] int32, the place of each row's example. The last batch is filled up with rows whose
    index is -1; such a row is padding, with its first token unmasked.

    Args:
      examples: the tokenised examples.
      batch_size: B.
      buckets: ascending bucket lengths, from length_buckets.
      pad_id: the id that fills rows up.
      start_id: the decoder's first input.
      target_length: T; None for the length of the longest target.

    Raises:
      ValueError: lengths that are too small for the examples.
    """
    length = _target_length(examples, target_length)
    packing = _Packing(examples, batch_size, tuple(buckets), pad_id, start_id, length)
    lengths = np.array([len(row) for row in examples.inputs])
    order = np.argsort(-lengths, kind="stable")
    chunks = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    bucket_of = packing.bucket_of()

    def packed(rows: np.ndarray) -> Batch:
        index = np.full(batch_size, -1, np.int32)
        index[: len(rows)] = rows
        return packing.pack(rows, packing.buckets[bucket_of[rows[0]]]) | {"index": index}

    return map(packed, chunks)


def prefetch(
    batches: Iterable[Batch], place: Callable[[Batch], Placed], depth: int = 2
) -> Generator[tuple[Placed, dict[str, int] | None], None, None]:
    """Makes and places batches in a thread of its own, up to `depth` ahead of the consumer.

    Args:
      batches: TrainBatches, or any iterable. It belongs to the thread until the generator is closed.
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
    if depth < 1:
        raise ValueError(f"at least one batch must be fetched ahead, not {depth}")
    queue: _Queue[tuple[Placed, dict[str, int] | None]] = _Queue(depth)

    def work() -> None:
        try:
            source = iter(batches)
            while queue.wait_for_room():
                batch = next(source)
                position = getattr(batches, "position", None)
                queue.put((place(batch), position))
        except StopIteration:
            queue.end(None)
        except BaseException as error:  # the consumer raises it
            queue.end(error)

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    return _consume(queue, thread)


def _consume(queue: "_Queue[Any]", thread: threading.Thread) -> Generator[Any, None, None]:
    thread.start()
    try:
        while (item := queue.get()) is not None:
            yield item
    finally:
        queue.close()
        thread.join()


class _Queue(Generic[Item]):
    """A bounded queue of which either side can end: the producer with an error or none, the consumer at will."""

    def __init__(self, depth: int):
        self._depth = depth
        self._items: deque[Item] = deque()
        self._changed = threading.Condition()
        self._closed = self._ended = False
        self._error: BaseException | None = None

    def wait_for_room(self) -> bool:
        """Waits until an item may be put. False if the consumer has gone."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._items) < self._depth)
            return not self._closed

    def put(self, item: Item) -> None:
        with self._changed:
            self._items.append(item)
            self._changed.notify_all()

    def end(self, error: BaseException | None) -> None:
        """No item comes any more; the consumer is to raise the error after the items there are."""
        with self._changed:
            self._error, self._ended = error, True
            self._changed.notify_all()

    def get(self) -> Item | None:
        """The next item, waited for; None when there is none any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._ended)
            if self._items:
                item = self._items.popleft()
                self._changed.notify_all()
                return item
            if self._error is not None:
                raise self._error
            return None

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._items.clear()
            self._changed.notify_all()


@dataclasses.dataclass(frozen=True)
class _Packing:
    """How rows of examples become a batch."""

    examples: Tokenised
    batch_size: int
    buckets: tuple[int, ...]
    pad_id: int
    start_id: int
    target_length: int

    def __post_init__(self):
        if self.batch_size < 1:
            raise ValueError(f"the batch size must be positive, not {self.batch_size}")
        if not self.buckets or any(a >= b for a, b in itertools.pairwise((0, *self.buckets))):
            raise ValueError(f"expected ascending positive bucket lengths, found {list(self.buckets)}")
        for name, rows, limit in (
            ("input", self.examples.inputs, self.buckets[-1]),
            ("target", self.examples.targets, self.target_length),
        ):
            if rows and (longest := max(map(len, rows))) > limit:
                raise ValueError(f"the longest {name} has {longest} tokens; expected at most {limit}")

    def bucket_of(self) -> np.ndarray:
        """The number of the bucket of each example [N]: the shortest that holds its input."""
        return np.searchsorted(self.buckets, [len(row) for row in self.examples.inputs])

    def pack(self, rows: np.ndarray, length: int) -> Batch:
        """The batch of the given rows [up to B], with inputs of one length; missing rows are padding."""
        inputs, inputs_mask = self._padded(self.examples.inputs, rows, length)
        targets, target_mask = self._padded(self.examples.targets, rows, self.target_length)
        inputs_mask[:, 0] = True  # also where there is no token: attention over nothing is NaN
        start = np.full((self.batch_size, 1), self.start_id, np.int32)
        return {
            "inputs": inputs,
            "inputs_mask": inputs_mask,
            "decoder_inputs": np.concatenate([start, targets[:, :-1]], axis=1),
            "targets": targets,
            "target_mask": target_mask,
        }

    def _padded(self, ids: Sequence[np.ndarray], rows: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
        padded = np.full((self.batch_size, length), self.pad_id, np.int32)
        mask = np.zeros((self.batch_size, length), bool)
        for place, row in enumerate(rows):
            padded[place, : len(ids[row])] = ids[row]
            mask[place, : len(ids[row])] = True
        return padded, mask


def _target_length(examples: Tokenised, given: int | None) -> int:
    return max(map(len, examples.targets), default=1) if given is None else given
