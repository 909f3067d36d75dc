"""NIST (Doddington 2002), as computed by E2E's measure_scores.py."""

import functools
import itertools
import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from prompt_jax.metrics.corpus_metric import References
from prompt_jax.metrics.ngrams import ngrams, words

_ORDER = 5
_BETA = math.log(0.5) / math.log(1.5) ** 2  # halves the score if an answer has two thirds of the words


def statistics(references: References, predictions: Sequence[str]) -> Float[np.ndarray, "N K"]:
    """Return, for each n, the information of matched n-grams and the number of n-grams, and then 5 length statistics.

    As in mteval-v13a, an n-gram matches as often as it occurs in the reference that contains it most often. The
    information of an n-gram is computed from all references of all examples. The lengths are the words of the answer,
    the mean words of its references, their total words, the number of non-empty references, and 1.
    """
    reference_words = [[words(text) for text in texts] for texts in references]
    counts = [[ngrams(tokens, _ORDER) for tokens in texts] for texts in reference_words]
    everything: Counter[tuple[str, ...]] = Counter()
    for each in itertools.chain.from_iterable(counts):
        everything.update(each)
    everything[()] = sum(len(tokens) for texts in reference_words for tokens in texts)

    rows = []
    for texts, text_counts, prediction in zip(reference_words, counts, predictions, strict=True):
        given = words(prediction)
        highest = functools.reduce(Counter.__or__, text_counts)
        information, total = [0.0] * _ORDER, [0.0] * _ORDER
        for ngram, count in ngrams(given, _ORDER).items():
            total[len(ngram) - 1] += count
            if matches := min(count, highest[ngram]):
                information[len(ngram) - 1] += matches * math.log2(everything[ngram[:-1]] / everything[ngram])
        length = sum(map(len, texts))
        rows.append([*information, *total, len(given), length / len(texts), length, sum(map(bool, texts)), 1])
    return np.array(rows)


def score(total: Float[np.ndarray, " K"], perl: bool = False) -> float:
    """Return NIST as measure_scores.py computes it with `--python` or, by default there, with Perl's mteval-v13a.

    The two differ in the reference length of the penalty on short answers. Python takes the mean length of each
    example's references. Perl takes the mean length of all references of all examples, in which examples with many
    references weigh more. An empty answer has no words, as in Perl; Python counts one.
    """
    information, counts, (given, expected, tokens, texts, examples) = np.split(total, (_ORDER, 2 * _ORDER))
    if perl and texts:
        expected = tokens / texts * examples
    if not given:
        return 0.0
    ratio = min(1.0, given / expected) if expected else 1.0
    return float((information / np.maximum(counts, 1)).sum() * math.exp(_BETA * math.log(ratio) ** 2))
