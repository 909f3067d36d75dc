"""What is added to a frozen model: the second argument of every forward pass."""

from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import numpy as np
from flax import struct

from prompt_jax.config.prompt import Placement, Site
from prompt_jax.errors import UserError

SITES: tuple[Site, ...] = ("encoder_self", "decoder_self", "decoder_cross")

NO_PROMPT = -1  # the prompt id of a row that has none


class PromptStackError(UserError, ValueError):
    """Prompts that cannot be stacked, or prompt ids that do not fit them; the message says what would be right."""


class PromptPartError(UserError, ValueError):
    """A prompt with a part that a model has no place for; the message says which."""


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

    arrays: ClassVar[tuple[str, ...]] = ("embeddings",)
    axes: ClassVar[str] = "PD"

    @property
    def slots(self) -> int:
        """P, the unused ones included."""
        return np.shape(self.embeddings)[-2]


@struct.dataclass
class Prefix:
    """Keys and values that a layer's attention finds beside those of the text (Li and Liang 2021, section 4).

    Attributes:
      keys: [L, P, H, K]; of a stacked Prompt [N, L, P, H, K].
      values: as the keys.
      mask: [P] bool ([N, P]), or None when every slot is used; as for virtual tokens.
      placement: "before" is the paper's prefix, which everything sees. "after" is its infix, of causal models, which
        stands between source and target and is not seen by the source.
      shift_positions: whether learned positions of what follows are counted on from the prefix, as GPT-2's are, and
        BART's in PEFT, but not in the paper's code. T5's relative positions always are.
    """

    keys: Any
    values: Any
    mask: Any = None
    placement: Placement = struct.field(pytree_node=False, default="before")
    shift_positions: bool = struct.field(pytree_node=False, default=True)

    arrays: ClassVar[tuple[str, ...]] = ("keys", "values")
    axes: ClassVar[str] = "LPHK"

    @property
    def slots(self) -> int:
        """P, the unused ones included."""
        return np.shape(self.keys)[-3]


Part = VirtualTokens | Prefix


@struct.dataclass
class Prompt:
    """Everything that a tuned model has beside its frozen base. Any part may be absent.

    The order of positions is: prefix, virtual tokens, text. A stacked Prompt is N of them in one: its leaves have a
    leading axis N, and `prompt_ids` [B] int32 in the batch say which of them each row has, from 0 to N - 1, or -1 for
    none.

    Attributes:
      encoder_tokens: virtual tokens of the encoder's (or a causal model's) input.
      encoder_self: a prefix of the encoder's self-attention.
      decoder_self: a prefix of the decoder's (or a causal model's) self-attention.
      decoder_cross: a prefix of the decoder's attention to the encoder's output.
    """

    encoder_tokens: VirtualTokens | None = None
    encoder_self: Prefix | None = None
    decoder_self: Prefix | None = None
    decoder_cross: Prefix | None = None

    @property
    def parts(self) -> dict[str, Part]:
        """The parts that are there, by name."""
        named = {name: getattr(self, name) for name in ("encoder_tokens", *SITES)}
        return {name: part for name, part in named.items() if part is not None}

    @property
    def stacked(self) -> int | None:
        """How many prompts a stacked one holds; None for a single prompt."""
        for part in self.parts.values():
            first = getattr(part, part.arrays[0])
            return len(first) if np.ndim(first) > len(part.axes) else None
        return None


def stack_prompts(prompts: Sequence[Any], names: Sequence[str] | None = None) -> Prompt:
    """Prompts of P_i slots as one stacked Prompt, P being the longest; host arrays.

    Shorter ones are right-aligned: their unused slots come first. There is a mask only if some slot is unused.

    Args:
      prompts: of the same parts, placement and sizes.
      names: what errors call them; by their numbers if left out.

    Raises:
      PromptStackError: no prompts, or some that do not go together.
    """
    check_stackable(prompts, names)
    parts = prompts[0].parts
    return Prompt(**{name: _stack([prompt.parts[name] for prompt in prompts]) for name in parts})


def unstack_prompts(prompt: Prompt) -> list[Prompt]:
    """The prompts of a stacked Prompt, each of its P_i slots without the unused ones; host arrays.

    Raises:
      PromptStackError: it is not stacked.
    """
    if prompt.stacked is None:
        raise PromptStackError(f"a stacked prompt has a leading axis N, and this one has not: {_shapes(prompt)}")
    host = jax.device_get(prompt)

    def member(number: int) -> Prompt:
        own = jax.tree.map(lambda leaf: leaf[number], host)
        return Prompt(**{name: part.replace(mask=None, **used_arrays(part)) for name, part in own.parts.items()})

    return [member(number) for number in range(prompt.stacked)]


def check_stackable(prompts: Sequence[Any], names: Sequence[str] | None = None) -> None:
    """Raises PromptStackError unless the prompts can be stacked; arguments as for `stack_prompts`."""
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
                "prompts that are used together have the same parts"
            )
        for kind, part in parts.items():
            if problem := _difference(kind, first[kind], part, names[0], name):
                raise PromptStackError(problem)


def _difference(kind: str, first: Any, part: Any, first_name: str, name: str) -> str | None:
    """Why two parts of one kind cannot be stacked."""
    own = _words(kind).removeprefix("a ")
    if part.placement != first.placement:
        return (
            f"{first_name} has its {own} {first.placement} the input and {name} {part.placement} it; "
            "prompts that are used together have one placement"
        )
    if isinstance(part, Prefix) and part.shift_positions != first.shift_positions:
        return f"{first_name} and {name} differ in shift_positions; prompts that are used together have one rule"
    sizes = [
        [size for axis, size in zip(p.axes, np.shape(getattr(p, p.arrays[0])), strict=True) if axis != "P"]
        for p in (first, part)
    ]
    if sizes[0] != sizes[1]:
        widths = [str(size[0]) if len(size) == 1 else str(tuple(size)) for size in sizes]
        what = "width" if len(sizes[0]) == 1 else "layers, heads and width"
        return (
            f"{first_name} has {_words(kind)} of {what} {widths[0]} and {name} of {what} {widths[1]}; "
            "prompts that are used together are of one base"
        )
    return None


def check_prompt_ids(prompt: Prompt | None, ids: Any, rows: int) -> None:
    """Raises PromptStackError unless there are prompt ids if, and only if, the prompt is stacked, and they fit it.

    Their values are looked at where they are known. Where they are traced, rows of wrong ones become NaN.

    Args:
      prompt: of any kind.
      ids: the batch's `prompt_ids`, or None.
      rows: of the batch.
    """
    count = None if prompt is None else prompt.stacked
    if ids is None:
        if count is not None:
            raise PromptStackError(f"a stacked prompt, here of {count}, needs the rows' `prompt_ids` [B] in the batch")
        return
    if count is None:
        found = None if prompt is None else _shapes(prompt)
        raise PromptStackError(f"`prompt_ids` need a stacked prompt, which stack_prompts makes, not {found}")
    if not isinstance(ids, np.ndarray | jax.Array) or ids.shape != (rows,) or ids.dtype.kind not in "iu":
        found = f"{ids.dtype} {ids.shape}" if hasattr(ids, "dtype") else f"a {type(ids).__name__}"
        raise PromptStackError(f"`prompt_ids` are an integer array ({rows},), a number for each row, not {found}")
    if isinstance(ids, jax.core.Tracer):
        return
    known = jax.device_get(ids)
    wrong = (known < NO_PROMPT) | (known >= count)
    if wrong.any():
        raise PromptStackError(
            f"row {int(np.argmax(wrong))} has the prompt id {int(known[wrong][0])}; there are {count} prompts, "
            f"numbered from 0, and {NO_PROMPT} is none"
        )


def check_parts(prompt: Prompt, allowed: Sequence[str], family: str) -> None:
    """Raises PromptPartError unless a family of models has a place for every part of the prompt."""
    for name in prompt.parts:
        if name not in allowed:
            raise PromptPartError(f"{family} has no place for {_words(name)}; it takes {' and '.join(allowed)}")


def check_no_infix(prompt: Prompt, family: str) -> None:
    """Raises PromptPartError where a family has no place between source and target."""
    for name, part in prompt.parts.items():
        if isinstance(part, Prefix) and part.placement == "after":
            raise PromptPartError(
                f"{family} has no place for {_words(name)} after the input: an infix is of causal models"
            )


def _stack(parts: Sequence[Any]) -> Any:
    """One kind of part of several prompts as one, right-aligned."""
    first = parts[0]
    used = [used_arrays(jax.device_get(part)) for part in parts]
    axis = first.axes.index("P")
    lengths = [own[first.arrays[0]].shape[axis] for own in used]
    longest = max(lengths)
    mask = np.arange(longest)[None, :] >= longest - np.array(lengths)[:, None]

    def stacked(name: str) -> np.ndarray:
        pads = [[(longest - n, 0) if a == axis else (0, 0) for a in range(len(first.axes))] for n in lengths]
        return np.stack([np.pad(own[name], pad) for own, pad in zip(used, pads, strict=True)])

    return first.replace(mask=None if mask.all() else mask, **{name: stacked(name) for name in first.arrays})


def used_arrays(part: Any) -> dict[str, np.ndarray]:
    """A part's arrays without its unused slots."""
    arrays = {name: np.asarray(getattr(part, name)) for name in part.arrays}
    if part.mask is None:
        return arrays
    return {name: np.compress(part.mask, array, axis=part.axes.index("P")) for name, array in arrays.items()}


def _shapes(prompt: Prompt) -> str:
    """What a prompt has, for messages."""
    return (
        " and ".join(f"{name} {np.shape(getattr(p, p.arrays[0]))}" for name, p in prompt.parts.items())
        or "an empty prompt"
    )


def _words(kind: str) -> str:
    return "virtual tokens" if kind == "encoder_tokens" else f"a prefix of {kind}"
