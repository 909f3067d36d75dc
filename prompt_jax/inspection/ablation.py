"""What each virtual token does: the loss of a prompt without it."""

import dataclasses
from collections.abc import Sequence
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
from prompt_jax.models.prompt import Prompt, used_arrays

# Prompts in memory at a time, each without another slot: the keys and values of a prefix are large.
_STACK, _STACK_BYTES = 16, 256 << 20


@dataclasses.dataclass(frozen=True)
class Ablation:
    """The mean loss of a prompt's targets with all its slots, and without each of them.

    Attributes:
      data: what it was measured on, in words.
      tokens: target tokens that the mean is over.
      loss: with all slots, in nats a target token.
      without: without slot i alone, in the same unit.
    """

    data: str
    tokens: int
    loss: float
    without: Float[np.ndarray, " P"]

    @property
    def effects(self) -> Float[np.ndarray, " P"]:
        """By how much the loss is higher without each slot: what it is good for."""
        return self.without - self.loss


def leave_one_out(model: Model, prompt: Prompt, examples: Examples, *, batch_size: int) -> Ablation:
    """The effect of each virtual token; of prompts with prefixes, of slot i of every part at once.

    A prompt without a slot is the shorter one in which the others have moved together. Prompts are evaluated as one
    stacked Prompt whose rows are masked, many at once: one shape, and so one compilation for each length of input.

    Args:
      model: the base.
      prompt: one that is not stacked. Slots that are not used are passed over.
      examples: with their targets; of several references the first.
      batch_size: rows a batch: an example with one of the prompts.

    Raises:
      UserError: examples without a label, or nothing that could be left out.
      LogitsError: logits that are not finite.
      ContextError: more than the model has positions for.
    """
    if examples.unlabeled:
        raise UserError(
            f"{examples.name}, {examples.split}: {examples.unlabeled} of {len(examples)} examples have no label, and "
            "so no loss; expected examples that have one"
        )
    if not prompt.parts:
        raise UserError("what changes the base itself has no virtual tokens or prefix of which one could be left out")
    lengths = np.array(list(map(len, examples.targets)))
    check_context(model.config, prompt, max(map(len, examples.inputs)), int(lengths.max()))
    parts = prompt.parts.values()
    slots = max(int(used_arrays(part)[part.arrays[0]].shape[part.axes.index("P")]) for part in parts)
    variants = [None, *range(slots)]
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(jax.device_get(prompt)))
    groups = -(-len(variants) // max(1, min(_STACK, _STACK_BYTES // max(size, 1))))
    together = -(-len(variants) // groups)
    losses: list[float] = []
    for start in range(0, len(variants), together):
        group = variants[start : start + together]
        filled = [*group, *[None] * (together - len(group))]  # to the shape that is compiled
        losses += _losses(model, prompt, filled, examples, batch_size)[: len(group)]
    tokens = int(lengths.sum())
    whole, *without = np.array(losses) / tokens
    data = f"{len(examples)} examples of {examples.name}, {examples.split}"
    return Ablation(data, tokens, float(whole), np.array(without))


def _losses(
    model: Model, prompt: Prompt, variants: Sequence[int | None], examples: Examples, batch_size: int
) -> list[float]:
    """Return the summed loss of all targets, in nats, for the prompt without each of these slots."""
    stacked = to_devices(jax.tree.map(lambda *leaves: np.stack(leaves), *(_without(prompt, slot) for slot in variants)))
    prompt_ids = np.repeat(np.arange(len(variants)), len(examples))
    rows = Rows(model, stacked, list(examples.inputs) * len(variants), prompt_ids, batch_size=batch_size)
    scores = score_targets(rows, list(examples.targets) * len(variants))
    return (-scores.astype(np.float64)).reshape(len(variants), -1).sum(axis=1).tolist()


def _without(prompt: Prompt, slot: int | None) -> Prompt:
    """The prompt without a slot, of the same size: the others are moved to the end, and the first is not used."""

    def cut(part: Any) -> Any:
        arrays, axis = used_arrays(part), part.axes.index("P")
        count = arrays[part.arrays[0]].shape[axis]
        if slot is None or slot >= count:
            return part.replace(mask=np.ones(count, bool), **arrays)
        shorter = {name: np.insert(np.delete(array, slot, axis), 0, 0, axis) for name, array in arrays.items()}
        return part.replace(mask=np.arange(count) > 0, **shorter)

    return Prompt(**{name: cut(part) for name, part in prompt.parts.items()})
