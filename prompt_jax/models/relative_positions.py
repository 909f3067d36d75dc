"""T5's relative positions: a learned bias for each bucket of distances between query and key."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def relative_bias(table: Float[Array, "buckets H"], buckets: Int[np.ndarray, "T S"]) -> Float[Array, "1 H T S"]:
    """Return the bias of each query and key, float32."""
    return table.astype(jnp.float32)[buckets].transpose(2, 0, 1)[None]


def relative_biases(
    bucket: Callable[[Int[np.ndarray, "T S"]], Int[np.ndarray, "T S"]],
    places: Int[np.ndarray, "T"],
    mask: Any,
    prefix: int,
    row: Int[Array, ""] | None,
) -> Callable[[Float[Array, "buckets H"]], tuple[Array, Array | None]]:
    """Return a function from a table to the biases over text, with the mask, and over a prefix.

    Args:
      bucket: from distances (key position minus query position) to buckets.
      places: the positions of queries and keys of the text.
      mask: the bias of masked positions, or None.
      prefix: the length of a prefix; it stands directly before position 0.
      row: the only query wanted, or None for all.
    """
    text = bucket(places[None, :] - places[:, None])
    before = bucket(np.arange(-prefix, 0)[None, :] - places[:, None]) if prefix else None

    def biases(table: Float[Array, "buckets H"]) -> tuple[Array, Array | None]:
        found = [None if buckets is None else relative_bias(table, buckets) for buckets in (text, before)]
        if row is not None:
            found = jax.tree.map(lambda bias: jax.lax.dynamic_slice_in_dim(bias, row, 1, axis=2), found)
        over_text, over_prefix = found
        assert over_text is not None
        return over_text if mask is None else over_text + mask, over_prefix

    return biases


def relative_buckets(distance: np.ndarray, *, bidirectional: bool, buckets: int, max_distance: int) -> np.ndarray:
    """Return the bucket of each distance (key position minus query position), as in T5.

    Half of the buckets are for single distances, the others widen logarithmically up to `max_distance`. NumPy computes
    them, because an approximate logarithm puts distances at the edge of a bucket into the wrong one.
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
