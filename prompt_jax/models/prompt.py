"""What is added to a frozen model: the second argument of every forward pass."""

from collections.abc import Sequence
from typing import Any, Literal

import jax
import numpy as np
from flax import struct

from prompt_jax.errors import UserError

Placement = Literal["before", "after"]

NO_PROMPT = -1  # the prompt id of a row that has none


class PromptStackError(UserError, ValueError):
    """Prompts that cannot be stacked, or prompt ids that do not fit them; the message says what would be right."""


@struct.dataclass
class VirtualTokens:
    """Vectors that take the place of embedded tokens (Lester et al. 2021, section 2).

    Attributes:
      embeddings: [P, D], in the model's embedding space; of a stacked Prompt [N, P, D].
      mask: [P] bool ([N, P]), or None when every slot is used. An unused slot takes no position and no attention, so
        a prompt with some is the shorter prompt without them.
      placement: before the input's first real token, or after its last.
    """

    embeddings: Any  # an array; Any, since tree maps put other things in its place
    mask: Any = None
    placement: Placement = struct.field(pytree_node=False, default="before")


@struct.dataclass
class Prompt:
    """Everything that a tuned model has beside its frozen base. Any part may be absent.

    A stacked Prompt is N of them in one: its leaves have a leading axis N, and `prompt_ids` [B] int32 in the batch say
    which of them each row has, from 0 to N - 1, or -1 for none.

    Attributes:
      encoder_tokens: virtual tokens of the encoder's (or a causal model's) input.
    """

    encoder_tokens: VirtualTokens | None = None


def stack_prompts(prompts: Sequence[Prompt], names: Sequence[str] | None = None) -> Prompt:
    """Prompts [P_i, D] as one stacked Prompt [N, P, D], P being the longest; host arrays.

    Shorter ones are right-aligned: their unused slots come first. There is a mask only if some slot is unused.

    Args:
      prompts: of one placement and width.
      names: what errors call them; by their numbers if left out.

    Raises:
      PromptStackError: no prompts, or some that do not go together.
    """
    check_stackable(prompts, names)
    tokens: list[Any] = [jax.device_get(prompt.encoder_tokens) for prompt in prompts]
    used = [each.embeddings if each.mask is None else each.embeddings[each.mask] for each in tokens]
    longest = max(map(len, used))
    embeddings = np.zeros((len(used), longest, used[0].shape[1]), np.result_type(*used))
    mask = np.zeros((len(used), longest), bool)
    for row, own in enumerate(used):
        embeddings[row, longest - len(own) :] = own
        mask[row, longest - len(own) :] = True
    return Prompt(VirtualTokens(embeddings, None if mask.all() else mask, tokens[0].placement))


def unstack_prompts(prompt: Prompt) -> list[Prompt]:
    """The prompts of a stacked Prompt, each [P_i, D] without its unused slots; host arrays.

    Raises:
      PromptStackError: it is not stacked.
    """
    tokens: Any = jax.device_get(prompt.encoder_tokens)
    if tokens is None or tokens.embeddings.ndim != 3:
        raise PromptStackError(f"a stacked prompt has virtual tokens [N, P, D], not {_shape(prompt)}")
    masks = [slice(None)] * len(tokens.embeddings) if tokens.mask is None else tokens.mask
    return [
        Prompt(VirtualTokens(own[used], placement=tokens.placement))
        for own, used in zip(tokens.embeddings, masks, strict=True)
    ]


def check_stackable(prompts: Sequence[Prompt], names: Sequence[str] | None = None) -> None:
    """Raises PromptStackError unless the prompts can be stacked; arguments as for `stack_prompts`."""
    names = names or [f"prompt {number}" for number in range(len(prompts))]
    if not prompts:
        raise PromptStackError("at least one prompt is needed to stack")
    first: Any = prompts[0].encoder_tokens
    for name, prompt in zip(names, prompts, strict=True):
        tokens = prompt.encoder_tokens
        if tokens is None or np.ndim(tokens.embeddings) != 2:
            raise PromptStackError(
                f"{name}: only prompts with virtual tokens [P, D] can be stacked, not {_shape(prompt)}"
            )
        if tokens.placement != first.placement:
            raise PromptStackError(
                f"{names[0]} has its virtual tokens {first.placement} the input and {name} {tokens.placement} it; "
                "prompts that are used together have one placement"
            )
        widths = first.embeddings.shape[1], tokens.embeddings.shape[1]
        if widths[0] != widths[1]:
            raise PromptStackError(
                f"{names[0]} has virtual tokens of width {widths[0]} and {name} of width {widths[1]}; "
                "prompts that are used together are of one base"
            )


def check_prompt_ids(prompt: Prompt | None, ids: Any, rows: int) -> None:
    """Raises PromptStackError unless there are prompt ids if, and only if, the prompt is stacked, and they fit it.

    Their values are looked at where they are known. Where they are traced, rows of wrong ones become NaN.

    Args:
      prompt: of any kind.
      ids: the batch's `prompt_ids`, or None.
      rows: of the batch.
    """
    shape = _shape(prompt)
    if ids is None:
        if len(shape) == 3:
            raise PromptStackError(f"a stacked prompt, here {shape}, needs the rows' `prompt_ids` [B] in the batch")
        return
    if len(shape) != 3:
        raise PromptStackError(
            f"`prompt_ids` need a stacked prompt [N, P, D], which stack_prompts makes, not {shape or None}"
        )
    if not isinstance(ids, np.ndarray | jax.Array) or ids.shape != (rows,) or ids.dtype.kind not in "iu":
        found = f"{ids.dtype} {ids.shape}" if hasattr(ids, "dtype") else f"a {type(ids).__name__}"
        raise PromptStackError(f"`prompt_ids` are an integer array ({rows},), a number for each row, not {found}")
    if isinstance(ids, jax.core.Tracer):
        return
    known = jax.device_get(ids)
    wrong = (known < NO_PROMPT) | (known >= shape[0])
    if wrong.any():
        raise PromptStackError(
            f"row {int(np.argmax(wrong))} has the prompt id {int(known[wrong][0])}; there are {shape[0]} prompts, "
            f"numbered from 0, and {NO_PROMPT} is none"
        )


def _shape(prompt: Prompt | None) -> tuple[int, ...]:
    """The shape of the virtual tokens; empty if there are none."""
    return () if prompt is None or prompt.encoder_tokens is None else np.shape(prompt.encoder_tokens.embeddings)
