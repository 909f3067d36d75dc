"""Options of the frozen base model."""

import dataclasses
from typing import Literal

Dtype = Literal["float32", "bfloat16", "int8"]
Remat = Literal["none", "dots", "full"]


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The frozen base."""

    name: str = "demo"
    """A Hugging Face name, a folder in the hub's layout, or `demo`."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    dtype: Dtype = "float32"
    """Of the base's weights and the activations; what is trained is float32. With int8 the matrices of the layers have
    8 bits a weight, and all else is bfloat16, the activations included."""
    remat: Remat = "none"
    """What the backward pass computes a second time, to save memory: nothing; attention and activation functions, but
    not the products with the weights (dots); or whole layers (full): about a third slower, with a fraction of the
    memory."""
