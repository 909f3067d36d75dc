"""A model's fingerprint: which base a prompt belongs to.

It is a SHA-256 over the architecture and 32 elements of each tensor at fixed places, as they are stored. So it is the
same from safetensors, Flax and PyTorch files, in any dtype and sharding loaded.

What it cannot see: a change that spares all sampled elements (a few rows of the embedding, one neuron), the tokenizer,
and the dropout rate. The same weights stored in another dtype are another model to it, unless every sampled element
survives the cast. It recognizes a wrong base; it is no proof against tampering.
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
# How a model is computed, not what it is.
_NOT_ARCHITECTURE = {"dropout_rate", "remat", "generation"}
# Fields that came later: a model of which they are not true has the fingerprint that it had before.
_LATER = {"relative_per_layer"}


def positions(size: int) -> list[int]:
    """Where a tensor of that many elements is sampled, in row-major order.

    Multiples of the golden ratio, modulo 1: spread evenly, and over all columns, which equal steps would not be.
    """
    if size <= SAMPLED:
        return list(range(size))
    golden = 0x9E3779B97F4A7C15  # 2**64 / 1.618..., rounded to odd
    return [((index * golden & (2**64 - 1)) * size) >> 64 for index in range(SAMPLED)]


def sample(tensor: np.ndarray) -> tuple[tuple[int, ...], bytes]:
    """A tensor's shape and sampled elements, as little-endian float32."""
    places = np.unravel_index(positions(math.prod(tensor.shape)), tensor.shape)
    return tensor.shape, tensor[places].astype("<f4").tobytes()


def fingerprint(config: Any, samples: Samples) -> str:
    """ "sha256:" and the hex digest of a model's config (a dataclass) and samples."""
    fields = dataclasses.asdict(config).items()
    architecture = {k: v for k, v in fields if k not in _NOT_ARCHITECTURE and (v or k not in _LATER)}
    digest = hashlib.sha256(json.dumps([type(config).__name__, architecture], sort_keys=True).encode())
    for name in sorted(samples):
        shape, elements = samples[name]
        digest.update(json.dumps([name, shape]).encode())
        digest.update(elements)
    return f"sha256:{digest.hexdigest()}"
