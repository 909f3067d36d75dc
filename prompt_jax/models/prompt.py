"""`Prompt`: the virtual tokens and prefixes that are added to a frozen model.

Virtual tokens are prepended to the embedded text (`virtual_tokens` in inputs.py). A prefix enters attention as
additional keys and values (`PastKeyValues.key_values` in inputs.py).
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import numpy as np
from flax import struct

from prompt_jax.config.prompt import PromptPlacement, Site
from prompt_jax.errors import UserError

SITES: tuple[Site, ...] = ("encoder_self", "decoder_self", "decoder_cross")

NO_PROMPT = -1  # the prompt id of a row without a prompt


class PromptStackError(UserError, ValueError):
    """Prompts cannot be stacked, or prompt ids do not match the prompt."""


class PromptPartError(UserError, ValueError):
    """The prompt has a part that the model does not support."""


@struct.dataclass
class VirtualTokens:
    """Vectors that are used like embedded tokens (Lester et al. 2021, section 2).

    Attributes:
      embeddings: [P, D], in the model's embedding space; [N, P, D] in a stacked Prompt.
      mask: [P] bool ([N, P]), or None if every slot is used. An unused slot takes no position and receives no
        attention, as if it were absent.
      placement: before the first real token of the input, or after the last.
      long_rope: as for a prefix.
    """

    embeddings: Any  # an array; typed Any because tree maps store other types here
    mask: Any = None
    placement: PromptPlacement = struct.field(pytree_node=False, default="before")
    long_rope: bool | None = struct.field(pytree_node=False, default=None)

    arrays: ClassVar[tuple[str, ...]] = ("embeddings",)
    axes: ClassVar[str] = "PD"

    @property
    def slots(self) -> int:
        """Return P, including unused slots."""
        return np.shape(self.embeddings)[-2]


@struct.dataclass
class Prefix:
    """Additional keys and values in the attention of every layer (Li and Liang 2021, section 4).

    Attributes:
      keys: [L, P, G, K]; [N, L, P, G, K] in a stacked Prompt.
      values: like the keys.
      mask: [P] bool ([N, P]), or None if every slot is used; as for virtual tokens.
      placement: "before" is the paper's prefix, which source and target attend to. "after" is its infix, for causal
        models: it stands between source and target, and only the target attends to it.
      shift_positions: whether the prefix shifts the learned positions of the text. For BART, PEFT shifts them, and the
        paper's code does not. GPT-2's positions and T5's relative positions are always shifted.
      always_visible: whether all text attends to the prefix in layers with a sliding window. By default the prefix
        leaves the window, as in PEFT.
      long_rope: for a model with longrope (Phi 3), whether the prompt was trained with the factors for long texts. Then
        it is always used with them; with False, never. None leaves the choice to the length of the text.
    """

    keys: Any
    values: Any
    mask: Any = None
    placement: PromptPlacement = struct.field(pytree_node=False, default="before")
    shift_positions: bool = struct.field(pytree_node=False, default=True)
    always_visible: bool = struct.field(pytree_node=False, default=False)
    long_rope: bool | None = struct.field(pytree_node=False, default=None)

    arrays: ClassVar[tuple[str, ...]] = ("keys", "values")
    axes: ClassVar[str] = "LPGK"

    @property
    def slots(self) -> int:
        """Return P, including unused slots."""
        return np.shape(self.keys)[-3]


PromptPart = VirtualTokens | Prefix


@struct.dataclass
class Prompt:
    """Virtual tokens and prefixes for the frozen base. Any part may be absent.

    The order of positions is: prefix, virtual tokens, text. A stacked Prompt holds N prompts: its leaves have a leading
    axis N, and `prompt_ids` [B] int32 in the batch holds each row's index from 0 to N - 1, or -1 for no prompt.

    Attributes:
      encoder_tokens: virtual tokens in the input of the encoder (or of a causal model).
      encoder_self: a prefix for the encoder's self-attention.
      decoder_self: a prefix for the self-attention of the decoder (or of a causal model).
      decoder_cross: a prefix for the decoder's cross-attention.
    """

    encoder_tokens: VirtualTokens | None = None
    encoder_self: Prefix | None = None
    decoder_self: Prefix | None = None
    decoder_cross: Prefix | None = None

    @property
    def parts(self) -> dict[str, PromptPart]:
        """Return the parts that are not None, by name."""
        named = {name: getattr(self, name) for name in ("encoder_tokens", *SITES)}
        return {name: part for name, part in named.items() if part is not None}

    @property
    def stacked(self) -> int | None:
        """Return N, the number of prompts in a stacked Prompt; None for a single prompt."""
        for part in self.parts.values():
            first = getattr(part, part.arrays[0])
            return len(first) if np.ndim(first) > len(part.axes) else None
        return None


def stack_prompts(prompts: Sequence[Any], names: Sequence[str] | None = None) -> Prompt:
    """Stack prompts of P_i slots to one Prompt of P = max(P_i) slots; host arrays.

    Shorter prompts are right-aligned: their unused slots come first. The mask is None if all slots are used.

    Args:
      prompts: prompts with the same parts, placement and sizes.
      names: the prompts' names in error messages; numbers by default.

    Raises:
      PromptStackError: there are no prompts, or they do not match.
    """
    check_stackable(prompts, names)
    parts = prompts[0].parts
    return Prompt(**{name: _stack([prompt.parts[name] for prompt in prompts]) for name in parts})


def unstack_prompts(prompt: Prompt) -> list[Prompt]:
    """Split a stacked Prompt into its prompts, each without unused slots; host arrays.

    Raises:
      PromptStackError: the prompt is not stacked.
    """
    if prompt.stacked is None:
        raise PromptStackError(f"a stacked prompt has a leading axis N, and this one does not: {_shapes(prompt)}")
    host = jax.device_get(prompt)

    def member(number: int) -> Prompt:
        single = jax.tree.map(lambda leaf: leaf[number], host)
        return Prompt(**{name: part.replace(mask=None, **used_arrays(part)) for name, part in single.parts.items()})

    return [member(number) for number in range(prompt.stacked)]


def concatenate_prompts(prompts: Sequence[Any], names: Sequence[str] | None = None) -> Prompt:
    """Concatenate prompts in order to one prompt without unused slots; host arrays.

    Each was trained alone, so the result is a starting point, or a way to give a model several prefixes at once, as
    PEFT's `compose_cartridge_adapters` does. Keys keep the positions that they were made at, so those of several
    prefixes overlap.

    Args:
      prompts: prompts with the same parts, placement and sizes; lengths may differ.
      names: the prompts' names in error messages; numbers by default.

    Raises:
      PromptStackError: there are no prompts, or they do not match.
    """
    check_stackable(prompts, names)

    def concatenated(parts: Sequence[Any]) -> Any:
        arrays, axis = [used_arrays(part) for part in parts], parts[0].axes.index("P")
        joined = {name: np.concatenate([each[name] for each in arrays], axis) for name in parts[0].arrays}
        return parts[0].replace(mask=None, **joined)

    return Prompt(**{name: concatenated([prompt.parts[name] for prompt in prompts]) for name in prompts[0].parts})


def check_stackable(prompts: Sequence[Any], names: Sequence[str] | None = None) -> None:
    """Raise PromptStackError unless the prompts can be stacked. Arguments as for `stack_prompts`."""
    names = names or [f"prompt {number}" for number in range(len(prompts))]
    if not prompts:
        raise PromptStackError("at least one prompt is needed to stack")
    for name, prompt in zip(names, prompts, strict=True):
        if not isinstance(prompt, Prompt):  # a Delta
            raise PromptStackError(f"{name} changes weights of the base; only prompts and prefixes can be stacked")
    first = prompts[0].parts
    for name, prompt in zip(names, prompts, strict=True):
        parts = prompt.parts
        if not parts or prompt.stacked is not None:
            raise PromptStackError(
                f"{name}: only single prompts that are not empty can be stacked, not {_shapes(prompt)}"
            )
        if parts.keys() != first.keys():
            raise PromptStackError(
                f"{names[0]} has {' and '.join(first)}, and {name} has {' and '.join(parts)}; "
                "prompts that are used together must have the same parts"
            )
        for part_name, part in parts.items():
            if problem := _difference(part_name, first[part_name], part, names[0], name):
                raise PromptStackError(problem)


def _difference(part_name: str, first: Any, part: Any, first_name: str, name: str) -> str | None:
    """Return the reason why the same part of two prompts cannot be stacked, or None."""
    description = _describe(part_name)
    if part.placement != first.placement:
        return (
            f"{first_name} has its {description.removeprefix('a ')} {first.placement} the input and {name} "
            f"{part.placement} it; prompts that are used together must have the same placement"
        )
    for option in ("shift_positions", "always_visible", "long_rope"):
        if getattr(part, option, None) != getattr(first, option, None):
            return f"{first_name} and {name} differ in {option}; prompts that are used together must agree in it"
    sizes = [
        [size for axis, size in zip(p.axes, np.shape(getattr(p, p.arrays[0])), strict=True) if axis != "P"]
        for p in (first, part)
    ]
    if sizes[0] != sizes[1]:
        widths = [str(size[0]) if len(size) == 1 else str(tuple(size)) for size in sizes]
        unit = "width" if len(sizes[0]) == 1 else "layers, heads and width"
        return (
            f"{first_name} has {description} of {unit} {widths[0]} and {name} of {unit} {widths[1]}; "
            "prompts that are used together must have the same base"
        )
    return None


def check_prompt_ids(prompt: Any, ids: Any, rows: int) -> None:
    """Raise PromptStackError if prompt ids are missing, superfluous, of the wrong shape or dtype, or out of range.

    Raise TypeError for anything but a prompt, such as a Delta. Ids under `jit` have no values to check; rows with ids
    out of range then get NaN logits.

    Args:
      prompt: a single or stacked prompt, or None.
      ids: the batch's `prompt_ids`, or None.
      rows: the number of rows in the batch.
    """
    if not isinstance(prompt, Prompt | None):
        raise TypeError(
            f"the prompt must be a Prompt or None, not a {type(prompt).__name__}; for a Delta, such as an adapter, "
            "pass merged_params(params, delta) as the parameters"
        )
    count = None if prompt is None else prompt.stacked
    if ids is None:
        if count is not None:
            raise PromptStackError(
                f"a stacked prompt (here of {count} prompts) needs the rows' `prompt_ids` [B] in the batch"
            )
        return
    if count is None:
        actual = None if prompt is None else _shapes(prompt)
        raise PromptStackError(f"`prompt_ids` need a stacked prompt, as made by stack_prompts, not {actual}")
    if not isinstance(ids, np.ndarray | jax.Array) or ids.shape != (rows,) or ids.dtype.kind not in "iu":
        actual = f"{ids.dtype} {ids.shape}" if hasattr(ids, "dtype") else f"a {type(ids).__name__}"
        raise PromptStackError(f"`prompt_ids` must be an integer array ({rows},), a number for each row, not {actual}")
    if isinstance(ids, jax.core.Tracer):
        return
    known = jax.device_get(ids)
    wrong = (known < NO_PROMPT) | (known >= count)
    if wrong.any():
        raise PromptStackError(
            f"row {int(np.argmax(wrong))} has the prompt id {int(known[wrong][0])}; there are {count} prompts, "
            f"numbered from 0, and {NO_PROMPT} means no prompt"
        )


def check_parts(prompt: Prompt, allowed: Sequence[str], family: str) -> None:
    """Raise PromptPartError unless every part of the prompt is one of the family's `allowed` parts."""
    for name in prompt.parts:
        if name not in allowed:
            raise PromptPartError(f"{family} has no place for {_describe(name)}; it takes {' and '.join(allowed)}")


def check_no_infix(prompt: Prompt, family: str) -> None:
    """Raise PromptPartError if the prompt has an infix, which only causal models support."""
    for name, part in prompt.parts.items():
        if isinstance(part, Prefix) and part.placement == "after":
            raise PromptPartError(
                f"{family} has no place for {_describe(name)} after the input: only causal models take an infix"
            )


def _stack(parts: Sequence[Any]) -> Any:
    """Stack the same part of several prompts, right-aligned."""
    first = parts[0]
    used = [used_arrays(jax.device_get(part)) for part in parts]
    axis = first.axes.index("P")
    lengths = [arrays[first.arrays[0]].shape[axis] for arrays in used]
    longest = max(lengths)
    mask = np.arange(longest)[None, :] >= longest - np.array(lengths)[:, None]

    def stacked(name: str) -> np.ndarray:
        pads = [[(longest - n, 0) if a == axis else (0, 0) for a in range(len(first.axes))] for n in lengths]
        return np.stack([np.pad(arrays[name], pad) for arrays, pad in zip(used, pads, strict=True)])

    return first.replace(mask=None if mask.all() else mask, **{name: stacked(name) for name in first.arrays})


def used_arrays(part: Any) -> dict[str, np.ndarray]:
    """Return a part's arrays without unused slots."""
    arrays = {name: np.asarray(getattr(part, name)) for name in part.arrays}
    if part.mask is None:
        return arrays
    return {name: np.compress(part.mask, array, axis=part.axes.index("P")) for name, array in arrays.items()}


def _shapes(prompt: Prompt) -> str:
    """Return the names and shapes of a prompt's parts, for messages."""
    return (
        " and ".join(f"{name} {np.shape(getattr(p, p.arrays[0]))}" for name, p in prompt.parts.items())
        or "an empty prompt"
    )


def _describe(part_name: str) -> str:
    return "virtual tokens" if part_name == "encoder_tokens" else f"a prefix of {part_name}"
