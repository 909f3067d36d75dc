"""Looking into a prompt: how long its virtual tokens are, and which words of the vocabulary they lie close to.

Lester et al. 2021, section 7.2: a virtual token's nearest neighbours by cosine in the frozen embedding table form
clusters of like meaning, and class labels that a prompt was initialised with stay among them.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from prompt_jax.models.hub import Model
from prompt_jax.models.prompt import Prompt, used_arrays
from prompt_jax.prompts.files import PromptMetadata
from prompt_jax.sharding import fetch

# Arrays of NumPy or JAX, in any floating-point type.
Tokens = Float[Array, "P D"] | Float[np.ndarray, "P D"]
Table = Float[Array, "V D"] | Float[np.ndarray, "V D"]

_BLOCK = 8192  # rows of the table in float32 at a time: 128 MiB for the widest T5
_TEXT_LIMIT = 160  # characters of one text from a file
_LIST_LIMIT = 12  # entries of one list from a file


@dataclasses.dataclass(frozen=True)
class Neighbour:
    """A piece of the vocabulary near a virtual token."""

    index: int
    piece: str
    cosine: float


@dataclasses.dataclass(frozen=True)
class TokenInspection:
    """One virtual token: its Euclidean norm and its neighbours, the nearest first."""

    norm: float
    neighbours: tuple[Neighbour, ...]


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


def inspect(prompt: Prompt, model: Model, k: int = 5) -> Inspection:
    """The used virtual tokens of a prompt beside the vocabulary of a base.

    Rows of the embedding table beyond the tokenizer's pieces are left out: no text is embedded by them.

    Args:
      prompt: one that is not stacked.
      model: its base. Without a tokenizer, pieces are called by their numbers.
      k: neighbours a token.

    Raises:
      ValueError: the prompt has no virtual tokens, or their width is not the base's.
    """
    tokens_pd, table_vd, tokenizer = _used(prompt), fetch(model.params["embedding"]), model.tokenizer
    if tokens_pd.shape[1] != table_vd.shape[1]:
        raise ValueError(f"the virtual tokens have width {tokens_pd.shape[1]}; {model.name} has {table_vd.shape[1]}")
    if tokenizer is None:
        return inspect_tokens(tokens_pd, table_vd, "#{}".format, len(table_vd), k)
    return inspect_tokens(tokens_pd, table_vd, tokenizer.piece, min(tokenizer.vocab_size, len(table_vd)), k)


def inspect_tokens(
    tokens_pd: Tokens, table_vd: Table, piece: Callable[[int], str], vocab_size: int, k: int
) -> Inspection:
    """Norms and neighbours of virtual tokens [P, D] in the first `vocab_size` rows of a table [V, D].

    `piece` gives the text of a row.
    """
    indices, cosines = nearest(tokens_pd, table_vd, vocab_size, k)
    neighbours = [
        tuple(Neighbour(int(i), piece(int(i)), float(c)) for i, c in zip(*pair, strict=True))
        for pair in zip(indices, cosines, strict=True)
    ]
    norms = row_norms(tokens_pd, len(tokens_pd))
    return Inspection(
        tuple(TokenInspection(float(norm), found) for norm, found in zip(norms, neighbours, strict=True)),
        norm_range(row_norms(table_vd, vocab_size)),
    )


def nearest(
    tokens_pd: Tokens, table_vd: Table, vocab_size: int, k: int
) -> tuple[Int[np.ndarray, "P k"], Float[np.ndarray, "P k"]]:
    """The rows of a table that are nearest to each virtual token by cosine.

    The table is read in blocks, in whatever dtype it has: neither a float32 copy of it nor an array [P, V] is made.

    Args:
      tokens_pd: [P, D] virtual tokens.
      table_vd: [V, D] embedding table.
      vocab_size: only the first so many rows are looked at.
      k: neighbours a token; at most `vocab_size` are found.

    Returns:
      Row numbers [P, k] and cosines [P, k] in float32, the nearest first; of equal ones the lower number first. A
      vector of zeros has the cosine 0 with every other.
    """
    unit_pd = _unit(np.asarray(tokens_pd, np.float64)).astype(np.float32)  # a stranger's values may be near overflow
    best_i = np.zeros((len(unit_pd), 0), np.int64)
    best_c = np.zeros((len(unit_pd), 0), np.float32)
    for start, block_rd in _blocks(table_vd, vocab_size):
        cosines = unit_pd @ _unit(block_rd).T  # [P, R]
        indices = np.broadcast_to(np.arange(start, start + len(block_rd)), cosines.shape)
        candidates_i = np.concatenate([best_i, indices], axis=1)
        candidates_c = np.concatenate([best_c, cosines], axis=1)
        order = np.argsort(-candidates_c, axis=1, kind="stable")[:, :k]  # the best so far have the lower numbers
        best_i = np.take_along_axis(candidates_i, order, axis=1)
        best_c = np.take_along_axis(candidates_c, order, axis=1)
    return best_i, best_c


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
    tokens = [np.asarray(_slots(prompt), np.float64) for prompt in prompts]
    if len({each.shape[1] for each in tokens}) > 1:
        raise ValueError(f"prompts of different widths: {sorted({each.shape[1] for each in tokens})}")
    one_length = len({len(each) for each in tokens}) == 1
    unit_ef = _unit(np.stack([each.ravel() if one_length else each.mean(axis=0) for each in tokens]))
    return np.clip(unit_ef @ unit_ef.T, -1, 1)


def row_norms(table_vd: Table, rows: int) -> Float[np.ndarray, " R"]:
    """Euclidean norms of the first rows of a table, in float64."""
    return np.concatenate([_norms(block_rd)[:, 0] for _, block_rd in _blocks(table_vd, rows)])


def norm_range(norms: Float[np.ndarray, " R"]) -> NormRange:
    """Mean and percentiles of norms."""
    low, high = np.percentile(norms, (5, 95))
    return NormRange(float(norms.mean()), float(low), float(high))


def _blocks(table_vd: Table, rows: int) -> Iterator[tuple[int, Float[np.ndarray, "R D"]]]:
    """The first rows of a table in float32, so many at a time, with the number of the first of them."""
    for start in range(0, rows, _BLOCK):
        yield start, np.asarray(table_vd[start : min(start + _BLOCK, rows)], np.float32)


def _norms(rows_rd: Float[np.ndarray, "R D"]) -> Float[np.ndarray, "R 1"]:
    return np.sqrt(np.sum(np.square(rows_rd, dtype=np.float64), axis=1, keepdims=True))


def _unit(rows_rd: Float[np.ndarray, "R D"]) -> Float[np.ndarray, "R D"]:
    norms = _norms(rows_rd)
    return rows_rd / np.where(norms == 0, 1, norms).astype(rows_rd.dtype)


def _used(prompt: Prompt) -> Float[np.ndarray, "P D"]:
    tokens = prompt.encoder_tokens
    if tokens is None:
        raise ValueError("the prompt has no virtual tokens")
    embeddings = np.asarray(tokens.embeddings, np.float32)
    return embeddings if tokens.mask is None else embeddings[np.asarray(tokens.mask)]


def _slots(prompt: Prompt) -> Float[np.ndarray, "P F"]:
    """All that is in each used slot: the virtual token, and the keys and values of every layer and site."""
    if not prompt.parts:
        raise ValueError("the prompt is empty")
    rows = []
    for part in prompt.parts.values():
        for array in used_arrays(part).values():
            in_front = np.moveaxis(array, part.axes.index("P"), 0)
            rows.append(in_front.reshape(len(in_front), -1))
    return np.concatenate(rows, axis=1)


# --------------------------------------------------------------------------------------------------------------
# Text for the terminal


def describe(name: str, prompt: Prompt, metadata: PromptMetadata, model: Model | None, k: int = 5) -> str:
    """What `prompt-jax inspect FILE` prints: where a prompt comes from, its norms and its nearest pieces.

    The file may be a stranger's: its texts are shortened, and characters that a terminal would obey are escaped.

    Args:
      name: of the file or of one of its members, for the heading.
      prompt: as read from it.
      metadata: as read from it.
      model: the base, or None, which leaves out everything that needs the base's embeddings.
      k: neighbours a token.

    Raises:
      ValueError: the width of virtual tokens is not the base's.
    """
    provenance = _provenance(metadata, prompt)
    width = max(map(len, provenance))
    lines = [printable(name), ""]
    lines += [f"  {name:<{width}}  {value}" for name, value in provenance.items()]
    lines += _prefix_table(prompt)
    if prompt.encoder_tokens is None:
        return "\n".join(lines)
    tokens_pd = _used(prompt)
    if model is None:
        norms = _norm_line(row_norms(tokens_pd, len(tokens_pd)))
        return "\n".join([*lines, f"  {'norms':<{width}}  {norms}", "", _NO_BASE])

    found = inspect(prompt, model, k)
    norms = _norm_line(np.array([token.norm for token in found.tokens]))
    vocabulary = found.vocabulary
    lines += [
        f"  {'norms':<{width}}  {norms}",
        f"  {'':<{width}}  the vocabulary's: mean {vocabulary.mean:.4g}, "
        f"90% of them between {vocabulary.low:.4g} and {vocabulary.high:.4g}",
        "",
        *_neighbour_table(found),
    ]
    if metadata.base is not None and metadata.base.fingerprint != model.fingerprint:
        lines += [
            "",
            f"Pieces and their norms are those of {printable(model.name)}, which is not the prompt's own base.",
        ]
    return "\n".join(lines)


def printable(text: str, limit: int = _TEXT_LIMIT) -> str:
    r"""A text for the terminal: control, format and other invisible characters as escapes such as `\x1b`, one line."""
    escaped = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[: limit + 1])
    return escaped if len(escaped) <= limit else f"{escaped[: limit - 1]}…"


_NO_BASE = (
    "The nearest pieces and the vocabulary's norms are left out: they need the base's embeddings, and the base is not "
    "on\nthis machine. Name it with --model NAME: a Hugging Face name, which may download it, or a folder."
)


def _provenance(metadata: PromptMetadata, prompt: Prompt) -> dict[str, str]:
    """What a file says of its prompt, by the name of the line."""
    base, task_format = metadata.base, metadata.format
    labels = None if task_format is None else _listed(task_format.labels) or "none: any text is an answer"
    found = {
        "base": base and printable(base.name),
        "revision": base and base.revision and printable(base.revision),
        "fingerprint": base and printable(base.fingerprint, 20),
        "method": metadata.method and printable(metadata.method),
        "initialisation": metadata.initialization and printable(metadata.initialization),
        "placement": f"{metadata.placement} the input",
        "length": ", ".join(_length(name, part) for name, part in prompt.parts.items()) or _changes(prompt),
        "task": metadata.task and printable(metadata.task),
        "template": task_format and printable(task_format.template),
        "labels": labels,
        "step": None if metadata.step is None else printable(str(metadata.step), 20),
        "scores": _listed([f"{name} {_number(value)}" for name, value in metadata.scores.items()]),
    }
    if metadata.settings:  # of a member of an ensemble
        found["member's own"] = _listed([f"{name} {value}" for name, value in metadata.settings.items()])
    return {name: value or "not recorded" for name, value in found.items()}


def _length(name: str, part: Any) -> str:
    arrays = used_arrays(part)
    if name == "encoder_tokens":
        return "{} virtual tokens of width {}".format(*arrays["embeddings"].shape)
    layers, slots, heads, width = arrays["keys"].shape
    return f"{slots} keys and values at {name} in each of {layers} layers, {heads} heads of width {width}"


def _changes(prompt: Prompt) -> str:
    leaves = jax.tree.leaves(prompt.base)
    return f"{len(leaves)} arrays of the base, {sum(map(np.size, leaves)):,} parameters"


def _prefix_table(prompt: Prompt) -> list[str]:
    """The mean norms of keys and values in each layer of each site's prefix."""
    lines = []
    for site, part in prompt.parts.items():
        if site == "encoder_tokens":
            continue
        lines += ["", f"  {site}, mean norm of a head's", "  layer       keys     values"]
        norms = [np.linalg.norm(array, axis=-1).mean(axis=(1, 2)) for array in used_arrays(part).values()]
        lines += [f"  {layer:>5}  {k:>9.4g}  {v:>9.4g}" for layer, (k, v) in enumerate(zip(*norms, strict=True))]
    return lines


def _listed(texts: Sequence[str]) -> str:
    shown = ", ".join(printable(text, 40) for text in texts[:_LIST_LIMIT])
    return shown if len(texts) <= _LIST_LIMIT else f"{shown}, and {len(texts) - _LIST_LIMIT} more"


def _number(value: float) -> str:
    try:
        return f"{value:.4f}" if abs(value) < 1e6 else f"{value:.4g}"
    except OverflowError:  # JSON has integers that no float holds
        return "out of range"


def _norm_line(norms: Float[np.ndarray, " P"]) -> str:
    return f"mean {norms.mean():.4g}, from {norms.min():.4g} to {norms.max():.4g}"


def _neighbour_table(inspection: Inspection) -> list[str]:
    """A line for each virtual token: number, norm, pieces with their cosines in columns."""
    cells = [
        [f"{printable(near.piece, 24)} {near.cosine:.2f}" for near in token.neighbours] for token in inspection.tokens
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  token       norm  nearest pieces, with cosines"]
    for number, (token, row) in enumerate(zip(inspection.tokens, cells, strict=True)):
        aligned = "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        lines.append(f"  {number:>5}  {token.norm:>9.4g}  {aligned}".rstrip())
    return lines
