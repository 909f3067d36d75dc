"""Batches: every row at most once an epoch and whole, the order a function of the seed, resumption exact."""

import dataclasses
import itertools
import json
import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prompt_jax.data.batches import TrainBatches, eval_batches
from prompt_jax.data.buckets import length_buckets
from prompt_jax.data.mixture_batches import MixtureBatches
from prompt_jax.data.prefetch import prefetch

PAD, START, EOS = 0, 7, 1


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Stands for Examples. Row i begins with the token 100 + i, so that it can be recognized."""

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


def padding(lengths, buckets):
    return sum(next(b for b in buckets if b >= n) - n for n in lengths)


lengths_of = st.lists(st.integers(1, 40), min_size=1, max_size=40)
SMALL = settings(max_examples=50)


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


@SMALL
@given(lengths_of, st.integers(1, 8), st.integers(0, 2**40))
def test_each_row_comes_at_most_once_an_epoch_and_whole(lengths, batch_size, seed):
    batch_size = min(batch_size, len(lengths))
    batches = make(lengths, batch_size, seed)
    buckets = length_buckets(lengths, 3, 64)
    for epoch in range(2):
        seen = []
        for number in range(len(lengths) // batch_size):
            assert batches.position == {"epoch": epoch, "batch": number}
            batch = next(batches)
            assert batch["inputs"].shape[0] == batch_size and batch["inputs"].shape[1] in buckets
            assert batch["inputs_mask"].sum(axis=1).tolist() == [lengths[i] for i in rows_of(batch)]
            seen += rows_of(batch)
        assert len(set(seen)) == len(seen) == len(lengths) // batch_size * batch_size


@SMALL
@given(lengths_of, st.integers(1, 8), st.integers(0, 9), st.integers(0, 30))
def test_seeking_a_position_gives_the_same_stream(lengths, batch_size, seed, steps):
    batch_size = min(batch_size, len(lengths))
    batches = make(lengths, batch_size, seed)
    for _ in range(steps):
        next(batches)
    position = json.loads(json.dumps(batches.position))
    resumed = make(lengths, batch_size, seed)
    resumed.seek(position)
    for _ in range(2 * batches.batches_per_epoch + 1):
        assert batches.position == resumed.position
        assert same(next(batches), next(resumed))


def test_the_order_depends_on_the_seed_and_the_epoch_alone():
    lengths = [1 + i * 7 % 40 for i in range(50)]

    def stream(seed):
        batches = make(lengths, 8, seed)
        return [rows_of(next(batches)) for _ in range(2 * batches.batches_per_epoch)]

    assert stream(3) == stream(3)
    assert stream(3) != stream(4)
    first, second = stream(3)[:6], stream(3)[6:]
    assert first != second
    assert set(sum(first, [])) != set(sum(second, []))  # other rows sit the epoch out


def test_a_rare_long_row_is_trained_on():
    lengths = [5] * 30 + [40]
    batches = make(lengths, 4)
    seen = [row for _ in range(3 * batches.batches_per_epoch) for row in rows_of(next(batches))]
    assert 30 in seen


def test_batches_are_not_sorted_by_length():
    lengths = [4] * 64 + [20] * 64 + [40] * 64
    batches = make(lengths, 4)
    widths = [next(batches)["inputs"].shape[1] for _ in range(batches.batches_per_epoch)]
    assert widths != sorted(widths) and widths != sorted(widths, reverse=True)
    assert sorted(widths) == [8] * 16 + [24] * 16 + [40] * 16


def test_what_a_batch_holds():
    examples = Tokens(
        [np.array([5, 6, 1], np.int32), np.array([8, 1], np.int32)],
        [np.array([3, 1], np.int32), np.array([4, 4, 1], np.int32)],
    )
    batch = next(TrainBatches(examples, 2, 0, (4,), PAD, START))
    order = np.argsort(batch["inputs"][:, 0])
    expected = {
        "inputs": np.array([[5, 6, 1, 0], [8, 1, 0, 0]], np.int32),
        "inputs_mask": np.array([[1, 1, 1, 0], [1, 1, 0, 0]], bool),
        "decoder_inputs": np.array([[7, 3, 1], [7, 4, 4]], np.int32),
        "targets": np.array([[3, 1, 0], [4, 4, 1]], np.int32),
        "target_mask": np.array([[1, 1, 0], [1, 1, 1]], bool),
    }
    assert same({name: value[order] for name, value in batch.items()}, expected)


def mixture(lengths_of_tasks, rates, batch_size, seed=0):
    lengths = sum(lengths_of_tasks, [])
    tasks, buckets = list(map(tokens, lengths_of_tasks)), length_buckets(lengths, 3, 64)
    return MixtureBatches(tasks, rates, batch_size, seed, buckets, PAD, START, prompt_ids=True)


@SMALL
@given(st.lists(lengths_of, min_size=1, max_size=3), st.integers(1, 4), st.integers(0, 9), st.integers(0, 20))
def test_a_mixture_goes_through_each_task_whole_and_on_from_any_position(lengths, batch_size, seed, steps):
    batch_size = min(batch_size, sum(map(len, lengths)))
    rates = [0.5 + number for number in range(len(lengths))]
    batches = mixture(lengths, rates, batch_size, seed)
    seen = [[0] * len(own) for own in lengths]
    for number in range(3 * batches.batches_per_epoch):
        if number == steps:
            resumed = mixture(lengths, rates, batch_size, seed)
            resumed.seek(json.loads(json.dumps(batches.position)))
        batch = next(batches)
        if number >= steps:
            assert same(batch, next(resumed))
        for task, row, used in zip(batch["prompt_ids"], rows_of(batch), batch["inputs_mask"], strict=True):
            assert used.sum() == lengths[task][row]
            seen[task][row] += 1
        if batches.position["batch"] == 0:
            assert all(max(own) - min(own) <= 1 for own in seen), "all of a task before any of it again"


def test_a_mixture_draws_by_its_rates():
    """Expected is what independent draws give; of inputs of one length within each batch too."""
    sizes, rates, steps = (300, 40, 60), (1.0, 2.0, 5.0), 1000
    batches = mixture([[5] * size for size in sizes], rates, 16)
    drawn = np.array([np.bincount(next(batches)["prompt_ids"], minlength=3) for _ in range(steps)])
    shares = np.array(rates) / sum(rates)
    spread = np.sqrt(16 * shares * (1 - shares))  # of a batch
    np.testing.assert_array_less(np.abs(drawn.mean(axis=0) - 16 * shares), 3 * spread / np.sqrt(steps))
    np.testing.assert_allclose(drawn.std(axis=0), spread, rtol=0.1)


def test_lengths_of_a_mixture_do_not_depend_on_the_seed():
    """So that members of an ensemble run batches of one length at each step."""
    lengths = [[1 + i * 7 % 40 for i in range(50)], [3] * 9 + [30] * 20]
    one, other = ([next(batches) for _ in range(40)] for batches in (mixture(lengths, (1, 2), 8, s) for s in (3, 4)))
    assert [batch["inputs"].shape for batch in one] == [batch["inputs"].shape for batch in other]
    assert len({batch["inputs"].shape for batch in one}) > 1 and not same(one[0], other[0])
    assert mixture(lengths, (1, 2), 8).fingerprint != mixture(lengths, (2, 2), 8).fingerprint


def test_an_evaluation_batch_by_hand():
    inputs = [np.array([8, 1], np.int32), np.array([5, 6, 1], np.int32)]
    expected = {
        "inputs": np.array([[5, 6, 1, 0], [8, 1, 0, 0], [0, 0, 0, 0]], np.int32),
        "inputs_mask": np.array([[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0]], bool),
        "index": np.array([1, 0, -1], np.int32),
    }
    assert same(next(eval_batches(inputs, 3, (4,), PAD)), expected)


@SMALL
@given(lengths_of, st.integers(1, 8))
def test_evaluation_has_each_example_once_and_fills_one_batch(lengths, batch_size):
    buckets = length_buckets(lengths, 3, 64)
    batches = list(eval_batches(tokens(lengths).inputs, batch_size, buckets, PAD))
    index = np.concatenate([batch["index"] for batch in batches])
    assert sorted(index[index >= 0]) == list(range(len(lengths)))
    assert len(batches) == -(-len(lengths) // batch_size)
    widths = [batch["inputs"].shape[1] for batch in batches]
    assert widths == sorted(widths, reverse=True) and set(widths) <= set(buckets)
    for batch in batches:
        for place, i in enumerate(batch["index"]):
            assert batch["inputs_mask"][place].sum() == (lengths[i] if i >= 0 else 1)
            assert i < 0 or batch["inputs"][place, 0] == 100 + i


def test_a_row_without_tokens_still_attends_to_something():
    assert next(eval_batches([np.zeros(0, np.int32)], 1, (8,), PAD))["inputs_mask"][0].tolist() == [True] + [False] * 7


def test_a_set_smaller_than_a_batch_is_refused_with_both_numbers():
    with pytest.raises(ValueError, match=r"3 examples.* 4 "):
        make([2, 2, 2], 4)


@pytest.mark.parametrize(("buckets", "message"), [((8,), "input has 9"), ((16, 8), "ascending"), ((), "ascending")])
def test_nothing_is_cut_to_fit(buckets, message):
    examples = tokens([9, 3], [3, 2])
    with pytest.raises(ValueError, match=message):
        TrainBatches(examples, 1, 0, buckets, PAD, START)
    with pytest.raises(ValueError, match=message):
        list(eval_batches(examples.inputs, 1, buckets, PAD))


@pytest.mark.parametrize("position", [{}, {"epoch": 0}, {"epoch": 0, "batch": 2}, {"epoch": -1, "batch": 0}])
def test_a_position_of_something_else_is_refused(position):
    with pytest.raises(ValueError, match="from 0 to 1"):
        make([3] * 4, 2).seek(position)


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


def test_prefetch_ends_where_its_source_does_and_knows_no_position():
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


def test_importing_needs_neither_tensorflow_nor_jax():
    code = (
        "import sys, prompt_jax.data.batches, prompt_jax.data.load, prompt_jax.data.files\n"
        "print(sorted({'tensorflow', 'seqio', 'jax'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
