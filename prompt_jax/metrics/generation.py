"""Metrics of texts against one or more references each: those of E2E, WebNLG, DART, XSum, and of questions.

Every one of them is a function of a sum over examples: of n-gram counts for BLEU, of edits for TER, of the examples'
own scores for a mean. So a score on a resample of the examples takes no more than adding up (`CorpusMetric`).

sacrebleu and rouge-score compute what they compute as the official scripts do. NIST, and ROUGE-L and CIDEr as MS COCO
has them, are written out here, since no package has them as E2E's measure_scores.py does; METEOR is its authors'
program (`prompt_jax.metrics.meteor`). The scorers of WebNLG and DART normalize texts first (`_as_in_webnlg`,
`_as_in_dart`).
Letters of shapes: N examples, K numbers that are added up.
"""

import dataclasses
import functools
import itertools
import math
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from prompt_jax.metrics import meteor

References = Sequence[Sequence[str]]  # of each example, one or more
Statistics = Callable[[References, Sequence[str]], Float[np.ndarray, "N K"]]

_NIST_ORDER = 5
_NIST_BETA = math.log(0.5) / math.log(1.5) ** 2  # half the score where an answer has two thirds of the words
_COCO_BETA = 1.2  # recall's weight in ROUGE-L
_COCO_DROPPED = frozenset(("'", '"', "`", ".", "?", "!", ",", ":", ";", "-", "--", "..."))  # not words in MS COCO's
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NOT_IN_WORDS = re.compile(r"(\W)")
_CIDER_ORDER = 4
_CIDER_SIGMA = 6.0  # words: of the penalty on a difference in length


@dataclasses.dataclass(frozen=True)
class CorpusMetric:
    """A score of several examples that is a function of a sum over them.

    Attributes:
      statistics: of references and predictions, what is added up.
      score: the score of examples whose statistics add up to this [K].
    """

    statistics: Statistics
    score: Callable[[Float[np.ndarray, " K"]], float]

    def __call__(self, references: References, predictions: Sequence[str]) -> float:
        return self.score(self.statistics(references, predictions).sum(axis=0))


def mean_of(values: Callable[[References, Sequence[str]], Sequence[float]]) -> CorpusMetric:
    """The mean of what each example is worth, [N]."""

    def statistics(references: References, predictions: Sequence[str]) -> Float[np.ndarray, "N 2"]:
        worth = np.asarray(values(references, predictions), np.float64)
        return np.stack([worth, np.ones_like(worth)], axis=1)

    return CorpusMetric(statistics, lambda total: float(total[0] / total[1]))


def _normalized(metric: CorpusMetric, normalize: Callable[[str], str], most: int | None = None) -> CorpusMetric:
    """The metric on normalized texts, with at most the first `most` references of an example."""

    def statistics(references: References, predictions: Sequence[str]) -> Float[np.ndarray, "N K"]:
        kept = [[normalize(text) for text in texts[:most]] for texts in references]
        return metric.statistics(kept, [normalize(text) for text in predictions])

    return CorpusMetric(statistics, metric.score)


# --------------------------------------------------------------------------------------------------------------
# By sacrebleu and rouge-score


def _sacrebleu(name: str, missing: str | None = None, most: int | None = None, **options: Any) -> CorpusMetric:
    """A metric of sacrebleu, as a fraction.

    Args:
      name: the metric's class.
      missing: the text in place of each reference that an example has fewer of than `most`.
      most: how many references of an example count; None is as many as any example has.
      **options: the metric's.
    """

    @functools.cache
    def metric() -> Any:
        from sacrebleu import metrics

        return getattr(metrics, name)(**options)

    def statistics(references: References, predictions: Sequence[str]) -> Float[np.ndarray, "N K"]:
        columns = range(most or max(map(len, references)))
        streams = [[own[i] if i < len(own) else missing for own in references] for i in columns]
        # Not public, and what sacrebleu's own bootstrap uses; the tests compare with its public corpus_score.
        return np.array(metric()._extract_corpus_statistics(list(predictions), streams), np.float64)

    def score(total: Float[np.ndarray, " K"]) -> float:
        return float(metric()._compute_score_from_stats(total.tolist()).score) / 100

    return CorpusMetric(statistics, score)


def _rouge(kind: str) -> CorpusMetric:
    """A metric of rouge-score: F1 over stems, as in BART's evaluation. Of several references the best one counts.

    The score is the mean over all examples. The prefix paper's code averages the medians of bootstrap resamples of each
    batch instead, so its figures depend on the batch size and on random draws.
    """

    def values(references: References, predictions: Sequence[str]) -> list[float]:
        from rouge_score.rouge_scorer import RougeScorer

        scorer = RougeScorer([kind], use_stemmer=True)
        pairs = zip(references, predictions, strict=True)
        return [scorer.score_multi(own, prediction)[kind].fmeasure for own, prediction in pairs]

    return mean_of(values)


# --------------------------------------------------------------------------------------------------------------
# Written out


def _words(text: str) -> list[str]:
    """Lower-cased words and signs, by mteval-v13a's rules."""
    return _tokenizer()(text.lower()).split()


@functools.cache
def _tokenizer() -> Callable[[str], str]:
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    return Tokenizer13a()


def _coco_words(text: str) -> list[str]:
    """Lower-cased words without punctuation.

    MS COCO's evaluation, which E2E's uses, has words from the Stanford parser's tokenizer (Java). These differ from
    those for few texts: on E2E's development set ROUGE-L is the same, and CIDEr to 0.0001.
    """
    return [word for word in _words(text) if word not in _COCO_DROPPED]


def _ngrams(words: Sequence[str], order: int) -> Counter[tuple[str, ...]]:
    """How often each sequence of 1 to `order` words occurs."""
    return Counter(tuple(words[i : i + n]) for n in range(1, order + 1) for i in range(len(words) - n + 1))


def _as_in_dart(text: str) -> str:
    """Lower-case the text and put spaces around every character that is not a letter, a digit or an underscore.

    DART's references are published in this form (Yale-LILY/dart, `evaluation/dart_reference`).
    """
    return " ".join(" ".join(_NOT_IN_WORDS.split(text.lower())).split())


def _as_in_webnlg(text: str) -> str:
    """Transliterate the text to ASCII, then proceed as DART does (WebNLG 2017, `evaluation.py`).

    The official script uses the package Unidecode. text-unidecode has earlier tables of it under a permissive license,
    with the same result for every text of WebNLG 2017.
    """
    from text_unidecode import unidecode

    return _as_in_dart(unidecode(text))


def _nist_statistics(references: References, predictions: Sequence[str]) -> Float[np.ndarray, "N K"]:
    """The information of the n-grams that were met and the number of all, by n, and what lengths are compared by.

    As mteval-v13a has it (Doddington 2002): n-grams count as often as in the reference that has them most often, their
    information is that in all references of all examples. The last five numbers are the words of the answer, the mean
    words of its references, their total words, how many of them are not empty, and 1.
    """
    words = [[_words(text) for text in own] for own in references]
    counts = [[_ngrams(text, _NIST_ORDER) for text in own] for own in words]
    everything: Counter[tuple[str, ...]] = Counter()
    for each in itertools.chain.from_iterable(counts):
        everything.update(each)
    everything[()] = sum(len(text) for own in words for text in own)

    rows = []
    for own, own_counts, prediction in zip(words, counts, predictions, strict=True):
        given = _words(prediction)
        most = functools.reduce(Counter.__or__, own_counts)
        information, total = [0.0] * _NIST_ORDER, [0.0] * _NIST_ORDER
        for ngram, count in _ngrams(given, _NIST_ORDER).items():
            total[len(ngram) - 1] += count
            if met := min(count, most[ngram]):
                information[len(ngram) - 1] += met * math.log2(everything[ngram[:-1]] / everything[ngram])
        length = sum(map(len, own))
        rows.append([*information, *total, len(given), length / len(own), length, sum(map(bool, own)), 1])
    return np.array(rows)


def _nist_score(total: Float[np.ndarray, " K"], perl: bool = False) -> float:
    """NIST as E2E's measure_scores.py has it: with `--python`, or with the Perl script mteval-v13a, its default.

    The two differ in the length that answers shorter than their references are penalized against. Python takes the
    mean length of each example's references. Perl takes the mean length of all references of all examples, in which
    examples with many references weigh more. An empty answer has no words, as in Perl; Python counts one.
    """
    information, counts, (given, expected, words, texts, examples) = np.split(total, (_NIST_ORDER, 2 * _NIST_ORDER))
    if perl and texts:
        expected = words / texts * examples
    if not given:
        return 0.0
    ratio = min(1.0, given / expected) if expected else 1.0
    return float((information / np.maximum(counts, 1)).sum() * math.exp(_NIST_BETA * math.log(ratio) ** 2))


def _coco_rouge_l(references: References, predictions: Sequence[str]) -> list[float]:
    """F of the longest common subsequence in words, with the highest precision and the highest recall of any reference.

    As in MS COCO's evaluation (pycocoevalcap).
    """

    def value(own: Sequence[str], prediction: str) -> float:
        given, expected = _coco_words(prediction), [_coco_words(text) for text in own]
        common = [_common(given, words) for words in expected]
        if not any(common):
            return 0.0
        precision = max(common) / len(given)
        recall = max(length / len(words) for length, words in zip(common, expected, strict=True) if words)
        return (1 + _COCO_BETA**2) * precision * recall / (recall + _COCO_BETA**2 * precision)

    return [value(own, prediction) for own, prediction in zip(references, predictions, strict=True)]


def _common(a: Sequence[str], b: Sequence[str]) -> int:
    """The length of the longest common subsequence."""
    lengths = [0] * (len(b) + 1)
    for word in a:
        diagonal = 0
        for j, other in enumerate(b, 1):
            above = lengths[j]
            lengths[j] = diagonal + 1 if word == other else max(above, lengths[j - 1])
            diagonal = above
    return lengths[-1]


def _cider(references: References, predictions: Sequence[str]) -> list[float]:
    """CIDEr-D (Vedantam et al. 2015) of each example, as MS COCO's evaluation (pycocoevalcap) has it.

    Ten times the mean over references and over n of a cosine of n-grams weighted by how few examples' references have
    them, so that a value depends on what other examples there are; of a single example it is 0.
    """
    counts = [[_ngrams(_coco_words(text), _CIDER_ORDER) for text in own] for own in references]
    frequency: Counter[tuple[str, ...]] = Counter()
    for own in counts:
        frequency.update(set().union(*own))

    def vector(ngrams: Counter[tuple[str, ...]]) -> tuple[dict[tuple[str, ...], float], list[float], int]:
        """Weights, their norms by n, and the number of pairs of words, which the metric takes for the length."""
        weights = {ngram: n * math.log(len(counts) / max(1, frequency[ngram])) for ngram, n in ngrams.items()}
        squares = [0.0] * _CIDER_ORDER
        for ngram, weight in weights.items():
            squares[len(ngram) - 1] += weight**2
        return weights, [math.sqrt(square) for square in squares], sum(n for g, n in ngrams.items() if len(g) == 2)

    def value(own: Sequence[Counter[tuple[str, ...]]], prediction: str) -> float:
        given, given_norms, given_length = vector(_ngrams(_coco_words(prediction), _CIDER_ORDER))
        cosines = 0.0
        for weights, norms, length in map(vector, own):
            products = [0.0] * _CIDER_ORDER
            for ngram, weight in given.items():
                if ngram in weights:
                    products[len(ngram) - 1] += min(weight, weights[ngram]) * weights[ngram]
            near = math.exp(-((given_length - length) ** 2) / (2 * _CIDER_SIGMA**2))
            lengths = [a * b for a, b in zip(given_norms, norms, strict=True)]
            cosines += near * sum(p / n for p, n in zip(products, lengths, strict=True) if n)
        return 10 * cosines / _CIDER_ORDER / len(own)

    return [value(own, prediction) for own, prediction in zip(counts, predictions, strict=True)]


def normalize_answer(text: str) -> str:
    """An answer as SQuAD's evaluation compares it: lower case, no punctuation, no articles, one space between words."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def _squad_f1(references: References, predictions: Sequence[str]) -> list[float]:
    """F1 of an answer's words with those of the reference that it has most in common with (Rajpurkar et al. 2016).

    Words are those of `normalize_answer` and count as often as they occur. Without a word in common it is 0, also
    between two texts without words: SQuAD 1.1's rule.
    """

    def value(reference: str, prediction: str) -> float:
        expected, given = (normalize_answer(text).split() for text in (reference, prediction))
        common = (Counter(expected) & Counter(given)).total()
        return 2 * common / (len(expected) + len(given)) if common else 0.0

    return [
        max(value(text, prediction) for text in own) for own, prediction in zip(references, predictions, strict=True)
    ]


_multi_bleu = functools.partial(_sacrebleu, "BLEU", missing="", tokenize="none", smooth_method="none", force=True)
_METEOR = CorpusMetric(meteor.statistics, meteor.score)
_TER = _sacrebleu("TER")

# Values are fractions in [0, 1], but those of NIST (bits) and CIDEr (0 to 10), and TER may be more than 1.
METRICS: dict[str, CorpusMetric] = {
    # mteval-v13a without case, as in E2E's measure_scores.py.
    "bleu": _sacrebleu("BLEU", lowercase=True, smooth_method="none", force=True),
    # multi-bleu.perl, on words between spaces. It has all references in as many files, and an empty line where an
    # example has no more, which counts as a reference of length 0.
    "multi_bleu": _multi_bleu(),
    # The prefix paper's code calls measure_scores.py with --python. Perl's variant is the script's default.
    "nist": CorpusMetric(_nist_statistics, _nist_score),
    "nist_perl": CorpusMetric(_nist_statistics, functools.partial(_nist_score, perl=True)),
    # On texts as they are, and on MS COCO's words for E2E: a difference of half a point.
    "meteor": _METEOR,
    "coco_meteor": _normalized(_METEOR, lambda text: " ".join(_coco_words(text))),
    "coco_rouge_l": mean_of(_coco_rouge_l),
    "cider": mean_of(_cider),
    "rouge_1": _rouge("rouge1"),
    "rouge_2": _rouge("rouge2"),
    "rouge_l": _rouge("rougeL"),
    "chrf": _sacrebleu("CHRF"),
    # tercom 0.7.25. Slow: a second for sixty references.
    "ter": _TER,
    "squad_f1": mean_of(_squad_f1),
    # The official scorers of WebNLG 2017 and DART 1.1.1: normalized texts, the first three references.
    **{
        f"{benchmark}_{name}": _normalized(metric, normalize, most=3)
        for benchmark, normalize in (("webnlg", _as_in_webnlg), ("dart", _as_in_dart))
        for name, metric in (("bleu", _multi_bleu(most=3)), ("meteor", _METEOR), ("ter", _TER))
    },
}
