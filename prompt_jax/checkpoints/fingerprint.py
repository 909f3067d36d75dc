"""A model's fingerprint, which identifies the base of a prompt.

It is a SHA-256 over the architecture and 32 stored elements of each tensor at fixed positions. So it is the same for
safetensors, Flax and PyTorch files, and for any dtype and sharding in memory.

It does not detect changes of unsampled elements (a few rows of the embedding, one neuron), of the tokenizer, or of the
dropout rate. The same weights stored in another dtype have another fingerprint, unless every sampled element survives
the cast. It detects a wrong base, not tampering.
"""

import dataclasses
import hashlib
import json
import math
from typing import Any

import numpy as np

SAMPLED = 32
# A tensor's name (path in our parameters, layer) -> its shape and sampled elements.
Samples = dict[str, tuple[tuple[int, ...], bytes]]
# Fields that do not change the function of the model.
_NOT_ARCHITECTURE = {"dropout_rate", "remat", "fused_attention", "fsdp", "generation"}
# Fields added later: they count only if true, so that earlier fingerprints stay valid.
_LATER = {"relative_per_layer"}


def positions(size: int) -> list[int]:
    """Return the sampled positions of a tensor of that many elements, in row-major order.

    They are multiples of the golden ratio, modulo 1. They spread evenly over all columns; equal steps may not.
    """
    if size <= SAMPLED:
        return list(range(size))
    golden = 0x9E3779B97F4A7C15  # 2**64 / 1.618..., rounded to odd
    return [((index * golden & (2**64 - 1)) * size) >> 64 for index in range(SAMPLED)]


def sample(tensor: np.ndarray) -> tuple[tuple[int, ...], bytes]:
    """Return a tensor's shape and its sampled elements as little-endian float32."""
    places = np.unravel_index(positions(math.prod(tensor.shape)), tensor.shape)
    return tensor.shape, tensor[places].astype("<f4").tobytes()


def fingerprint(config: Any, samples: Samples) -> str:
    """Return "sha256:" and the hex digest of a model's config (a dataclass) and samples."""
    fields = dataclasses.asdict(config).items()
    architecture = {k: v for k, v in fields if k not in _NOT_ARCHITECTURE and (v or k not in _LATER)}
    digest = hashlib.sha256(json.dumps([type(config).__name__, architecture], sort_keys=True).encode())
    for name in sorted(samples):
        shape, elements = samples[name]
        digest.update(json.dumps([name, shape]).encode())
        digest.update(elements)
    return f"sha256:{digest.hexdigest()}"
