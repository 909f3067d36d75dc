"""Batches prepared ahead of the training step, in a background thread."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

Item = TypeVar("Item")
Placed = TypeVar("Placed")


def prefetch(
    batches: Iterable[Item], place: Callable[[Item], Placed], depth: int = 2
) -> Generator[tuple[Placed, dict[str, Any] | None], None, None]:
    """Build and place batches in a background thread, up to `depth` ahead of the consumer.

    The thread starts with the first `next`. Until the generator is closed, `batches` belongs to the thread. Closing the
    generator, as `contextlib.closing` does, stops the thread after its current item.

    Args:
      batches: TrainBatches, MemberBatches, or any iterable.
      place: moves a batch to its devices, e.g. `jax.device_put`. Runs in the thread.
      depth: the maximum number of batches that are ready and waiting.

    Yields:
      (placed batch, position after it): seek this position to resume with the next batch. None if `batches` has no
      position.

    Raises:
      Any exception of `batches` or `place`, after the batches that precede it.
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
