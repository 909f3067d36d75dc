"""Rows in batches: shapes, prompts, and the order of the results."""

import jax
import numpy as np
import pytest

from adapters import random_tokens
from prompt_jax.distributed.costs import USABLE, Workload, generation_row_bytes
from prompt_jax.inference import batching
from prompt_jax.inference.batching import Rows, Shapes, batch_shapes, run_batches, stack_with_ids
from prompt_jax.models.prompt import PromptStackError


def of_lengths(*lengths: int) -> list[np.ndarray]:
    """Return texts whose first token is their number."""
    return [np.array([100 + number] + [5] * (length - 1), np.int32) for number, length in enumerate(lengths)]


def test_few_texts_make_a_small_batch(monkeypatch):
    assert batch_shapes(of_lengths(3), 64) == Shapes(1, (8,))
    assert batch_shapes(of_lengths(3, 4, 9), 64) == Shapes(4, (8, 16))
    assert batch_shapes(of_lengths(*[3] * 100), 64).rows == 64
    monkeypatch.setattr(batching, "EVAL_BUCKETS", 1)
    assert batch_shapes(of_lengths(3, 4, 9), 64).lengths == (16,)


def test_prompts_are_stacked_with_their_ids(tiny):
    one, two = random_tokens(tiny, 2), random_tokens(tiny, 3, seed=1)
    assert stack_with_ids([one]) == (one, None) and stack_with_ids([None, None]) == (None, None)
    stacked, ids = stack_with_ids([one, None, two])
    assert stacked.stacked == 2 and ids.tolist() == [0, -1, 1]


@pytest.mark.parametrize("batch_size", (2, 3, 8))
def test_results_are_in_the_order_of_the_rows(tiny, batch_size):
    """Rows are sorted by length, and the last batch is filled up."""
    inputs, seen, progress = of_lengths(3, 12, 5, 9, 2), [], []

    def run(batch, prompt):
        seen.append(batch["inputs"].shape)
        return batch["inputs"][:, 0], batch["inputs_mask"].sum(axis=1), batch["number"]

    rows = Rows(tiny, None, inputs, batch_size=batch_size, before_batch=lambda *numbers: progress.append(numbers))
    first, lengths, numbers = run_batches(rows, run, {"number": np.arange(10, 15)})
    assert first.tolist() == [100, 101, 102, 103, 104] and lengths.tolist() == [3, 12, 5, 9, 2]
    assert numbers.tolist() == [10, 11, 12, 13, 14]
    count = -(-5 // batch_size)
    assert len(seen) == count and {shape[0] for shape in seen} == {batch_size}
    assert progress == [(number, count) for number in range(count)]


def test_a_device_gets_as_many_rows_as_it_has_memory_for(tiny, monkeypatch):
    """Eight rows are asked for. The memory is that of the base and of five more rows; it takes four."""
    inputs, seen = of_lengths(*[9] * 8), []
    base = sum(leaf.nbytes for leaf in jax.tree.leaves(tiny.params))
    work = Workload((1,), None, 1, 1, 16, 1, 0, 0, 0, "float32", "none")
    memory = (base + 5 * generation_row_bytes(tiny.config, work)) / USABLE
    monkeypatch.setattr(batching, "device_memory", lambda: memory)

    def run(batch, prompt):
        seen.append(len(batch["inputs"]))
        return (batch["inputs"][:, 0],)

    (first,) = run_batches(Rows(tiny, None, inputs, batch_size=8), run, {})
    assert seen == [4, 4] and first.tolist() == list(range(100, 108))
    monkeypatch.setattr(batching, "device_memory", lambda: 1)
    run_batches(Rows(tiny, None, inputs, batch_size=8), run, {})
    assert seen[2:] == [1] * 8


def test_chosen_rows_keep_their_prompts(tiny):
    prompts = [random_tokens(tiny, 2), random_tokens(tiny, 3)]
    stacked, _ = stack_with_ids(prompts)
    rows = Rows(tiny, stacked, of_lengths(3, 4, 5), np.array([0, -1, 1], np.int32)).take([2, 0])
    assert [len(ids) for ids in rows.inputs] == [5, 3] and rows.prompt_ids.tolist() == [1, 0]
    seen = run_batches(rows, lambda batch, prompt: (batch["prompt_ids"],), {})
    assert seen[0].tolist() == [1, 0]
    with pytest.raises(PromptStackError, match="row 1 has the prompt id 7"):
        run_batches(Rows(tiny, stacked, of_lengths(3, 4), np.array([0, 7], np.int32)), lambda batch, prompt: (), {})
