"""Metrics of text against one or more references, as E2E, WebNLG, DART, XSum and question answering use them.

sacrebleu and rouge-score compute the same values as the official scripts. NIST, and MS COCO's ROUGE-L and CIDEr, are
implemented in this package, since no library computes them as E2E's measure_scores.py does. METEOR runs the
program of its authors. The official scorers of WebNLG and DART normalize texts first.
"""

import functools
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from prompt_jax.metrics import coco, meteor, nist, squad
from prompt_jax.metrics.corpus_metric import CorpusMetric, References, mean_of, on_normalized_text

_NOT_IN_WORDS = re.compile(r"(\W)")


def _sacrebleu(
    name: str, missing: str | None = None, max_references: int | None = None, **options: Any
) -> CorpusMetric:
    """Return a metric of sacrebleu as a fraction.

    Args:
      name: the metric's class.
      missing: the text that fills up the references of an example that has fewer than the others.
      max_references: how many references of an example count; None for all.
      **options: the metric's options.
    """

    @functools.cache
    def metric() -> Any:
        from sacrebleu import metrics

        return getattr(metrics, name)(**options)

    def statistics(references: References, predictions: Sequence[str]) -> Float[np.ndarray, "N K"]:
        columns = range(max_references or max(map(len, references)))
        streams = [[texts[i] if i < len(texts) else missing for texts in references] for i in columns]
        # Private, but sacrebleu's bootstrap uses it too. The tests compare with the public corpus_score.
        return np.array(metric()._extract_corpus_statistics(list(predictions), streams), np.float64)

    def score(total: Float[np.ndarray, " K"]) -> float:
        return float(metric()._compute_score_from_stats(total.tolist()).score) / 100

    return CorpusMetric(statistics, score)


def _rouge(kind: str) -> CorpusMetric:
    """Return a metric of rouge-score: F1 on stems, as in BART's evaluation, with the best of several references.

    The score is the mean over all examples. The prefix-tuning paper's code averages the medians of bootstrap samples of
    each batch instead, so its figures depend on the batch size and on random draws.
    """

    def scores(references: References, predictions: Sequence[str]) -> list[float]:
        from rouge_score.rouge_scorer import RougeScorer

        scorer = RougeScorer([kind], use_stemmer=True)
        pairs = zip(references, predictions, strict=True)
        return [scorer.score_multi(texts, prediction)[kind].fmeasure for texts, prediction in pairs]

    return mean_of(scores)


def _dart_text(text: str) -> str:
    """Lowercase the text and put spaces around every character that is not a letter, a digit or an underscore.

    DART's references are published in this form (Yale-LILY/dart, `evaluation/dart_reference`).
    """
    return " ".join(" ".join(_NOT_IN_WORDS.split(text.lower())).split())


def _webnlg_text(text: str) -> str:
    """Transliterate the text to ASCII, then normalize it as for DART (WebNLG 2017, `evaluation.py`).

    The official script uses the package Unidecode. text-unidecode has an earlier version of its tables under a
    permissive license. Both give the same result for every text of WebNLG 2017.
    """
    from text_unidecode import unidecode

    return _dart_text(unidecode(text))


_multi_bleu = functools.partial(_sacrebleu, "BLEU", missing="", tokenize="none", smooth_method="none", force=True)
_METEOR = CorpusMetric(meteor.statistics, meteor.score)
_TER = _sacrebleu("TER")

# Values are fractions in [0, 1], except NIST (bits), CIDEr (0 to 10), and TER, which can exceed 1.
METRICS: dict[str, CorpusMetric] = {
    # mteval-v13a, case-insensitive, as in E2E's measure_scores.py.
    "bleu": _sacrebleu("BLEU", lowercase=True, smooth_method="none", force=True),
    # multi-bleu.perl, on whitespace tokens. It reads one file per reference, with an empty line where an example has
    # fewer references. Such a line counts as a reference of length 0.
    "multi_bleu": _multi_bleu(),
    # The prefix-tuning paper's code calls measure_scores.py with --python. The script's default is Perl.
    "nist": CorpusMetric(nist.statistics, nist.score),
    "nist_perl": CorpusMetric(nist.statistics, functools.partial(nist.score, perl=True)),
    # `meteor` takes texts verbatim, `coco_meteor` MS COCO's words, as for E2E. They differ by half a point.
    "meteor": _METEOR,
    "coco_meteor": on_normalized_text(_METEOR, lambda text: " ".join(coco.coco_words(text))),
    "coco_rouge_l": mean_of(coco.rouge_l),
    "cider": mean_of(coco.cider),
    "rouge_1": _rouge("rouge1"),
    "rouge_2": _rouge("rouge2"),
    "rouge_l": _rouge("rougeL"),
    "chrf": _sacrebleu("CHRF"),
    # tercom 0.7.25. Slow: a second for sixty references.
    "ter": _TER,
    "squad_f1": mean_of(squad.word_f1),
    # The official scorers of WebNLG 2017 and DART 1.1.1: normalized texts and the first three references.
    **{
        f"{benchmark}_{name}": on_normalized_text(metric, normalize, max_references=3)
        for benchmark, normalize in (("webnlg", _webnlg_text), ("dart", _dart_text))
        for name, metric in (("bleu", _multi_bleu(max_references=3)), ("meteor", _METEOR), ("ter", _TER))
    },
}
