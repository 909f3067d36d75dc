"""Evaluation of several prompts in mixed batches, against each of them alone."""

import dataclasses

import numpy as np
import pytest

import prompt_jax
from adapters import random_text, random_tokens
from prompt_jax import Prompt, VirtualTokens
from prompt_jax.data.examples import Examples
from prompt_jax.inference import answers
from prompt_jax.inference.answers import tokenize
from prompt_jax.inference.evaluation import EvaluationOptions, evaluate, evaluate_members
from prompt_jax.metrics import metric_fns
from prompt_jax.models.prompt import PromptStackError
from prompt_jax.task_format import TaskFormat
from target_losses import loss

pytestmark = pytest.mark.usefixtures("one_length")

TEXTS = ("a good film", "a bad film, dull and long", "great fun", "the plot is bad and the jokes are old", "no fun")


def examples_of(tiny, texts=TEXTS, labels=("negative", "positive")) -> Examples:
    task_format = TaskFormat("{text}", labels)
    inputs, _ = tokenize(tiny, texts, 32)
    targets = [labels[i % 2] if labels else "film" for i in range(len(texts))]
    ids = tokenize(tiny, targets, 8)[0]
    fns = tuple(metric_fns(task_format))
    return Examples("task", "test", inputs, ids, list(texts), targets, {}, task_format, fns)


def assert_same(one, other):
    assert one.predictions == other.predictions and one.scores == other.scores
    np.testing.assert_allclose(one.log_probabilities, other.log_probabilities, rtol=1e-4)
    assert (one.label_scores is None) == (other.label_scores is None)
    if one.label_scores is not None:
        np.testing.assert_allclose(one.label_scores, other.label_scores, rtol=1e-4)


@pytest.mark.slow
def test_members_are_evaluated_as_each_alone(tiny, prompts, monkeypatch):
    """Batches mix rows of all prompts and of the base alone."""
    examples, options = examples_of(tiny), EvaluationOptions(5, 8)
    alone = [evaluate(tiny, prompt, examples, options) for prompt in (None, *prompts)]
    assert len({tuple(each.predictions) for each in alone}) > 1
    batches = []
    real = answers.generate_scored
    monkeypatch.setattr(answers, "generate_scored", lambda *a, **options: batches.append(a[2]) or real(*a, **options))
    mixed = evaluate_members(tiny, [None, *prompts], examples, options)
    assert [batch["inputs"].shape[0] for batch in batches] == [8, 8, 8]
    for one, other in zip(mixed, alone, strict=True):
        assert_same(one, other)
        assert set(one.scores) == {"accuracy", "invalid", "rank/accuracy"}


def test_members_may_have_different_examples(tiny, prompts):
    own = [
        examples_of(tiny),
        examples_of(tiny, TEXTS[:2], ("good", "bad")),
        examples_of(tiny, TEXTS[1:], ()),
    ]
    options = EvaluationOptions(4, 4)
    mixed = evaluate_members(tiny, prompts, own, options)
    for one, prompt, examples in zip(mixed, prompts, own, strict=True):
        assert_same(one, evaluate(tiny, prompt, examples, options))
    assert mixed[2].label_scores is None
    unranked = evaluate_members(tiny, prompts, own, dataclasses.replace(options, rank=False))
    assert all(each.label_scores is None for each in unranked)


@pytest.mark.parametrize("family", ["t5", "gpt2"])
def test_log_likelihood_is_that_of_the_logits(tiny_folders, family, monkeypatch):
    """In nats per target token. Nothing is generated."""
    model = prompt_jax.load_model(str(tiny_folders[family]))
    own = [None, random_tokens(model, 3), random_tokens(model, 5, seed=1)]
    inputs = [random_text(model, 1, length, seed=length)[0] for length in (5, 9, 2)]
    targets = [random_text(model, 1, length, seed=10 + length)[0] for length in (1, 7, 4)]
    task_format = TaskFormat("{text}", metrics=("log_likelihood",))
    fns = tuple(metric_fns(task_format))
    examples = Examples("task", "test", inputs, targets, ["a"] * 3, ["b", "c", "c d"], {}, task_format, fns)
    expected = [-loss(model, prompt, examples) for prompt in own]

    calls = []
    options = EvaluationOptions(7, 4, loss=True, before_batch=lambda *progress: calls.append(progress))
    both = dataclasses.replace(task_format, metrics=("bleu", "log_likelihood"))
    beside = dataclasses.replace(examples, format=both, metric_fns=tuple(metric_fns(both)))
    for result, value in zip(evaluate_members(model, own, beside, options), expected, strict=True):
        assert list(result.scores) == ["bleu", "log_likelihood"] and len(result.predictions) == 3
        assert result.scores["log_likelihood"] == pytest.approx(value, rel=1e-5) == -result.loss
    assert len(calls) == 3, "answers and targets in one pass"
    monkeypatch.setattr(answers, "generate_scored", None)
    calls.clear()
    results = evaluate_members(model, own, examples, options)
    assert [result.scores["log_likelihood"] for result in results] == pytest.approx(expected, rel=1e-5)
    assert all(result.predictions == [] and len(result.scores) == 1 for result in results)
    assert [result.loss for result in results] == [-result.scores["log_likelihood"] for result in results]
    assert len(calls) == 3, "an evaluation can be left between any two batches"


def test_the_loss_beside_answers_and_labels(tiny, prompts):
    """The loss is -log p of the target's label, where the target is a label. The other results are the same."""
    examples = examples_of(tiny)
    labels = examples.format.labels
    examples = dataclasses.replace(
        examples,
        targets=[np.array(answers.label_ids(tiny, labels[i % 2]), np.int32) for i in range(len(examples))],
    )
    options = EvaluationOptions(4, 4)
    alone = evaluate_members(tiny, prompts, examples, options)
    with_loss = evaluate_members(tiny, prompts, examples, dataclasses.replace(options, loss=True))
    for one, result in zip(alone, with_loss, strict=True):
        assert_same(one, dataclasses.replace(result, loss=None))
        chosen = [scores[i % 2] for i, scores in enumerate(one.label_scores)]
        assert result.loss == pytest.approx(-sum(chosen) / sum(map(len, examples.targets)), rel=1e-5)
        assert one.loss is None
    unranked = evaluate_members(tiny, prompts, examples, dataclasses.replace(options, rank=False, loss=True))
    assert [each.loss for each in unranked] == pytest.approx([each.loss for each in with_loss], rel=1e-5)


def test_incompatible_arguments_are_errors(tiny, prompts):
    examples, options = examples_of(tiny), EvaluationOptions(2, 8)
    for members, each in (([], examples), (prompts, [examples])):
        with pytest.raises(ValueError, match="expected prompts, and examples of each"):
            evaluate_members(tiny, members, each, options)
    after = Prompt(VirtualTokens(np.ones((2, 64), np.float32), placement="after"))
    with pytest.raises(
        PromptStackError, match="prompt 0 has its virtual tokens before the input and prompt 1 after it"
    ):
        evaluate_members(tiny, [prompts[0], after], examples, options)
