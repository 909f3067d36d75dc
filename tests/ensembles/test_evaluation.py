"""An ensemble's scores by hand, and on a model."""

import dataclasses
import json

import numpy as np
import pytest

from known_answers import examples_of, member
from prompt_jax import Prompt
from prompt_jax.ensembles.early_stop import evaluate_early
from prompt_jax.ensembles.evaluation import VoteError, combine, evaluate_ensemble
from prompt_jax.inference.evaluation import Evaluation, EvaluationOptions, evaluate
from prompt_jax.task_format import TaskFormat

OPTIONS = EvaluationOptions(target_length=12, batch_size=8)


def test_majority_by_hand(labeled):
    examples, members = labeled
    result = combine(members, examples)
    assert result.vote.predictions == ["no", "yes", "no", "yes"]
    # Ranked: no no no, yes no yes, no yes no, yes no no: no, yes, no, no.
    assert result.vote.scores == {"accuracy": 0.5, "invalid": 0.0, "rank/accuracy": 0.75}
    assert result.metric == "accuracy" and result.best == 0, "of equals the first"
    assert [m.scores["accuracy"] for m in members] == [0.5, 0.5, 0.25]
    assert result.average == pytest.approx({"accuracy": 1.25 / 3, "invalid": 0.25 / 3, "rank/accuracy": 2 / 3})
    assert result.oracle == 0.75
    np.testing.assert_allclose(result.agreement, [[1, 0.5, 0.75], [0.5, 1, 0.25], [0.75, 0.25, 1]])
    assert result.confusion.shape == (4, 2, 3)
    assert result.confusion[2].tolist() == [[0, 1, 1], [1, 1, 0]]
    assert result.confusion[-1].tolist() == [[1, 1, 0], [1, 1, 0]]
    assert result.intervals["best"] == (0, 0), "the vote and the best member give the same answers"
    low, high = result.intervals["average"]
    assert low < 0.5 - result.average["accuracy"] < high
    np.testing.assert_allclose(np.exp(result.vote.label_scores[:, 1]), [0.2, 2 / 3, 1.6 / 3, 1.7 / 3], rtol=1e-6)


def test_mean_probability_by_hand(labeled):
    examples, members = labeled
    result = combine(members, examples, "mean-probability")
    assert result.vote.predictions == ["no", "yes", "yes", "yes"]
    assert result.vote.scores == {"rank/accuracy": 0.75} and result.metric == "rank/accuracy"
    assert [m.scores["rank/accuracy"] for m in members] == [0.5, 0.75, 0.75] and result.best == 1
    assert result.answers[1] == ["no", "no", "yes", "no"] and result.oracle == 1
    np.testing.assert_allclose(np.exp(result.vote.log_probabilities), [0.8, 2 / 3, 1.6 / 3, 1.7 / 3], rtol=1e-6)
    np.testing.assert_allclose(result.agreement[1], [0.25, 1, 0.5])
    with pytest.raises(VoteError, match="rank=True"):
        combine([dataclasses.replace(m, label_scores=None) for m in members], examples, "mean-probability")


def test_free_text_by_hand():
    examples = examples_of(["The cat", "dog"], TaskFormat("{x}", metrics=("exact_match",)))
    answers = (["a cat", "bird"], ["bird", "fish"], ["Cat.", "fish"])
    result = combine([member(examples, own) for own in answers], examples)
    assert result.vote.predictions == ["a cat", "fish"] and result.vote.scores == {"exact_match": 0.5}
    assert result.vote.label_scores is None and result.confusion is None
    assert result.oracle == 0.5 and result.agreement[0].tolist() == [1, 0, 0.5]
    with pytest.raises(VoteError, match="task has no labels"):
        combine(result.members, examples, "mean-probability")


def test_log_likelihood_is_no_vote(tiny):
    """It scores targets, so members have it but the vote does not. If it is the only metric, there is no vote."""
    examples = examples_of(["The cat", "dog"], TaskFormat("{x}", metrics=("log_likelihood", "exact_match")))
    members = [
        Evaluation(examples.score(own, np.array(likely)), own, None, np.zeros(2, np.float32))
        for own, likely in ((["a cat", "bird"], [-1.0, -3.0]), (["bird", "fish"], [-3.0, -5.0]))
    ]
    assert members[0].scores == {"log_likelihood": -1.0, "exact_match": 0.5}, "four tokens in all"
    result = combine(members, examples)
    assert result.metric == "exact_match" and result.vote.scores == {"exact_match": 0.5}
    assert result.average == {"log_likelihood": -1.5, "exact_match": 0.25}
    alone = examples_of(["The cat", "dog"], TaskFormat("{x}", metrics=("log_likelihood",)))
    with pytest.raises(VoteError, match="task is scored by log_likelihood alone, and there are no answers to vote on"):
        combine(members, alone)
    with pytest.raises(VoteError, match="no answers to vote on"):
        evaluate_early(tiny, [Prompt(), Prompt()], alone, OPTIONS)


def test_the_summary_is_json(labeled):
    examples, members = labeled
    summary = json.loads(json.dumps(combine(members, examples).summary()))
    assert set(summary) == {"vote_rule", "vote", "average", "best", "oracle", "agreement", "intervals"}
    assert summary["best"] == 0 and summary["intervals"]["best"] == [0, 0]


# --------------------------------------------------------------------------------------------------------------
# On a model


def test_a_member_has_the_scores_it_has_alone(tiny, prompts, examples):
    result = evaluate_ensemble(tiny, prompts, examples, OPTIONS)
    for own, prompt in zip(result.members[:2], prompts[:2], strict=True):
        alone = evaluate(tiny, prompt, examples, OPTIONS)
        assert own.scores == alone.scores and own.predictions == alone.predictions
        np.testing.assert_allclose(own.label_scores, alone.label_scores, rtol=1e-4)
    assert result.agreement.min() < 1, "members differ"


def test_mean_probability_is_refused_before_any_work(tiny, prompts, examples):
    free = dataclasses.replace(examples, format=TaskFormat("{text}"))
    with pytest.raises(VoteError, match="files has no labels"):
        evaluate_ensemble(tiny, prompts, free, OPTIONS, "mean-probability")
