"""What T5 is pretrained on: text with spans replaced by sentinels, and text cut in two (Raffel et al. 2020, section 3).

NumPy only. A text is its token ids [T], without an end token; what is left out of the input is the target. Numbers of
tokens are rounded as T5's code rounds them, so that inputs and targets have the lengths that they have there.
"""

import numpy as np
from jaxtyping import Bool, Int

NOISE = 0.15  # the share of tokens that is replaced
SPAN = 3.0  # the mean length of what is replaced at once, in tokens


def noise_counts(length: int) -> tuple[int, int]:
    """How many of so many tokens are replaced, and in how many spans; at least one, and not all."""
    noise = min(max(round(length * NOISE), 1), length - 1)
    return noise, min(max(round(noise / SPAN), 1), length - noise)


def corrupted_lengths(length: int) -> tuple[int, int]:
    """How many tokens input and target have, end tokens included, of a text of so many."""
    noise, spans = noise_counts(length)
    return length - noise + spans + 1, noise + spans + 1


def text_length(input_length: int) -> int:
    """The most tokens of a text whose input has at most `input_length` tokens, end token included.

    Raises:
      ValueError: there is none.
    """
    length = 2
    if corrupted_lengths(length)[0] > input_length:
        raise ValueError(f"an input has at least {corrupted_lengths(length)[0]} tokens, and may have {input_length}")
    while corrupted_lengths(length + 1)[0] <= input_length:
        length += 1
    return length


def span_mask(length: int, random: np.random.Generator) -> Bool[np.ndarray, " T"]:
    """Which tokens are replaced: spans in turns, the first one stays and the last one does not.

    All masks of `noise_counts` are equally likely (T5's `random_spans_noise_mask`).

    Raises:
      ValueError: fewer than two tokens.
    """
    if length < 2:
        raise ValueError(f"spans are replaced in texts of at least 2 tokens, not {length}")
    noise, spans = noise_counts(length)

    def parts(total: int) -> np.ndarray:
        """`spans` positive numbers with this sum."""
        ends = np.sort(random.choice(total - 1, spans - 1, replace=False)) + 1
        return np.diff(ends, prepend=0, append=total)

    lengths = np.stack([parts(length - noise), parts(noise)], axis=1)
    return np.repeat(np.arange(2 * spans) % 2 == 1, lengths.ravel())


def corrupt(
    ids: Int[np.ndarray, " T"], mask: Bool[np.ndarray, " T"], sentinel: int
) -> tuple[Int[np.ndarray, " S"], Int[np.ndarray, " U"]]:
    """Input and target: each has sentinels in place of the spans that the other one has.

    Args:
      ids: the text's.
      mask: what the target has, and the input does not.
      sentinel: the id of the first sentinel, `<extra_id_0>`; those of the next ones count down from it.
    """

    def without(left_out: np.ndarray) -> np.ndarray:
        first = left_out & ~np.concatenate([[False], left_out[:-1]])
        return np.where(first, sentinel + 1 - np.cumsum(first), ids)[first | ~left_out].astype(ids.dtype)

    return without(mask), without(~mask)


def cut_in_two(
    ids: Int[np.ndarray, " T"], random: np.random.Generator
) -> tuple[Int[np.ndarray, " S"], Int[np.ndarray, " U"]]:
    """A text's beginning and its rest, cut anywhere with the same probability; none of them is empty.

    Raises:
      ValueError: fewer than two tokens.
    """
    if len(ids) < 2:
        raise ValueError(f"a text is cut in two if it has at least 2 tokens, not {len(ids)}")
    place = int(random.integers(1, len(ids)))
    return ids[:place], ids[place:]
