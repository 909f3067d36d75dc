"""The vectors of prompts and of embedding tables, and their norms."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Array, Float

from prompt_jax.checkpoints.load import Model
from prompt_jax.models.delta import Delta
from prompt_jax.models.prompt import Prompt, used_arrays

# Arrays of NumPy or JAX, in any floating-point type.
Tokens = Float[Array, "P D"] | Float[np.ndarray, "P D"]
EmbeddingTable = Float[Array, "V D"] | Float[np.ndarray, "V D"]

_BLOCK = 8192  # rows of the table in float32 at a time: 128 MiB for the widest T5


@dataclasses.dataclass(frozen=True)
class NormRange:
    """The mean, 5th and 95th percentile of the Euclidean norms of the vocabulary's embeddings."""

    mean: float
    low: float
    high: float


def virtual_tokens(prompt: Prompt | Delta) -> Float[np.ndarray, "P D"]:
    """Return the used virtual tokens, float32. Raises ValueError if the prompt has none."""
    if "encoder_tokens" not in prompt.parts:
        raise ValueError("the prompt has no virtual tokens")
    return used_arrays(prompt.parts["encoder_tokens"])["embeddings"].astype(np.float32)


def slot_vectors(part: Any) -> Float[np.ndarray, "P F"]:
    """Return each used slot of a part as a float64 vector: the virtual token, or the keys and values of all layers."""
    in_front = [np.moveaxis(array, part.axes.index("P"), 0) for array in used_arrays(part).values()]
    return np.concatenate([array.reshape(len(array), -1).astype(np.float64) for array in in_front], axis=1)


def vocabulary_size(model: Model) -> int:
    """Return the number of rows of the embedding table that texts can use."""
    rows = model.params["embedding"].shape[0]
    return rows if model.tokenizer is None else min(model.tokenizer.vocab_size, rows)


def row_norms(table_vd: EmbeddingTable, rows: int) -> Float[np.ndarray, " R"]:
    """Return the Euclidean norms of the first rows of a table, in float64."""
    return np.concatenate([vector_norms(block_rd)[:, 0] for _, block_rd in table_blocks(table_vd, rows)])


def norm_range(values: Float[np.ndarray, " R"]) -> NormRange:
    """Return mean and percentiles of norms."""
    low, high = np.percentile(values, (5, 95))
    return NormRange(float(values.mean()), float(low), float(high))


def vector_norms(rows_rd: Float[np.ndarray, "R D"]) -> Float[np.ndarray, "R 1"]:
    """Return the Euclidean norms of rows, in float64."""
    return np.sqrt(np.sum(np.square(rows_rd, dtype=np.float64), axis=1, keepdims=True))


def unit_rows(rows_rd: Float[np.ndarray, "R D"]) -> Float[np.ndarray, "R D"]:
    """Scale rows to norm 1. Zero rows stay zero."""
    lengths = vector_norms(rows_rd)
    return rows_rd / np.where(lengths == 0, 1, lengths).astype(rows_rd.dtype)


def table_blocks(table_vd: EmbeddingTable, rows: int) -> Iterator[tuple[int, Float[np.ndarray, "R D"]]]:
    """Yield the first rows of a table in float32 blocks, each with the number of its first row."""
    for start in range(0, rows, _BLOCK):
        yield start, np.asarray(table_vd[start : min(start + _BLOCK, rows)], np.float32)
