"""First values of a soft prompt: those of Lester et al. 2021, section 3.2, and of the paper's code.

Each returns float32 [P, D]. `embedding` is the base's table [V, D], `pieces` the token ids of a text.
"""

import warnings
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from prompt_jax.sharding import fetch

Fill = Callable[[PRNGKeyArray, int], Float[Array, "P D"]]


def uniform(key: PRNGKeyArray, length: int, width: int, low: float, high: float) -> Float[Array, "P D"]:
    """Uniform between `low` and `high`: -0.5 and 0.5 in the paper, 0 and 0.5 in its code."""
    return jax.random.uniform(key, (length, width), jnp.float32, low, high)


def normal(key: PRNGKeyArray, length: int, shape: tuple[int, ...]) -> Float[Array, "P *shape"]:
    """Normal with variance 1: a PyTorch embedding's, and so the prefix paper's code and PEFT's."""
    return jax.random.normal(key, (length, *shape), jnp.float32)


def sampled_vocabulary(
    key: PRNGKeyArray, length: int, embedding: Float[Array, "V D"], population: int
) -> Float[Array, "P D"]:
    """Embeddings of pieces drawn from the `population` most common, without replacement as long as they last.

    SentencePiece vocabularies are ordered by frequency, so these are the first rows of the table.
    """
    if population > len(embedding):
        warnings.warn(
            f"the vocabulary has {len(embedding)} rows, fewer than {population}: drawing from all",
            stacklevel=2,
        )
        population = len(embedding)
    rows = jax.random.choice(key, population, (length,), replace=length > population)
    return _rows(embedding, rows)


def class_labels(
    key: PRNGKeyArray,
    length: int,
    embedding: Float[Array, "V D"],
    labels: Sequence[Sequence[int]],
    rest: Fill,
) -> Float[Array, "P D"]:
    """Row i is the mean embedding of the pieces of label i; `rest` makes the rows after the labels."""
    if len(labels) > length:
        warnings.warn(
            f"{len(labels)} labels for a prompt of {length}: the last {len(labels) - length} have no row",
            stacklevel=2,
        )
    rows = [_rows(embedding, label).mean(axis=0) for label in labels[:length]]
    return _filled(key, length, rows, rest)


def text(
    key: PRNGKeyArray, length: int, embedding: Float[Array, "V D"], pieces: Sequence[int], rest: Fill
) -> Float[Array, "P D"]:
    """Row i is the embedding of the text's piece i, as far as the prompt reaches; `rest` makes the others."""
    return _filled(key, length, list(_rows(embedding, pieces[:length])), rest)


def _rows(embedding: Float[Array, "V D"], rows: Sequence[int] | Array) -> Float[Array, "N D"]:
    """Rows of a table that may be divided over devices, on the default one."""
    return jnp.asarray(fetch(embedding[jnp.asarray(rows)])).astype(jnp.float32)


def _filled(key: PRNGKeyArray, length: int, rows: list[Array], rest: Fill) -> Float[Array, "P D"]:
    if len(rows) == length:
        return jnp.stack(rows)
    return jnp.concatenate([jnp.stack(rows), rest(key, length - len(rows))])
