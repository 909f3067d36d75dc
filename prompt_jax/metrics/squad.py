"""SQuAD's normalization of answers and its F1 (Rajpurkar et al. 2016)."""

import re
import string
from collections import Counter
from collections.abc import Sequence

from prompt_jax.metrics.corpus_metric import References

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalize_answer(text: str) -> str:
    """Return an answer in lowercase, without punctuation and articles, with single spaces between words."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def word_f1(references: References, predictions: Sequence[str]) -> list[float]:
    """Return each answer's highest F1 with any reference, on the words of `normalize_answer`.

    Repeated words count repeatedly. Without common words F1 is 0, even between two empty texts, as in SQuAD 1.1.
    """

    def score(reference: str, prediction: str) -> float:
        expected, given = (normalize_answer(text).split() for text in (reference, prediction))
        common = (Counter(expected) & Counter(given)).total()
        return 2 * common / (len(expected) + len(given)) if common else 0.0

    pairs = zip(references, predictions, strict=True)
    return [max(score(text, prediction) for text in texts) for texts, prediction in pairs]
