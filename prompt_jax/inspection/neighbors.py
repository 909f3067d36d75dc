"""The pieces of the vocabulary nearest to each virtual token.

Lester et al. 2021, section 7.2: a virtual token's nearest neighbors by cosine in the frozen embedding table form
clusters of similar meaning, and the class labels that a prompt was initialized with stay among them.
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
from prompt_jax.models.prompt import Prompt

Measure = Literal["cosine", "distance"]


@dataclasses.dataclass(frozen=True)
class Neighbor:
    """A piece of the vocabulary near a virtual token, with the cosine of their angle and their Euclidean distance."""

    index: int
    piece: str
    cosine: float
    distance: float


@dataclasses.dataclass(frozen=True)
class TokenInspection:
    """One virtual token: its Euclidean norm, and its neighbors by each measure, the nearest first."""

    norm: float
    by_cosine: tuple[Neighbor, ...]
    by_distance: tuple[Neighbor, ...]


@dataclasses.dataclass(frozen=True)
class Inspection:
    """A prompt's virtual tokens, in their order, beside the vocabulary of its base."""

    tokens: tuple[TokenInspection, ...]
    vocabulary: NormRange


@dataclasses.dataclass(frozen=True)
class LabelShare:
    """Class labels among the neighbors of virtual tokens.

    Attributes:
      tokens: by label, the numbers of the virtual tokens that have a piece of it among their neighbors.
      share: of all neighbors, those that are a piece of a label.
    """

    tokens: Mapping[str, tuple[int, ...]]
    share: float


def inspect(prompt: Prompt, model: Model, k: int = 5) -> Inspection:
    """The used virtual tokens of a prompt beside the vocabulary of a base.

    Rows of the embedding table beyond the tokenizer's pieces are left out: no text is embedded by them.

    Args:
      prompt: one that is not stacked.
      model: its base. Without a tokenizer, pieces are called by their numbers.
      k: neighbors a token, by each measure.

    Raises:
      ValueError: the prompt has no virtual tokens, or their width is not the base's.
    """
    tokens_pd, table_vd, tokenizer = virtual_tokens(prompt), to_host(model.params["embedding"]), model.tokenizer
    if tokens_pd.shape[1] != table_vd.shape[1]:
        raise ValueError(f"the virtual tokens have width {tokens_pd.shape[1]}; {model.name} has {table_vd.shape[1]}")
    piece = "#{}".format if tokenizer is None else tokenizer.piece
    return inspect_tokens(tokens_pd, table_vd, piece, vocabulary_size(model), k)


def inspect_tokens(
    tokens_pd: Tokens, table_vd: EmbeddingTable, piece: Callable[[int], str], vocab_size: int, k: int
) -> Inspection:
    """Norms and neighbors of virtual tokens [P, D] in the first `vocab_size` rows of a table [V, D].

    `piece` gives the text of a row.

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
    found = {
        by: _neighbors(tokens_pd, table_vd, piece, nearest(tokens_pd, table_vd, vocab_size, k, by)) for by in measures
    }
    norms = row_norms(tokens_pd, len(tokens_pd))
    return Inspection(
        tuple(TokenInspection(float(norm), *both) for norm, *both in zip(norms, *found.values(), strict=True)),
        norm_range(vocabulary),
    )


def nearest(
    tokens_pd: Tokens, table_vd: EmbeddingTable, vocab_size: int, k: int, by: Measure = "cosine"
) -> Int[np.ndarray, "P k"]:
    """The rows of a table that are nearest to each virtual token.

    The table is read in blocks, in whatever dtype it has: neither a float32 copy of it nor an array [P, V] is made.

    Args:
      tokens_pd: [P, D] virtual tokens.
      table_vd: [V, D] embedding table.
      vocab_size: only the first so many rows are looked at.
      k: neighbors a token; at most `vocab_size` are found.
      by: the highest cosine, or the smallest Euclidean distance.

    Returns:
      Row numbers [P, k], the nearest first, to float32's precision; of equal ones the lower number first. A vector of
      zeros has the cosine 0 with every other.
    """
    wide_pd = np.asarray(tokens_pd, np.float64)  # a stranger's values may be near overflow
    norms_p1 = vector_norms(wide_pd) if by == "cosine" else np.maximum(vector_norms(wide_pd), 1.0)
    scaled_pd = (wide_pd / np.where(norms_p1 == 0, 1, norms_p1)).astype(np.float32)
    best_i, best_s = np.zeros((len(wide_pd), 0), np.int64), np.zeros((len(wide_pd), 0), np.float32)
    for start, block_rd in table_blocks(table_vd, vocab_size):
        if by == "cosine":
            scores = scaled_pd @ unit_rows(block_rd).T  # [P, R]
        else:  # |t - v|^2 is |t|^2 - 2 (t v - |v|^2 / 2); what is in brackets, over the norm of t
            scores = scaled_pd @ block_rd.T - (np.square(vector_norms(block_rd)).T / (2 * norms_p1)).astype(np.float32)
        indices = np.broadcast_to(np.arange(start, start + len(block_rd)), scores.shape)
        candidates_i = np.concatenate([best_i, indices], axis=1)
        candidates_s = np.concatenate([best_s, scores], axis=1)
        order = np.argsort(-candidates_s, axis=1, kind="stable")[:, :k]  # the best so far have the lower numbers
        best_i = np.take_along_axis(candidates_i, order, axis=1)
        best_s = np.take_along_axis(candidates_s, order, axis=1)
    return best_i


def _neighbors(
    tokens_pd: Tokens, table_vd: EmbeddingTable, piece: Callable[[int], str], indices_pk: Int[np.ndarray, "P k"]
) -> list[tuple[Neighbor, ...]]:
    """The rows of these numbers, with cosines and distances in float64."""
    found = []
    for token_d, indices in zip(np.asarray(tokens_pd, np.float64), indices_pk, strict=True):
        rows_kd = np.asarray(table_vd[indices], np.float64)
        cosines = unit_rows(rows_kd) @ unit_rows(token_d[None])[0]
        distances = vector_norms(rows_kd - token_d)[:, 0]
        values = zip(indices.tolist(), cosines.tolist(), distances.tolist(), strict=True)
        found.append(tuple(Neighbor(index, piece(index), *both) for index, *both in values))
    return found


def label_share(neighbors: Sequence[Sequence[Neighbor]], pieces: Mapping[str, frozenset[int]]) -> LabelShare:
    """Where the pieces of labels are among the neighbors of each virtual token; `pieces` is of `label_pieces`."""
    every = frozenset[int]().union(*pieces.values())
    numbers = [{near.index for near in own} for own in neighbors]
    hits = sum(len(own & every) for own in numbers)
    return LabelShare(
        {label: tuple(i for i, near in enumerate(numbers) if near & own) for label, own in pieces.items()},
        hits / max(1, sum(map(len, numbers))),
    )


def label_pieces(labels: Sequence[str], tokenizer: Any) -> dict[str, frozenset[int]]:
    """The pieces of each label, at the beginning of a text and after a space; without those of no letter or digit."""
    unknown = tokenizer.unk_id

    def telling(index: int) -> bool:
        return index != unknown and any(character.isalnum() for character in tokenizer.piece(index))

    def pieces(label: str) -> frozenset[int]:
        # A file's may hold halves of surrogate pairs.
        text = tokenizer.marked(label.encode("utf-8", "replace").decode())
        return frozenset(index for index in (*tokenizer.encode(text), *tokenizer.encode(f" {text}")) if telling(index))

    return {label: pieces(label) for label in labels}
