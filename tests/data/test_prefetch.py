"""Prefetching: order, positions, errors, and the end of the thread."""

import itertools
import threading

import pytest

from prompt_jax.data.prefetch import prefetch
from token_rows import make, same


def numbers(last, error=None):
    yield from range(last)
    if error:
        raise error


def test_prefetch_gives_placed_batches_and_the_position_after_each():
    lengths = [3] * 5
    expected, batches = make(lengths, 2), make(lengths, 2)
    stream = prefetch(batches, lambda batch: (threading.current_thread().name, batch))
    for _ in range(5):
        (thread, batch), position = next(stream)
        assert thread.startswith("prefetch")
        assert same(batch, next(expected))
        assert position == expected.position
    stream.close()
    batches.seek(position)  # what was fetched ahead and not consumed comes again
    assert same(next(batches), next(expected))


def test_prefetch_ends_with_its_source_and_may_have_no_position():
    assert list(prefetch(numbers(5), lambda x: -x)) == [(-i, None) for i in range(5)]


@pytest.mark.parametrize("fails", ["source", "place"])
def test_prefetch_raises_after_the_batches_before_the_error(fails):
    def place(number):
        return 1 // (3 - number) if fails == "place" else number

    source = numbers(9) if fails == "place" else numbers(3, ZeroDivisionError())
    stream = prefetch(source, place, depth=5)
    assert len([next(stream) for _ in range(3)]) == 3
    with pytest.raises(ZeroDivisionError):
        next(stream)
    assert not any(thread.name.startswith("prefetch") for thread in threading.enumerate())


def test_prefetch_stays_within_its_depth_and_ends_when_closed():
    made, enough = [], threading.Semaphore(0)

    def place(number):
        made.append(number)
        enough.release()
        return number

    stream = prefetch(itertools.count(), place, depth=2)
    assert next(stream) == (0, None)
    for _ in range(3):
        assert enough.acquire(timeout=10)  # 0, and 1 and 2 ahead
    assert next(stream) == (1, None)
    assert enough.acquire(timeout=10)
    assert made == [0, 1, 2, 3]
    stream.close()
    assert made == [0, 1, 2, 3]
    assert not any(thread.name.startswith("prefetch") for thread in threading.enumerate())
