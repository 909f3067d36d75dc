"""Virtual tokens and vocabulary in the plane of the embedding table's first two principal components."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from prompt_jax.inspection.vectors import EmbeddingTable

_SAMPLE = 1 << 15  # rows of the table that the components are computed from: all of T5's
_BLOCK = 8192  # rows in float32 at a time
_POINTS = 1500  # rows that are plotted


@dataclasses.dataclass(frozen=True)
class Projection:
    """Points in the plane of the vocabulary's first two principal components.

    Attributes:
      vocabulary: points of evenly spaced embeddings of the vocabulary.
      prompts: points of each prompt's virtual tokens.
      variance: the shares of the vocabulary's variance along the two components.
      sample: the number of evenly spaced rows that the components were computed from.
      size: the size of the vocabulary.
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
    """Compute the principal components of a table's first rows and project virtual tokens onto them.

    The components are eigenvectors of the covariance [D, D] in float64, summed in blocks of rows without a float32 copy
    of the table. Their sign makes the entry of largest magnitude positive.

    Args:
      prompts: virtual tokens [P, D] of each prompt.
      table_vd: [V, D] embedding table.
      vocab_size: the number of rows to use, from the first.
      sample: the maximum number of evenly spaced rows to compute the components from.
      points: the maximum number of these rows to return as points.
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

    def project(vectors_nd: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N 2"]:
        return (np.asarray(vectors_nd, np.float64) - mean_d) @ axes_d2

    return Projection(
        vocabulary=project(np.asarray(table_vd[drawn], np.float32)),
        prompts=tuple(map(project, prompts)),
        variance=(float(values[-1] / total), float(values[-2] / total)),
        sample=len(rows),
        size=vocab_size,
    )


def _spaced(size: int, count: int) -> np.ndarray:
    """Return at most `count` evenly spaced numbers below `size`, including the first and the last."""
    return np.linspace(0, size - 1, min(size, count)).round().astype(int)
