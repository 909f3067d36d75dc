"""Options of the frozen base model."""

import dataclasses
from typing import Literal

Dtype = Literal["float32", "bfloat16", "int8", "fp8", "int4"]
Attention = Literal["auto", "plain", "fused"]
Remat = Literal["none", "dots", "full"]
RematOption = Literal["auto", "none", "dots", "full"]


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The frozen base model."""

    name: str = "demo"
    """Name on the Hugging Face Hub, folder with a checkpoint in its layout, `demo` or `smollm2`."""
    revision: str | None = None
    """Branch, tag or commit on the Hugging Face Hub."""
    dtype: Dtype = "float32"
    """Type of the base's weights and of activations. int8, fp8 and int4 quantize the layers' matrices and use bfloat16
    elsewhere. Trained parameters are float32."""
    attention: Attention = "auto"
    """auto: fused kernels on TPUs and GPUs, plain XLA operations on CPUs. fused: kernels for attention, without an
    array of scores in memory, and on TPUs for small feed-forward sublayers. docs/scaling.md and docs/gpus.md say what
    they cover; XLA's operations compute the rest. plain: XLA's operations alone."""
    remat: RematOption = "auto"
    """Recompute in the backward pass, to save memory: nothing (none), attention and activation functions (dots), or
    whole layers (full; about a third slower). auto: the one that is estimated to be the fastest that fits."""
