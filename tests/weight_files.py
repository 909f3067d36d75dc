"""Files of weights in the formats that are read."""

from pathlib import Path

import ml_dtypes
import numpy as np
from flax import serialization
from safetensors.numpy import save_file

from prompt_jax.checkpoints.files import open_safetensors
from prompt_jax.checkpoints.flax_msgpack import open_flax

OPENERS = {"safetensors": open_safetensors, "flax": open_flax}


DTYPES = (np.float64, np.float32, np.float16, ml_dtypes.bfloat16)


ARRAY = np.zeros(4, np.float32)


def encoded(form: str, arrays: dict[str, np.ndarray], folder: Path) -> Path:
    """Write a file of arrays under names without a module."""
    file = folder / form
    if form == "safetensors":
        save_file(arrays, file)
    else:
        file.write_bytes(serialization.msgpack_serialize(dict(arrays)))
    return file


def contents(form: str, file: Path) -> dict[str, np.ndarray]:
    with OPENERS[form](file) as tensors:
        actual = {name: stored.read() for name, stored in tensors.items()}
        assert all(actual[name].shape == stored.shape for name, stored in tensors.items())
        return actual
