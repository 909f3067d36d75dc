"""ROUGE-L and CIDEr-D as computed by MS COCO's evaluation (pycocoevalcap), which E2E's measure_scores.py uses."""

import math
from collections import Counter
from collections.abc import Sequence

from prompt_jax.metrics.corpus_metric import References
from prompt_jax.metrics.ngrams import ngrams, words

_ROUGE_BETA = 1.2  # weight of recall
_CIDER_ORDER = 4
_CIDER_SIGMA = 6.0  # words; width of the penalty on length differences
_DROPPED = frozenset(("'", '"', "`", ".", "?", "!", ",", ":", ";", "-", "--", "..."))


def coco_words(text: str) -> list[str]:
    """Return lowercase words without punctuation.

    MS COCO's evaluation tokenizes with the Stanford parser (Java), which differs on few texts: on E2E's development
    set, ROUGE-L is equal and CIDEr differs by 0.0001.
    """
    return [word for word in words(text) if word not in _DROPPED]


def rouge_l(references: References, predictions: Sequence[str]) -> list[float]:
    """Return each answer's F-score on the longest common subsequence of words.

    Precision and recall are each the highest with any reference.
    """

    def score(texts: Sequence[str], prediction: str) -> float:
        given, expected = coco_words(prediction), [coco_words(text) for text in texts]
        common = [_common_length(given, tokens) for tokens in expected]
        if not any(common):
            return 0.0
        precision = max(common) / len(given)
        recall = max(length / len(tokens) for length, tokens in zip(common, expected, strict=True) if tokens)
        return (1 + _ROUGE_BETA**2) * precision * recall / (recall + _ROUGE_BETA**2 * precision)

    return [score(texts, prediction) for texts, prediction in zip(references, predictions, strict=True)]


def _common_length(a: Sequence[str], b: Sequence[str]) -> int:
    """Return the length of the longest common subsequence."""
    lengths = [0] * (len(b) + 1)
    for word in a:
        diagonal = 0
        for j, other in enumerate(b, 1):
            above = lengths[j]
            lengths[j] = diagonal + 1 if word == other else max(above, lengths[j - 1])
            diagonal = above
    return lengths[-1]


def cider(references: References, predictions: Sequence[str]) -> list[float]:
    """Return each answer's CIDEr-D (Vedantam et al. 2015), from 0 to 10.

    The value is ten times the mean, over references and n, of a cosine of weighted n-gram counts. An n-gram weighs more
    if fewer examples have it in their references, so a value depends on the other examples. For a single example it
    is 0.
    """
    counts = [[ngrams(coco_words(text), _CIDER_ORDER) for text in texts] for texts in references]
    frequency: Counter[tuple[str, ...]] = Counter()
    for texts in counts:
        frequency.update(set().union(*texts))

    def vector(text: Counter[tuple[str, ...]]) -> tuple[dict[tuple[str, ...], float], list[float], int]:
        """Return weights, their norms by n, and the number of bigrams, which the metric takes as the length."""
        weights = {ngram: n * math.log(len(counts) / max(1, frequency[ngram])) for ngram, n in text.items()}
        squares = [0.0] * _CIDER_ORDER
        for ngram, weight in weights.items():
            squares[len(ngram) - 1] += weight**2
        return weights, [math.sqrt(square) for square in squares], sum(n for g, n in text.items() if len(g) == 2)

    def score(texts: Sequence[Counter[tuple[str, ...]]], prediction: str) -> float:
        given, given_norms, given_length = vector(ngrams(coco_words(prediction), _CIDER_ORDER))
        cosines = 0.0
        for weights, norms, length in map(vector, texts):
            products = [0.0] * _CIDER_ORDER
            for ngram, weight in given.items():
                if ngram in weights:
                    products[len(ngram) - 1] += min(weight, weights[ngram]) * weights[ngram]
            penalty = math.exp(-((given_length - length) ** 2) / (2 * _CIDER_SIGMA**2))
            scales = [a * b for a, b in zip(given_norms, norms, strict=True)]
            cosines += penalty * sum(p / n for p, n in zip(products, scales, strict=True) if n)
        return 10 * cosines / _CIDER_ORDER / len(texts)

    return [score(texts, prediction) for texts, prediction in zip(counts, predictions, strict=True)]
