"""Metrics of whole answers, and a lookup of text metrics by name."""

import operator
from collections.abc import Callable, Sequence

from prompt_jax.metrics import generation
from prompt_jax.metrics.corpus_metric import CorpusMetric, References, mean_of
from prompt_jax.metrics.final_answer import same_final_answer
from prompt_jax.metrics.squad import normalize_answer

# A correct text, or several correct texts.
Target = str | Sequence[str]
MetricFn = Callable[[Sequence[Target], Sequence[str]], dict[str, float]]

# Words that do not identify a referent (T5's list).
_DETERMINERS = frozenset(
    (
        *("a", "an", "few", "her", "his", "each", "every", "many", "much", "my", "our", "some"),
        *("that", "the", "their", "these", "this", "those", "which", "whose", "your"),
    )
)


def _share(equal: Callable[[str, str], bool]) -> CorpusMetric:
    """Return the share of predictions that are equal to one of their references."""

    def scores(references: References, predictions: Sequence[str]) -> list[float]:
        pairs = zip(references, predictions, strict=True)
        return [any(equal(text, prediction) for text in texts) for texts, prediction in pairs]

    return mean_of(scores)


# Metrics that are functions of a sum over examples. F1 is left out, since it needs the task's labels.
CORPUS_METRICS: dict[str, CorpusMetric] = {
    "accuracy": _share(operator.eq),
    "exact_match": _share(lambda text, prediction: normalize_answer(text) == normalize_answer(prediction)),
    "final_answer": _share(same_final_answer),
    **generation.METRICS,
}


def corpus_score(targets: Sequence[Target], predictions: Sequence[str], *, name: str) -> dict[str, float]:
    """Return the value of one of `CORPUS_METRICS`, by its name."""
    check_lengths(targets, predictions)
    return {name: CORPUS_METRICS[name](list(map(references_of, targets)), predictions)}


def accuracy(targets: Sequence[Target], predictions: Sequence[str]) -> dict[str, float]:
    """Return the share of predictions that equal their target, or one of several."""
    return corpus_score(targets, predictions, name="accuracy")


def exact_match(targets: Sequence[Target], predictions: Sequence[str]) -> dict[str, float]:
    """Return the share of predictions that equal their target, or one of several, after SQuAD's normalization."""
    return corpus_score(targets, predictions, name="exact_match")


def group_exact_match(
    targets: Sequence[Target], predictions: Sequence[str], *, notes: Sequence[str]
) -> dict[str, float]:
    """Return the share of groups in which all predictions are correct (MultiRC's EM). Equal notes form a group."""
    check_lengths(targets, predictions)
    correct: dict[str, bool] = {}
    for target, prediction, note in zip(targets, predictions, notes, strict=True):
        correct[note] = correct.get(note, True) and prediction in references_of(target)
    return {"group_exact_match": mean(list(correct.values()))}


def referent_accuracy(targets: Sequence[str], predictions: Sequence[str], *, notes: Sequence[str]) -> dict[str, float]:
    """Return the share of examples in which the model names the target's referent if and only if the note is "True".

    This is WSC in T5's format (`wsc_simple`): the model names the referent of a pronoun, and the note says whether the
    target is the referent. A prediction names the target if the words of one text include all words of the other,
    ignoring case and determiners. It does not if only one of them has an apostrophe ("Bob", "Bob's hat"). A prediction
    of determiners only is incorrect.
    """
    check_lengths(targets, predictions)

    def words(text: str) -> set[str]:
        return set(text.lower().split()) - _DETERMINERS

    def is_correct(target: str, prediction: str, note: str) -> bool:
        expected, given = words(target), words(prediction)
        same_form = bool(expected) and ("'" in " ".join(expected)) == ("'" in " ".join(given))
        return bool(given) and str(same_form and (expected <= given or given <= expected)) == note

    examples = zip(targets, predictions, notes, strict=True)
    return {"referent_accuracy": mean([is_correct(*example) for example in examples])}


def references_of(target: Target) -> Sequence[str]:
    """Return all texts that are correct answers."""
    return (target,) if isinstance(target, str) else target


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def check_lengths(targets: Sequence[Target], predictions: Sequence[str]) -> None:
    """Raise ValueError unless there are as many targets as predictions, and at least one."""
    if len(targets) != len(predictions):
        raise ValueError(f"there are {len(targets)} targets and {len(predictions)} predictions")
    if not targets:
        raise ValueError("there are no answers to score")
