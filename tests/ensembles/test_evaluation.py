"""An ensemble's scores by hand, and on a model."""

import dataclasses
import json
from collections import Counter

import numpy as np
import pytest

from prompt_jax import Prompt, VirtualTokens
from prompt_jax.data.examples import Examples
from prompt_jax.data.files import file_task
from prompt_jax.data.load import LoadOptions, load_examples
from prompt_jax.ensembles.early_stop import evaluate_early
from prompt_jax.ensembles.evaluation import VoteError, combine, evaluate_ensemble, ranked_alone
from prompt_jax.ensembles.records import prediction_lines, write_predictions
from prompt_jax.ensembles.tables import ensemble_tables
from prompt_jax.inference import answers, batching
from prompt_jax.inference.evaluation import Evaluation, EvaluationOptions, evaluate
from prompt_jax.metrics import metric_fns
from prompt_jax.task_format import TaskFormat

LABELS = ("no", "yes")
OPTIONS = EvaluationOptions(target_length=12, batch_size=8)


def examples_of(targets, task_format) -> Examples:
    ids = [np.array([2, 1], np.int32)] * len(targets)
    texts = [f"text {i}" for i in range(len(targets))]
    return Examples("task", "test", ids, ids, texts, targets, {}, task_format, tuple(metric_fns(task_format)))


def member(examples, predictions, probabilities=None) -> Evaluation:
    """Return an evaluation as `evaluate` would, from answers and the second label's probability."""
    scores, label_scores = dict(examples.score(predictions)), None
    if probabilities is not None:
        label_scores = np.log([[1 - p, p] for p in probabilities]).astype(np.float32)
        ranked = examples.score([LABELS[p > 0.5] for p in probabilities])
        scores |= {"rank/accuracy": ranked["accuracy"]}
    return Evaluation(scores, predictions, label_scores, np.full(len(predictions), -1.0, np.float32))


@pytest.fixture
def labeled():
    """Return four examples with targets no, yes, yes, no, and three members."""
    examples = examples_of(["no", "yes", "yes", "no"], TaskFormat("{x}", LABELS))
    members = [
        member(examples, ["no", "yes", "no", "yes"], [0.1, 0.9, 0.4, 0.9]),
        member(examples, ["no", "no", "yes", "yes"], [0.2, 0.4, 0.8, 0.4]),
        member(examples, ["other", "yes", "no", "yes"], [0.3, 0.7, 0.4, 0.4]),
    ]
    return examples, members


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


def test_predictions_are_a_line_an_example(labeled, tmp_path):
    examples, members = labeled
    result = combine(members, examples)
    records = prediction_lines(examples, result.answers, result.vote, result.ranked, members[2])
    write_predictions(tmp_path / "p.jsonl", records)
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    expected = {"task": "task", "input": "text 0", "target": "no", "before": "other", "members": ["no", "no", "other"]}
    assert len(lines) == 4 and expected.items() <= lines[0].items() and lines[0]["prediction"] == "no"
    assert lines[0]["label_scores"] == pytest.approx({"no": np.log(0.8), "yes": np.log(0.2)})
    assert [line["ranked"] for line in lines] == ["no", "yes", "no", "no"]
    assert [line["ranked_members"] for line in lines[2:]] == [["no", "yes", "no"], ["yes", "no", "no"]]
    assert lines[2]["label_scores"]["yes"] > lines[2]["label_scores"]["no"], "the mean says otherwise"
    by_mean = combine(members, examples, "mean-probability")
    assert by_mean.ranked.members == by_mean.answers and by_mean.ranked.vote == by_mean.vote.predictions
    assert ranked_alone(examples, members[0]).vote == ["no", "yes", "no", "yes"]
    (line, *_) = prediction_lines(examples, [[None] * 4], dataclasses.replace(result.vote, label_scores=None))
    assert line["ranked"] is None and line["ranked_members"] is None
    assert line["before"] is None and line["members"] == [None] and line["label_scores"] is None


def test_tables(labeled):
    examples, members = labeled
    printed = ensemble_tables(combine(members, examples), "title", ["seed 1", "", "a|b\n*c*"], LABELS, [4, 7, 9])
    text = [line.split() for line in printed[0].text().splitlines()]
    assert text[1] == ["accuracy", "invalid", "rank/accuracy"]
    assert text[2] == ["member", "4", "(seed", "1)", "0.5000", "0.0000", "0.5000"]
    assert text[3] == ["member", "7", "0.5000", "0.0000", "0.7500"]
    assert [row[0] for row in text[5:]] == ["average", "best", "vote"] and text[6][:3] == ["best", "(member", "4)"]
    lines = printed[0].markdown().splitlines()
    assert lines[0] == "## title" and lines[3] == "| --- | ---: | ---: | ---: |"
    assert r"a\|b \*c\*" in lines[6] and all(line.replace(r"\|", "").count("|") == 5 for line in lines[2:])
    by_mean = ensemble_tables(combine(members, examples, "mean-probability"), "title", ["", "", ""], LABELS)
    assert by_mean[0].rows[-1] == ["vote", "-", "-", "0.7500"]
    assert printed[-1].rows == [["", "no", "yes", "other"], ["no", "1", "1", "0"], ["yes", "1", "1", "0"]]


# --------------------------------------------------------------------------------------------------------------
# On a model


@pytest.fixture(scope="module")
def prompts() -> list[Prompt]:
    random = np.random.default_rng(5)
    return [Prompt(VirtualTokens(random.normal(size=(n, 64)).astype(np.float32) * 4)) for n in (3, 3, 2, 3, 3)]


@pytest.fixture
def examples(tiny, sentiment_files, monkeypatch) -> Examples:
    monkeypatch.setattr(batching, "EVAL_BUCKETS", 1)  # little to compile
    task_format = TaskFormat("{text}", ("negative", "positive"), target_length=12)
    task = file_task("files", {"train": sentiment_files["train"]}, task_format)
    return load_examples(task, tiny.tokenizer, "train", LoadOptions(64, 12, limit=20))


def test_a_member_has_the_scores_it_has_alone(tiny, prompts, examples):
    result = evaluate_ensemble(tiny, prompts, examples, OPTIONS)
    for own, prompt in zip(result.members[:2], prompts[:2], strict=True):
        alone = evaluate(tiny, prompt, examples, OPTIONS)
        assert own.scores == alone.scores and own.predictions == alone.predictions
        np.testing.assert_allclose(own.label_scores, alone.label_scores, rtol=1e-4)
    assert result.agreement.min() < 1, "members differ"


def asked_of(votes, blocks) -> np.ndarray:
    """Return [E, N], whether a member must run on an example, computed from all votes by the definition."""
    members, count = votes.shape
    asked, end = np.zeros(votes.shape, bool), 0
    for size in blocks:
        for n in range(count):
            so_far = Counter(votes[:end, n].tolist()).most_common()
            first, second = ([count for _, count in so_far] + [0, 0])[:2]
            asked[end : end + size, n] = not end or first <= second + members - end
        end += size
    return asked


def votes_of(full, examples):
    """Return the numbers of the members' answers and of their most probable labels."""
    texts, ranked = np.array(full.answers), np.stack([own.label_scores.argmax(axis=1) for own in full.members])
    return np.unique(texts, return_inverse=True)[1].reshape(texts.shape), ranked


def test_early_stop_gives_the_full_vote(tiny, prompts, examples):
    full = evaluate_ensemble(tiny, prompts, examples, OPTIONS)
    for blocks in (None, [2, 3]):
        early = evaluate_early(tiny, prompts, examples, OPTIONS, blocks=blocks)
        assert early.vote.predictions == full.vote.predictions and early.vote.scores == full.vote.scores
        np.testing.assert_allclose(early.vote.log_probabilities, full.vote.log_probabilities, rtol=1e-4)
        asked = np.any([asked_of(votes, blocks or [3, 1, 1]) for votes in votes_of(full, examples)], axis=0)
        for actual, of_all in ((early.answers, full.answers), (early.ranked.members, full.ranked.members)):
            assert actual == np.where(asked, np.array(of_all), None).tolist()
        assert early.saved == pytest.approx(1 - asked.mean())
        assert blocks or 0 < early.saved <= 0.4
        assert early.ranked.vote == full.ranked.vote


def test_early_stop_compiles_for_all_blocks_at_once(tiny, prompts, examples, monkeypatch):
    examples = examples.take([*range(12)])
    votes = votes_of(evaluate_ensemble(tiny, prompts, examples, OPTIONS), examples)
    asked = np.any([asked_of(each, (3, 1, 1)) for each in votes], axis=0)
    shapes, real = [], answers.generate_scored

    def spy(params, config, batch, *rest, **options):
        shapes.append(batch["inputs"].shape)
        return real(params, config, batch, *rest, **options)

    monkeypatch.setattr(answers, "generate_scored", spy)
    evaluate_early(tiny, prompts, examples, OPTIONS)
    blocks = [asked[:3].sum(), asked[3].sum(), asked[4].sum()]
    assert all(blocks), "each block was asked something"
    assert len(set(shapes)) == 1 and len(shapes) == sum(-(-rows // 8) for rows in blocks)


def test_mean_probability_is_refused_before_any_work(tiny, prompts, examples):
    free = dataclasses.replace(examples, format=TaskFormat("{text}"))
    with pytest.raises(VoteError, match="files has no labels"):
        evaluate_ensemble(tiny, prompts, free, OPTIONS, "mean-probability")
