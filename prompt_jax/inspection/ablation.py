"""Leave-one-out ablation: the loss of a prompt without each virtual token."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from prompt_jax.checkpoints.load import Model
from prompt_jax.data.examples import Examples
from prompt_jax.distributed.sharding import to_devices
from prompt_jax.errors import UserError
from prompt_jax.inference.answers import score_targets
from prompt_jax.inference.batching import Rows
from prompt_jax.models import check_context
from prompt_jax.models.delta import Delta
from prompt_jax.models.prompt import Prompt, used_arrays

# The maximum number and total size of prompts in memory at a time. A prefix's keys and values are large.
_STACK, _STACK_BYTES = 16, 256 << 20


@dataclasses.dataclass(frozen=True)
class Ablation:
    """The mean loss of a prompt's targets with all slots, and without each slot.

    Attributes:
      data: a description of the examples.
      tokens: the number of target tokens.
      loss: with all slots, in nats per target token.
      without: without slot i, in the same unit.
    """

    data: str
    tokens: int
    loss: float
    without: Float[np.ndarray, " P"]

    @property
    def effects(self) -> Float[np.ndarray, " P"]:
        """The increase of the loss without each slot."""
        return self.without - self.loss


def leave_one_out(
    model: Model,
    prompt: Prompt | Delta,
    examples: Examples,
    *,
    batch_size: int,
    before_batch: Callable[[int, int], None] | None = None,
) -> Ablation:
    """Measure the effect of each virtual token. In a prompt with several parts, slot i of all parts is removed at once.

    Removing a slot shortens the prompt: the other slots become adjacent. Many shortened prompts are evaluated at once,
    as one stacked Prompt with masks, so each input length is compiled once.

    Args:
      model: the base.
      prompt: a prompt that is not stacked. Unused slots are skipped.
      examples: examples with targets. Only the first of several references counts.
      batch_size: rows per batch. A row is an example with one of the prompts.
      before_batch: called before each batch with its number (from 0) and the number of batches.

    Raises:
      UserError: an example has no label, or the prompt has no slots.
      LogitsError: a logit is not finite.
      ContextError: a text does not fit the model's positions.
    """
    if examples.unlabeled:
        raise UserError(
            f"{examples.name}, {examples.split}: {examples.unlabeled} of {len(examples)} examples have no label, so "
            "they have no loss; expected examples with labels"
        )
    if isinstance(prompt, Delta) or not prompt.parts:
        raise UserError("the file changes the base's own weights; expected virtual tokens or a prefix to leave out")
    lengths = np.array(list(map(len, examples.targets)))
    check_context(model.config, prompt, max(map(len, examples.inputs)), int(lengths.max()))
    parts = prompt.parts.values()
    slots = max(int(used_arrays(part)[part.arrays[0]].shape[part.axes.index("P")]) for part in parts)
    variants = [None, *range(slots)]  # the slot that is left out
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(jax.device_get(prompt)))
    groups = -(-len(variants) // max(1, min(_STACK, _STACK_BYTES // max(size, 1))))
    group_size = -(-len(variants) // groups)
    starts = range(0, len(variants), group_size)
    losses: list[float] = []
    for number, start in enumerate(starts):

        def update(done: int, total: int, number: int = number) -> None:
            if before_batch is not None:
                before_batch(number * total + done, len(starts) * total)

        group = variants[start : start + group_size]
        filled = [*group, *[None] * (group_size - len(group))]  # one compiled shape for all groups
        losses += _losses(model, prompt, filled, examples, batch_size, update)[: len(group)]
    tokens = int(lengths.sum())
    whole, *without = np.array(losses) / tokens
    data = f"{len(examples)} examples of {examples.name}, {examples.split}"
    return Ablation(data, tokens, float(whole), np.array(without))


def _losses(
    model: Model,
    prompt: Prompt,
    variants: Sequence[int | None],
    examples: Examples,
    batch_size: int,
    before_batch: Callable[[int, int], None],
) -> list[float]:
    """Return the summed loss of all targets, in nats, for the prompt without each of these slots."""
    stacked = to_devices(jax.tree.map(lambda *leaves: np.stack(leaves), *(_without(prompt, slot) for slot in variants)))
    prompt_ids = np.repeat(np.arange(len(variants)), len(examples))
    inputs = list(examples.inputs) * len(variants)
    rows = Rows(model, stacked, inputs, prompt_ids, batch_size=batch_size, before_batch=before_batch)
    scores = score_targets(rows, list(examples.targets) * len(variants))
    return (-scores.astype(np.float64)).reshape(len(variants), -1).sum(axis=1).tolist()


def _without(prompt: Prompt, slot: int | None) -> Prompt:
    """Return the prompt without a slot, in the same shape: the other slots move to the end, and the first is masked."""

    def remove(part: Any) -> Any:
        arrays, axis = used_arrays(part), part.axes.index("P")
        count = arrays[part.arrays[0]].shape[axis]
        if slot is None or slot >= count:
            return part.replace(mask=np.ones(count, bool), **arrays)
        shorter = {name: np.insert(np.delete(array, slot, axis), 0, 0, axis) for name, array in arrays.items()}
        return part.replace(mask=np.arange(count) > 0, **shorter)

    return Prompt(**{name: remove(part) for name, part in prompt.parts.items()})
