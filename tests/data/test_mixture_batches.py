"""Batches of a mixture: rates, passes over each task, and exact resumption."""

import json

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from prompt_jax.data.buckets import length_buckets
from prompt_jax.data.mixture_batches import MixtureBatches
from token_rows import PAD, START, rows_of, same, tokens

lengths_of = st.lists(st.integers(1, 40), min_size=1, max_size=40)

SMALL = settings(max_examples=50)


def mixture(lengths_of_tasks, rates, batch_size, seed=0):
    lengths = sum(lengths_of_tasks, [])
    tasks, buckets = list(map(tokens, lengths_of_tasks)), length_buckets(lengths, 3, 64)
    return MixtureBatches(tasks, rates, batch_size, seed, buckets, PAD, START, prompt_ids=True)


@SMALL
@given(st.lists(lengths_of, min_size=1, max_size=3), st.integers(1, 4), st.integers(0, 9), st.integers(0, 20))
def test_a_mixture_uses_all_of_a_task_before_repeating_and_resumes_exactly(lengths, batch_size, seed, steps):
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
    """Shares match independent draws. With inputs of equal length, they also do within each batch."""
    sizes, rates, steps = (300, 40, 60), (1.0, 2.0, 5.0), 1000
    batches = mixture([[5] * size for size in sizes], rates, 16)
    drawn = np.array([np.bincount(next(batches)["prompt_ids"], minlength=3) for _ in range(steps)])
    shares = np.array(rates) / sum(rates)
    spread = np.sqrt(16 * shares * (1 - shares))  # of a batch
    np.testing.assert_array_less(np.abs(drawn.mean(axis=0) - 16 * shares), 3 * spread / np.sqrt(steps))
    np.testing.assert_allclose(drawn.std(axis=0), spread, rtol=0.1)


def test_lengths_of_a_mixture_do_not_depend_on_the_seed():
    """So members of an ensemble have batches of equal length at each step."""
    lengths = [[1 + i * 7 % 40 for i in range(50)], [3] * 9 + [30] * 20]
    one, other = ([next(batches) for _ in range(40)] for batches in (mixture(lengths, (1, 2), 8, s) for s in (3, 4)))
    assert [batch["inputs"].shape for batch in one] == [batch["inputs"].shape for batch in other]
    assert len({batch["inputs"].shape for batch in one}) > 1 and not same(one[0], other[0])
    assert mixture(lengths, (1, 2), 8).fingerprint != mixture(lengths, (2, 2), 8).fingerprint
