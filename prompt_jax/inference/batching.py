"""Rows of inputs, run through a model in batches of similar lengths."""

import dataclasses
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from prompt_jax.checkpoints.load import Model
from prompt_jax.config.model import Dtype
from prompt_jax.data.batches import eval_batches
from prompt_jax.data.buckets import length_buckets
from prompt_jax.distributed.costs import USABLE, Workload, generation_row_bytes, takes_kernel, virtual_slots
from prompt_jax.distributed.memory import device_memory
from prompt_jax.distributed.sharding import mesh_of, mesh_shape, named_sharding, to_devices, to_host
from prompt_jax.models import family
from prompt_jax.models.prompt import NO_PROMPT, Prompt, check_prompt_ids, stack_prompts

EVAL_BUCKETS = 4  # input lengths that batches are padded to; each is compiled once


class Shapes(NamedTuple):
    """The shapes that batches are padded to. Each (rows, length) is compiled once."""

    rows: int
    lengths: tuple[int, ...]  # ascending, in tokens


@dataclasses.dataclass(frozen=True)
class Rows:
    """Inputs to run through a model, each with its prompt, and how to batch them.

    Attributes:
      model: the frozen base.
      prompt: the prompt of all rows, a stacked prompt, or None.
      inputs: the token ids of each row, with the end token.
      prompt_ids: [rows] each row's index in a stacked prompt, -1 for none.
      start_ids: [rows] for a causal model that continues texts: the last token of each text. It stands after the input
        in place of the start token, and an answer is the rest of its line.
      batch_size: the most rows of a batch; a device's memory may allow fewer. Or the `batch_shapes` of a larger set of
        inputs, to reuse its compiled programs.
      before_batch: called before each batch with its number (from 0) and the number of batches. An exception that it
        raises ends the evaluation.
    """

    model: Model
    prompt: Prompt | None
    inputs: Sequence[np.ndarray]
    prompt_ids: np.ndarray | None = None
    start_ids: np.ndarray | None = None
    batch_size: int | Shapes = 64
    before_batch: Callable[[int, int], None] | None = None

    def __len__(self) -> int:
        return len(self.inputs)

    def take(self, index: Sequence[int]) -> "Rows":
        """Return the rows with these indices."""
        return dataclasses.replace(
            self,
            inputs=[self.inputs[i] for i in index],
            prompt_ids=None if self.prompt_ids is None else self.prompt_ids[index],
            start_ids=None if self.start_ids is None else self.start_ids[index],
        )


def batch_shapes(inputs: Sequence[np.ndarray], batch_size: int) -> Shapes:
    """Return the shapes that pad these inputs least, with at most `batch_size` rows and EVAL_BUCKETS lengths."""
    lengths = [len(ids) for ids in inputs]
    rows = min(batch_size, 1 << (len(inputs) - 1).bit_length())  # so that one text does not cost as much as 64
    return Shapes(rows, length_buckets(lengths, EVAL_BUCKETS, -(-max(lengths) // 8) * 8))


def _fitting_rows(model: Model, prompt: Prompt | None, source: int, target: int) -> int:
    """Return how many rows a device has memory for, by an estimate: a power of two. Host memory has no limit here.

    All processes must come to the same number, so it does not depend on what else is in memory.
    """
    memory = device_memory()
    if memory is None:
        return sys.maxsize
    base = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(model.params))
    tokens, slots = virtual_slots(model.config, prompt)
    dtype: Dtype = "bfloat16" if model.params["embedding"].dtype == "bfloat16" else "float32"
    work = Workload(
        groups=(1,),
        at_once=None,
        rows=1,
        parts=1,
        source=source,
        target=target,
        tokens=tokens,
        slots=slots,
        trained=0,
        dtype=dtype,
        remat="none",
        fused=model.config.fused_attention and takes_kernel(model.config, dtype),
    )
    rows = (USABLE * memory - base) / generation_row_bytes(model.config, work)
    return 2 ** max(0, int(math.log2(max(rows, 1))))


def stack_with_ids(prompts: Sequence[Prompt | None]) -> tuple[Prompt | None, np.ndarray | None]:
    """Return the prompts as one stacked prompt, with each one's id in it. A single prompt is returned without an id."""
    some = [prompt for prompt in prompts if prompt is not None]
    if len(prompts) == 1 or not some:
        return prompts[0], None
    numbers = iter(range(len(some)))
    ids = [NO_PROMPT if prompt is None else next(numbers) for prompt in prompts]
    return stack_prompts(some), np.array(ids, np.int32)


def run_batches(
    rows: Rows, run: Callable[[dict[str, Any], Prompt | None], Any], columns: dict[str, np.ndarray]
) -> list[np.ndarray]:
    """Run all rows in batches and return each array of the results, in the order of the rows.

    If the base is on several devices, each device gets a share of a batch's rows.

    Args:
      rows: the inputs, padded to `rows.batch_size`.
      run: returns a tuple of arrays [B, ...], from a batch and the prompt.
      columns: further int32 arrays with a value for each row, added to its batch.

    Raises:
      PromptStackError: the prompt ids do not fit the prompt.
    """
    config = rows.model.config
    start_ids = rows.start_ids
    if start_ids is None and family(config).causal:
        start_ids = np.full(len(rows), config.start_id)
    given: Mapping[str, np.ndarray | None] = {**columns, "prompt_ids": rows.prompt_ids, "start_ids": start_ids}
    columns = {name: np.asarray(values, np.int32) for name, values in given.items() if values is not None}
    check_prompt_ids(rows.prompt, columns.get("prompt_ids"), len(rows))
    shapes = rows.batch_size if isinstance(rows.batch_size, Shapes) else batch_shapes(rows.inputs, rows.batch_size)
    mesh = mesh_of(rows.model.params)
    groups = mesh_shape(mesh)["ensemble"] * mesh_shape(mesh)["data"]
    fitting = groups * _fitting_rows(rows.model, rows.prompt, shapes.lengths[-1], max(columns.get("lengths", [1])))
    shapes = shapes._replace(rows=-(-min(shapes.rows, fitting) // groups) * groups)
    prompt = to_devices(rows.prompt, named_sharding(mesh))
    results: list[Any] = []
    pending: tuple[np.ndarray, Any] | None = None

    def collect() -> None:
        if pending is not None:
            index, arrays = pending
            results.append((index, to_host(arrays)))

    total = -(-len(rows.inputs) // shapes.rows)
    for number, batch in enumerate(eval_batches(rows.inputs, *shapes, config.pad_id)):
        if rows.before_batch is not None:
            rows.before_batch(number, total)
        index = batch.pop("index")
        # Rows that fill the last batch have index -1. With zeros in all columns, such a row ends at once.
        batch |= {name: np.where(index < 0, 0, values[index]) for name, values in columns.items()}
        running = run(to_devices(batch, named_sharding(mesh, "rows")), prompt)
        collect()  # the previous batch, while this one runs
        pending = (index, running)
    collect()
    index = np.concatenate([index for index, _ in results])
    order = np.argsort(index, kind="stable")[np.sum(index < 0) :]
    return [np.concatenate(parts)[order] for parts in zip(*(arrays for _, arrays in results), strict=True)]
