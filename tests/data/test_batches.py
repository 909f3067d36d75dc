"""Batches: each row at most once an epoch and complete, an order that depends on the seed, exact resumption."""

import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prompt_jax.data.batches import TrainBatches, eval_batches
from prompt_jax.data.buckets import length_buckets
from prompt_jax.data.stored_rows import RowFile, StoredTokens
from token_rows import PAD, START, Tokens, make, rows_of, same, tokens

lengths_of = st.lists(st.integers(1, 40), min_size=1, max_size=40)

SMALL = settings(max_examples=50)


@SMALL
@given(lengths_of, st.integers(1, 8), st.integers(0, 2**40))
def test_each_row_occurs_at_most_once_per_epoch_and_complete(lengths, batch_size, seed):
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
def test_seeking_a_position_resumes_exactly(lengths, batch_size, seed, steps):
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
    assert set(sum(first, [])) != set(sum(second, []))  # other rows are left out of the epoch


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


def test_arrays_of_a_batch():
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


def on_disk(examples: Tokens) -> Tokens:
    file = RowFile()
    stored = Tokens(StoredTokens(file), StoredTokens(file))
    for ids, targets in zip(examples.inputs, examples.targets, strict=True):
        stored.inputs.append(ids)
        stored.targets.append(targets)
    return stored


@SMALL
@given(lengths_of, st.integers(1, 8))
def test_rows_in_a_file_give_the_same_batches(lengths, batch_size):
    batch_size = min(batch_size, len(lengths))
    buckets = length_buckets(lengths, 3, 64)
    memory = tokens(lengths)
    one, other = (TrainBatches(each, batch_size, 0, buckets, PAD, START) for each in (memory, on_disk(memory)))
    assert one.fingerprint == other.fingerprint
    for _ in range(2 * one.batches_per_epoch):
        assert same(next(one), next(other))


def test_the_fingerprint_is_that_of_earlier_versions():
    """Checkpoints have it, and runs with another one do not resume."""
    lengths = [1, 9, 4]
    examples, buckets = tokens(lengths), length_buckets(lengths, 3, 64)
    expected = hashlib.sha256(repr((2, buckets, PAD, START)).encode())
    for rows in (examples.inputs, examples.targets):
        expected.update(np.array(list(map(len, rows)), np.int64).tobytes())
        expected.update(np.concatenate(rows).astype(np.int32).tobytes())
    for own in (examples, on_disk(examples)):
        assert TrainBatches(own, 2, 5, buckets, PAD, START).fingerprint == f"sha256:{expected.hexdigest()}"


@SMALL
@given(lengths_of, st.integers(1, 8), st.data())
def test_a_part_of_a_batch_reads_its_rows_alone(lengths, batch_size, data):
    batch_size = min(batch_size, len(lengths))
    first, last = sorted(data.draw(st.tuples(*[st.integers(0, batch_size)] * 2)))
    whole, batches = next(make(lengths, batch_size)), make(lengths, batch_size)
    plan = batches.next_plan()
    assert plan.tokens == whole["inputs_mask"].sum() + whole["target_mask"].sum()
    for rows in (batches._examples.inputs, batches._examples.targets):
        for other in set(range(len(rows))) - set(plan.rows[first:last].tolist()):
            rows[other] = np.zeros(99, np.int32)  # too long, so that it cannot be read
    assert same(plan.read(slice(first, last)), {name: array[first:last] for name, array in whole.items()})


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
def test_evaluation_has_each_example_once_and_fills_the_last_batch(lengths, batch_size):
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


def test_fewer_examples_than_a_batch_are_an_error():
    with pytest.raises(ValueError, match=r"3 examples.* 4 "):
        make([2, 2, 2], 4)


@pytest.mark.parametrize(("buckets", "message"), [((8,), "input has 9"), ((16, 8), "ascending"), ((), "ascending")])
def test_batches_never_truncate(buckets, message):
    examples = tokens([9, 3], [3, 2])
    with pytest.raises(ValueError, match=message):
        TrainBatches(examples, 1, 0, buckets, PAD, START)
    with pytest.raises(ValueError, match=message):
        list(eval_batches(examples.inputs, 1, buckets, PAD))


@pytest.mark.parametrize("position", [{}, {"epoch": 0}, {"epoch": 0, "batch": 2}, {"epoch": -1, "batch": 0}])
def test_an_invalid_position_is_refused(position):
    with pytest.raises(ValueError, match="from 0 to 1"):
        make([3] * 4, 2).seek(position)


def test_importing_needs_neither_tensorflow_nor_jax():
    code = (
        "import sys, prompt_jax.data.batches, prompt_jax.data.load, prompt_jax.data.files\n"
        "print(sorted({'tensorflow', 'seqio', 'jax'} & set(sys.modules)))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert printed.stdout.strip() == "[]"
