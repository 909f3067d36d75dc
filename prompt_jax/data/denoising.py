"""T5's pretraining objectives: span corruption and prefix language modeling (Raffel et al. 2020, section 3).

NumPy only. A text is its token ids [T] without an end token. Token counts are rounded as in T5's code, so that inputs
and targets have the same lengths.
"""

import numpy as np
from jaxtyping import Bool, Int

NOISE_DENSITY = 0.15  # share of tokens that are masked
MEAN_SPAN_LENGTH = 3.0  # tokens


def noise_counts(length: int) -> tuple[int, int]:
    """Return the number of masked tokens of a text, at least one and not all, and the number of spans."""
    noise = min(max(round(length * NOISE_DENSITY), 1), length - 1)
    return noise, min(max(round(noise / MEAN_SPAN_LENGTH), 1), length - noise)


def corrupted_lengths(length: int) -> tuple[int, int]:
    """Return the lengths of input and target, end tokens included, for a text of this length."""
    noise, spans = noise_counts(length)
    return length - noise + spans + 1, noise + spans + 1


def max_text_length(input_length: int) -> int:
    """Return the longest text whose input has at most `input_length` tokens, end token included.

    Raises:
      ValueError: no text is short enough.
    """
    length = 2
    if corrupted_lengths(length)[0] > input_length:
        raise ValueError(f"an input has at least {corrupted_lengths(length)[0]} tokens, and may have {input_length}")
    while corrupted_lengths(length + 1)[0] <= input_length:
        length += 1
    return length


def span_mask(length: int, random: np.random.Generator) -> Bool[np.ndarray, " T"]:
    """Return which tokens are masked. Kept and masked spans alternate; the first is kept and the last is masked.

    All masks with `noise_counts` are equally likely, as with T5's `random_spans_noise_mask`.

    Raises:
      ValueError: fewer than two tokens.
    """
    if length < 2:
        raise ValueError(f"span corruption needs at least 2 tokens, not {length}")
    noise, spans = noise_counts(length)

    def segment_lengths(total: int) -> np.ndarray:
        """Draw `spans` positive numbers with this sum."""
        ends = np.sort(random.choice(total - 1, spans - 1, replace=False)) + 1
        return np.diff(ends, prepend=0, append=total)

    lengths = np.stack([segment_lengths(length - noise), segment_lengths(noise)], axis=1)
    return np.repeat(np.arange(2 * spans) % 2 == 1, lengths.ravel())


def corrupt(
    ids: Int[np.ndarray, " T"], mask: Bool[np.ndarray, " T"], sentinel: int
) -> tuple[Int[np.ndarray, " S"], Int[np.ndarray, " U"]]:
    """Return input and target. In each of them, sentinels replace the spans that are in the other.

    Args:
      ids: the text's token ids.
      mask: which tokens the target contains instead of the input.
      sentinel: the id of the first sentinel, `<extra_id_0>`. The ids of the next ones count down from it.
    """

    def drop(dropped: np.ndarray) -> np.ndarray:
        first = dropped & ~np.concatenate([[False], dropped[:-1]])
        return np.where(first, sentinel + 1 - np.cumsum(first), ids)[first | ~dropped].astype(ids.dtype)

    return drop(mask), drop(~mask)


def split_prefix(
    ids: Int[np.ndarray, " T"], random: np.random.Generator
) -> tuple[Int[np.ndarray, " S"], Int[np.ndarray, " U"]]:
    """Split a text into prefix and continuation at a uniformly random position. Neither is empty.

    Raises:
      ValueError: fewer than two tokens.
    """
    if len(ids) < 2:
        raise ValueError(f"a split needs at least 2 tokens, not {len(ids)}")
    place = int(random.integers(1, len(ids)))
    return ids[:place], ids[place:]
