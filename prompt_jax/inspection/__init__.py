"""Looking into a prompt: how long its virtual tokens are, which words of the vocabulary they lie close to, and which of
them, or which prompts, are alike.

Lester et al. 2021, section 7.2: a virtual token's nearest neighbors by cosine in the frozen embedding table form
clusters of like meaning, and class labels that a prompt was initialized with stay among them.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Array, Float, Int

from prompt_jax.checkpoints.load import Model
from prompt_jax.distributed.sharding import to_host
from prompt_jax.errors import UserError
from prompt_jax.models.prompt import Prompt, used_arrays

# Arrays of NumPy or JAX, in any floating-point type.
Tokens = Float[Array, "P D"] | Float[np.ndarray, "P D"]
Table = Float[Array, "V D"] | Float[np.ndarray, "V D"]
Measure = Literal["cosine", "distance"]

_BLOCK = 8192  # rows of the table in float32 at a time: 128 MiB for the widest T5


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
class NormRange:
    """Euclidean norms of the vocabulary's embeddings: their mean, 5th and 95th percentile."""

    mean: float
    low: float
    high: float


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
    tokens_pd: Tokens, table_vd: Table, piece: Callable[[int], str], vocab_size: int, k: int
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
    tokens_pd: Tokens, table_vd: Table, vocab_size: int, k: int, by: Measure = "cosine"
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
    norms_p1 = norms(wide_pd) if by == "cosine" else np.maximum(norms(wide_pd), 1.0)
    scaled_pd = (wide_pd / np.where(norms_p1 == 0, 1, norms_p1)).astype(np.float32)
    best_i, best_s = np.zeros((len(wide_pd), 0), np.int64), np.zeros((len(wide_pd), 0), np.float32)
    for start, block_rd in _blocks(table_vd, vocab_size):
        if by == "cosine":
            scores = scaled_pd @ unit(block_rd).T  # [P, R]
        else:  # |t - v|^2 is |t|^2 - 2 (t v - |v|^2 / 2); what is in brackets, over the norm of t
            scores = scaled_pd @ block_rd.T - (np.square(norms(block_rd)).T / (2 * norms_p1)).astype(np.float32)
        indices = np.broadcast_to(np.arange(start, start + len(block_rd)), scores.shape)
        candidates_i = np.concatenate([best_i, indices], axis=1)
        candidates_s = np.concatenate([best_s, scores], axis=1)
        order = np.argsort(-candidates_s, axis=1, kind="stable")[:, :k]  # the best so far have the lower numbers
        best_i = np.take_along_axis(candidates_i, order, axis=1)
        best_s = np.take_along_axis(candidates_s, order, axis=1)
    return best_i


def _neighbors(
    tokens_pd: Tokens, table_vd: Table, piece: Callable[[int], str], indices_pk: Int[np.ndarray, "P k"]
) -> list[tuple[Neighbor, ...]]:
    """The rows of these numbers, with cosines and distances in float64."""
    found = []
    for token_d, indices in zip(np.asarray(tokens_pd, np.float64), indices_pk, strict=True):
        rows_kd = np.asarray(table_vd[indices], np.float64)
        cosines = unit(rows_kd) @ unit(token_d[None])[0]
        distances = norms(rows_kd - token_d)[:, 0]
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


# --------------------------------------------------------------------------------------------------------------
# What is alike


def token_similarity(prompt: Prompt) -> dict[str, Float[np.ndarray, "_ _"]]:
    """Cosines of the used slots of each part of a prompt, each with each.

    A slot of a prefix has the keys and values of all layers. A vector of zeros has the cosine 0 with every other.
    """
    return {name: _cosines(slots(part)) for name, part in prompt.parts.items()}


def prompt_similarity(prompts: Sequence[Prompt]) -> Float[np.ndarray, "E E"]:
    """How alike the prompts of an ensemble are, each with each: cosines, of all that is in their used slots.

    Prompts of one length are compared as whole vectors, slot by slot, although the order of slots is arbitrary: two
    prompts of the same vectors in another order are not found to be alike. If any lengths differ, all prompts are
    compared by the mean of their slots. A vector of zeros has the cosine 0 with every other.

    Args:
      prompts: of the same parts and sizes, none of them stacked.

    Raises:
      ValueError: an empty prompt, or sizes that differ.
    """
    parts = _comparable(prompts)
    if any(len({len(own[name]) for own in parts}) > 1 for name in parts[0]):
        return _cosines(_means(parts))
    return _cosines(np.stack([np.concatenate([array.ravel() for array in own.values()]) for own in parts]))


def task_similarity(
    prompts: Sequence[Prompt],
) -> tuple[Float[np.ndarray, "E E"], Float[np.ndarray, "E E"]]:
    """How alike the tasks of prompts are, by the two measures of SPoT (Vu et al. 2022).

    Neither minds the order of slots, nor their number.

    Args:
      prompts: of the same parts and sizes, none of them stacked.

    Returns:
      Cosines of the prompts' mean slots; and the mean cosine over all pairs of a slot of the one and a slot of the
      other, which a prompt need not have as 1 with itself. Of several parts it is the mean over them.

    Raises:
      ValueError: an empty prompt, or sizes that differ.
    """
    parts = _comparable(prompts)
    # The mean over all pairs is the product of the means.
    pairs = []
    for name in parts[0]:
        directions_ef = np.stack([unit(own[name]).mean(axis=0) for own in parts])
        pairs.append(directions_ef @ directions_ef.T)
    return _cosines(_means(parts)), np.mean(pairs, axis=0)


def nearest_others(similarity_ee: Float[np.ndarray, "E E"]) -> list[list[int]]:
    """For each prompt the numbers of the others, the most similar first."""
    orders = np.argsort(-similarity_ee, axis=1, kind="stable").tolist()
    return [[other for other in order if other != own] for own, order in enumerate(orders)]


def _comparable(prompts: Sequence[Prompt]) -> list[dict[str, Float[np.ndarray, "_ _"]]]:
    """The slots of each part of each prompt, in float64."""
    parts = [{name: slots(part) for name, part in prompt.parts.items()} for prompt in prompts]
    if not all(parts):
        raise ValueError("the prompt is empty")
    if len({tuple(own) for own in parts}) > 1:
        raise ValueError(f"prompts of different parts: {' and '.join(parts[0])}, and others")
    for name in parts[0]:
        widths = sorted({own[name].shape[1] for own in parts})
        if len(widths) > 1:
            raise ValueError(f"prompts of different widths: {widths}")
    return parts


def _means(parts: Sequence[Mapping[str, Float[np.ndarray, "_ _"]]]) -> Float[np.ndarray, "E F"]:
    return np.stack([np.concatenate([array.mean(axis=0) for array in own.values()]) for own in parts])


def _cosines(rows_nf: Float[np.ndarray, "N F"]) -> Float[np.ndarray, "N N"]:
    unit_nf = unit(rows_nf)
    return np.clip(unit_nf @ unit_nf.T, -1, 1)


# --------------------------------------------------------------------------------------------------------------
# Vectors


def virtual_tokens(prompt: Prompt) -> Float[np.ndarray, "P D"]:
    """The used virtual tokens, float32. Raises ValueError if the prompt has none."""
    if prompt.encoder_tokens is None:
        raise ValueError("the prompt has no virtual tokens")
    return used_arrays(prompt.encoder_tokens)["embeddings"].astype(np.float32)


def slots(part: Any) -> Float[np.ndarray, "P F"]:
    """All that is in each used slot of a part, in float64: the virtual token, or keys and values of every layer."""
    in_front = [np.moveaxis(array, part.axes.index("P"), 0) for array in used_arrays(part).values()]
    return np.concatenate([array.reshape(len(array), -1).astype(np.float64) for array in in_front], axis=1)


def vocabulary_size(model: Model) -> int:
    """Rows of the embedding table that some text is embedded by."""
    rows = model.params["embedding"].shape[0]
    return rows if model.tokenizer is None else min(model.tokenizer.vocab_size, rows)


def row_norms(table_vd: Table, rows: int) -> Float[np.ndarray, " R"]:
    """Euclidean norms of the first rows of a table, in float64."""
    return np.concatenate([norms(block_rd)[:, 0] for _, block_rd in _blocks(table_vd, rows)])


def norm_range(values: Float[np.ndarray, " R"]) -> NormRange:
    """Mean and percentiles of norms."""
    low, high = np.percentile(values, (5, 95))
    return NormRange(float(values.mean()), float(low), float(high))


def norms(rows_rd: Float[np.ndarray, "R D"]) -> Float[np.ndarray, "R 1"]:
    """Euclidean norms of rows, in float64."""
    return np.sqrt(np.sum(np.square(rows_rd, dtype=np.float64), axis=1, keepdims=True))


def unit(rows_rd: Float[np.ndarray, "R D"]) -> Float[np.ndarray, "R D"]:
    """The rows' directions; zeros stay zeros."""
    lengths = norms(rows_rd)
    return rows_rd / np.where(lengths == 0, 1, lengths).astype(rows_rd.dtype)


def _blocks(table_vd: Table, rows: int) -> Iterator[tuple[int, Float[np.ndarray, "R D"]]]:
    """The first rows of a table in float32, so many at a time, with the number of the first of them."""
    for start in range(0, rows, _BLOCK):
        yield start, np.asarray(table_vd[start : min(start + _BLOCK, rows)], np.float32)
