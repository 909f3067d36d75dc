"""Virtual tokens among the vocabulary, seen along the two directions in which its embeddings differ the most."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from prompt_jax.inspection.vectors import EmbeddingTable

_SAMPLE = 1 << 15  # rows of the table that the directions are computed from: all of T5's
_BLOCK = 8192  # of these in float32 at a time
_POINTS = 1500  # of these that are drawn


@dataclasses.dataclass(frozen=True)
class Projection:
    """Points in the plane of the vocabulary's first two principal components.

    Attributes:
      vocabulary: of some of its embeddings, evenly spaced over it.
      prompts: of the virtual tokens of each prompt.
      variance: shares of the vocabulary's variance that are along the two directions.
      sample: how many rows of the table the directions were computed from, evenly spaced over it,
      size: of so many.
    """

    vocabulary: Float[np.ndarray, "R 2"]
    prompts: tuple[Float[np.ndarray, "_ 2"], ...]
    variance: tuple[float, float]
    sample: int
    size: int


def pca_projection(
    prompts: Sequence[Float[np.ndarray, "_ D"]],
    table_vd: EmbeddingTable,
    vocab_size: int,
    *,
    sample: int = _SAMPLE,
    points: int = _POINTS,
) -> Projection:
    """Principal component analysis of a table's first `vocab_size` rows, and virtual tokens [P, D] in its plane.

    The directions are eigenvectors of the covariance [D, D] in float64, which is added up in blocks of rows, so that no
    float32 copy of the table is made. Each points to where its largest component is positive.

    Args:
      prompts: virtual tokens, of the table's width.
      table_vd: [V, D] embedding table.
      vocab_size: only the first so many rows are looked at.
      sample: how many of them at most, evenly spaced, the directions are computed from.
      points: how many of these are given as points.
    """
    rows = _spaced(vocab_size, sample)
    blocks = [rows[start : start + _BLOCK] for start in range(0, len(rows), _BLOCK)]
    mean_d = sum(np.asarray(table_vd[block], np.float32).sum(axis=0, dtype=np.float64) for block in blocks) / len(rows)
    covariance_dd = np.zeros((len(mean_d), len(mean_d)))
    for block in blocks:
        centered = np.asarray(table_vd[block], np.float32) - mean_d.astype(np.float32)
        covariance_dd += centered.T @ centered
    values, vectors = np.linalg.eigh(covariance_dd / len(rows))
    axes_d2 = vectors[:, :-3:-1]
    axes_d2 = axes_d2 * np.sign(np.take_along_axis(axes_d2, np.abs(axes_d2).argmax(axis=0)[None], axis=0))
    drawn = rows[_spaced(len(rows), points)]
    total = max(values.sum(), np.finfo(np.float64).tiny)

    def seen(vectors_nd: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N 2"]:
        return (np.asarray(vectors_nd, np.float64) - mean_d) @ axes_d2

    return Projection(
        vocabulary=seen(np.asarray(table_vd[drawn], np.float32)),
        prompts=tuple(map(seen, prompts)),
        variance=(float(values[-1] / total), float(values[-2] / total)),
        sample=len(rows),
        size=vocab_size,
    )


def _spaced(size: int, count: int) -> np.ndarray:
    """At most so many of the numbers below `size`, evenly spaced, the first and the last among them."""
    return np.linspace(0, size - 1, min(size, count)).round().astype(int)
