"""What is added to a frozen model: the second argument of every forward pass."""

from typing import Any, Literal

from flax import struct

Placement = Literal["before", "after"]


@struct.dataclass
class VirtualTokens:
    """Vectors that take the place of embedded tokens (Lester et al. 2021, section 2).

    Attributes:
      embeddings: [P, D], in the model's embedding space.
      mask: [P] bool, or None when every slot is used. An unused slot takes no position and no attention, so a
        prompt with some is the shorter prompt without them.
      placement: before the input's first real token, or after its last.
    """

    embeddings: Any  # an array; Any, since tree maps put other things in its place
    mask: Any = None
    placement: Placement = struct.field(pytree_node=False, default="before")


@struct.dataclass
class Prompt:
    """Everything that a tuned model has beside its frozen base. Any part may be absent.

    Attributes:
      encoder_tokens: virtual tokens of the encoder's (or a causal model's) input.
    """

    encoder_tokens: VirtualTokens | None = None
