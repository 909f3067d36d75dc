"""The pieces of the vocabulary nearest to each virtual token.

Lester et al. 2021, section 7.2: a virtual token's nearest neighbors by cosine in the frozen embedding table form
clusters of similar meaning. If a prompt was initialized with the class labels, they stay among the neighbors.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Int

from prompt_jax.checkpoints.load import Model
from prompt_jax.distributed.sharding import to_host
from prompt_jax.errors import UserError
from prompt_jax.inspection.vectors import (
    EmbeddingTable,
    NormRange,
    Tokens,
    norm_range,
    row_norms,
    table_blocks,
    unit_rows,
    vector_norms,
    virtual_tokens,
    vocabulary_size,
)
from prompt_jax.models import embedding_table
from prompt_jax.models.delta import Delta
from prompt_jax.models.prompt import Prompt

Measure = Literal["cosine", "distance"]


@dataclasses.dataclass(frozen=True)
class Neighbor:
    """A piece of the vocabulary near a virtual token, with their cosine and Euclidean distance."""

    index: int
    piece: str
    cosine: float
    distance: float


@dataclasses.dataclass(frozen=True)
class TokenInspection:
    """A virtual token's Euclidean norm, and its neighbors by each measure, nearest first."""

    norm: float
    by_cosine: tuple[Neighbor, ...]
    by_distance: tuple[Neighbor, ...]


@dataclasses.dataclass(frozen=True)
class Inspection:
    """A prompt's virtual tokens in order, compared with the vocabulary of a base."""

    tokens: tuple[TokenInspection, ...]
    vocabulary: NormRange


@dataclasses.dataclass(frozen=True)
class LabelShare:
    """Class labels among the neighbors of virtual tokens.

    Attributes:
      tokens: for each label, the numbers of the virtual tokens that have one of its pieces as a neighbor.
      share: the share of all neighbors that are a piece of a label.
    """

    tokens: Mapping[str, tuple[int, ...]]
    share: float


def inspect(prompt: Prompt | Delta, model: Model, k: int = 5) -> Inspection:
    """Compare the used virtual tokens of a prompt with the vocabulary of a base.

    Ignores rows of the embedding table beyond the tokenizer's pieces, because no text uses them.

    Args:
      prompt: a prompt that is not stacked.
      model: the base. Without a tokenizer, pieces are named by their numbers.
      k: the number of neighbors per token and measure.

    Raises:
      ValueError: the prompt has no virtual tokens, or their width is not the base's.
    """
    tokens_pd, tokenizer = virtual_tokens(prompt), model.tokenizer
    table_vd = to_host(embedding_table(model.params, model.config))
    if tokens_pd.shape[1] != table_vd.shape[1]:
        raise ValueError(f"the virtual tokens have width {tokens_pd.shape[1]}; {model.name} has {table_vd.shape[1]}")
    piece = "#{}".format if tokenizer is None else tokenizer.piece
    return inspect_tokens(tokens_pd, table_vd, piece, vocabulary_size(model), k)


def inspect_tokens(
    tokens_pd: Tokens, table_vd: EmbeddingTable, piece: Callable[[int], str], vocab_size: int, k: int
) -> Inspection:
    """Return norms and neighbors of virtual tokens among the first `vocab_size` rows of an embedding table.

    `piece` returns the text of a row.

    Raises:
      UserError: one of these rows is not finite.
    """
    vocabulary = row_norms(table_vd, vocab_size)
    if wrong := int((~np.isfinite(vocabulary)).sum()):
        raise UserError(
            f"the base's embedding table has NaN or infinite values in {wrong} of {vocab_size} rows; expected another "
            "copy of the base"
        )
    measures: tuple[Measure, ...] = ("cosine", "distance")
    neighbors = [
        _neighbors(tokens_pd, table_vd, piece, nearest(tokens_pd, table_vd, vocab_size, k, by)) for by in measures
    ]
    norms = row_norms(tokens_pd, len(tokens_pd))
    tokens = tuple(TokenInspection(float(norm), *both) for norm, *both in zip(norms, *neighbors, strict=True))
    return Inspection(tokens, norm_range(vocabulary))


def nearest(
    tokens_pd: Tokens, table_vd: EmbeddingTable, vocab_size: int, k: int, by: Measure = "cosine"
) -> Int[np.ndarray, "P k"]:
    """Return the rows of an embedding table that are nearest to each virtual token.

    Reads the table in blocks, without a float32 copy of it and without an array [P, V].

    Args:
      tokens_pd: [P, D] virtual tokens.
      table_vd: [V, D] embedding table, in any floating-point type.
      vocab_size: the number of rows to search, from the first.
      k: the number of neighbors per token, at most `vocab_size`.
      by: highest cosine or smallest Euclidean distance.

    Returns:
      Row numbers [P, k], nearest first, to float32 precision; ties go to the lower number. The cosine with a zero
      vector is 0.
    """
    wide_pd = np.asarray(tokens_pd, np.float64)  # values from an untrusted file may be near overflow
    norms_p1 = vector_norms(wide_pd) if by == "cosine" else np.maximum(vector_norms(wide_pd), 1.0)
    scaled_pd = (wide_pd / np.where(norms_p1 == 0, 1, norms_p1)).astype(np.float32)
    best_i, best_s = np.zeros((len(wide_pd), 0), np.int64), np.zeros((len(wide_pd), 0), np.float32)
    for start, block_rd in table_blocks(table_vd, vocab_size):
        if by == "cosine":
            scores = scaled_pd @ unit_rows(block_rd).T  # [P, R]
        else:  # |t - v|^2 = |t|^2 - 2 (t v - |v|^2 / 2): rank by the bracket, divided by the norm of t
            scores = scaled_pd @ block_rd.T - (np.square(vector_norms(block_rd)).T / (2 * norms_p1)).astype(np.float32)
        indices = np.broadcast_to(np.arange(start, start + len(block_rd)), scores.shape)
        candidates_i = np.concatenate([best_i, indices], axis=1)
        candidates_s = np.concatenate([best_s, scores], axis=1)
        order = np.argsort(-candidates_s, axis=1, kind="stable")[:, :k]  # earlier blocks have lower row numbers
        best_i = np.take_along_axis(candidates_i, order, axis=1)
        best_s = np.take_along_axis(candidates_s, order, axis=1)
    return best_i


def _neighbors(
    tokens_pd: Tokens, table_vd: EmbeddingTable, piece: Callable[[int], str], indices_pk: Int[np.ndarray, "P k"]
) -> list[tuple[Neighbor, ...]]:
    """Return the rows with these numbers as neighbors, with cosines and distances in float64."""
    neighbors = []
    for token_d, indices in zip(np.asarray(tokens_pd, np.float64), indices_pk, strict=True):
        rows_kd = np.asarray(table_vd[indices], np.float64)
        cosines = unit_rows(rows_kd) @ unit_rows(token_d[None])[0]
        distances = vector_norms(rows_kd - token_d)[:, 0]
        values = zip(indices.tolist(), cosines.tolist(), distances.tolist(), strict=True)
        neighbors.append(tuple(Neighbor(index, piece(index), *both) for index, *both in values))
    return neighbors


def label_share(neighbors: Sequence[Sequence[Neighbor]], pieces: Mapping[str, frozenset[int]]) -> LabelShare:
    """Return which virtual tokens have pieces of labels among their neighbors; `pieces` are from `label_pieces`."""
    every_piece = frozenset[int]().union(*pieces.values())
    indices = [{neighbor.index for neighbor in of_token} for of_token in neighbors]
    hits = sum(len(of_token & every_piece) for of_token in indices)
    return LabelShare(
        {label: tuple(i for i, of_token in enumerate(indices) if of_token & ids) for label, ids in pieces.items()},
        hits / max(1, sum(map(len, indices))),
    )


def label_pieces(labels: Sequence[str], tokenizer: Any) -> dict[str, frozenset[int]]:
    """Return the pieces of each label, at the start of a text and after a space, without punctuation."""
    unknown = tokenizer.unk_id

    def has_letters(index: int) -> bool:
        return index != unknown and any(character.isalnum() for character in tokenizer.piece(index))

    def pieces(label: str) -> frozenset[int]:
        # A label from a file may contain unpaired surrogates.
        text = tokenizer.marked(label.encode("utf-8", "replace").decode())
        return frozenset(filter(has_letters, (*tokenizer.encode(text), *tokenizer.encode(f" {text}"))))

    return {label: pieces(label) for label in labels}
