"""T5's relative positions: a learned attention bias for each bucket of distances between query and key."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def relative_bias(table: Float[Array, "buckets H"], buckets: Int[np.ndarray, "T S"]) -> Float[Array, "1 H T S"]:
    """Return the bias for each query and key, float32."""
    return table.astype(jnp.float32)[buckets].transpose(2, 0, 1)[None]


def relative_biases(
    bucket: Callable[[Int[np.ndarray, "T S"]], Int[np.ndarray, "T S"]],
    places: Int[np.ndarray, "T"],
    prefix: int,
    row: Int[Array, ""] | None,
) -> Callable[[Float[Array, "buckets H"]], tuple[Array, Array | None]]:
    """Return a function from a bias table to the attention biases of the text and of a prefix.

    Args:
      bucket: function from distances (key position minus query position) to buckets.
      places: the positions of the text's queries and keys.
      prefix: the length of the prefix, which ends directly before position 0.
      row: index of the only query to return, or None for all queries.
    """
    text = bucket(places[None, :] - places[:, None])
    before = bucket(np.arange(-prefix, 0)[None, :] - places[:, None]) if prefix else None

    def biases(table: Float[Array, "buckets H"]) -> tuple[Array, Array | None]:
        both = [None if buckets is None else relative_bias(table, buckets) for buckets in (text, before)]
        if row is not None:
            both = jax.tree.map(lambda bias: jax.lax.dynamic_slice_in_dim(bias, row, 1, axis=2), both)
        text_bias, prefix_bias = both
        assert text_bias is not None
        return text_bias, prefix_bias

    return biases


def relative_buckets(distance: np.ndarray, *, bidirectional: bool, buckets: int, max_distance: int) -> np.ndarray:
    """Return T5's bucket of each distance (key position minus query position).

    Half of the buckets hold one distance each; the others widen logarithmically up to `max_distance`. This uses NumPy
    because an accelerator's approximate logarithm assigns distances at the edge of a bucket to the wrong one.
    """
    offset = np.zeros_like(distance)
    if bidirectional:
        buckets //= 2
        offset = np.where(distance > 0, buckets, 0)
        distance = np.abs(distance)
    else:
        distance = np.maximum(-distance, 0)
    exact = buckets // 2
    ratio = np.log(np.maximum(distance, 1).astype(np.float32) / exact) / np.log(max_distance / exact)
    wide = np.minimum(exact + (ratio.astype(np.float32) * (buckets - exact)).astype(np.int32), buckets - 1)
    return (offset + np.where(distance < exact, distance, wide)).astype(np.int32)
