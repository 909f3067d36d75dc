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
    """fused: one kernel without an array of scores in memory, for 128 queries and more, on TPUs and GPUs; and on TPUs,
    with remat full, one for small feed-forward sublayers. plain: XLA's operations. auto: fused on TPUs and GPUs, plain
    on CPUs. On TPUs it takes up to about 10,000 keys (2,600 on v4). On GPUs the kernel is cuDNN's. It takes bfloat16,
    and heads up to 128 wide (up to 256 from Hopper on). With dropout or a soft cap, fused and auto use XLA's operations
    there."""
    remat: RematOption = "auto"
    """Recompute in the backward pass, to save memory: nothing (none), attention and activation functions (dots), or
    whole layers (full; about a third slower). auto: the least of them that fits into memory by an estimate."""
