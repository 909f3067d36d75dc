"""The results of an evaluation as tables and files."""

import json
from pathlib import Path

import pytest

from prompt_jax.ensembles.members import LoadedPrompt
from prompt_jax.ensembles.outcome import evaluate_base, evaluate_files
from prompt_jax.inference.evaluation import EvaluationOptions, evaluate
from prompt_jax.prompt_files.io import PromptMetadata

OPTIONS = EvaluationOptions(target_length=12, batch_size=8)


@pytest.fixture
def members(prompts) -> list[LoadedPrompt]:
    metadata = [PromptMetadata(settings={"train.seed": seed}) for seed in (7, 8)]
    return [LoadedPrompt(Path("best.npz"), number, prompts[number], metadata[number]) for number in range(2)]


def test_the_files_of_an_ensemble(tiny, members, examples, tmp_path):
    outcome = evaluate_files(tiny, members, examples, OPTIONS)
    table, scores, predictions = outcome.write(tmp_path)
    assert table.read_text().startswith("## files, train, 20 examples, 2 members, majority vote\n")
    stored = json.loads(scores.read_text())
    assert stored["examples"] == 20 and stored["ensemble"]["metric"] == "accuracy"
    assert stored["ensemble"]["confusion"]["labels"] == ["negative", "positive"]
    for number, member in enumerate(members):
        alone = evaluate(tiny, member.prompt, examples, OPTIONS)
        expected = {"file": "best.npz", "member": number, "settings": {"train.seed": 7 + number}}
        assert stored["members"][number] == {**expected, "scores": alone.scores}
    lines = [json.loads(line) for line in predictions.read_text().splitlines()]
    assert [line["members"] for line in lines] == [list(pair) for pair in zip(*outcome.answers, strict=True)]
    assert [line["prediction"] for line in lines] == outcome.vote.predictions


def test_a_single_prompt_has_no_vote(tiny, members, examples):
    outcome = evaluate_files(tiny, members[:1], examples, OPTIONS)
    alone = evaluate(tiny, members[0].prompt, examples, OPTIONS)
    assert outcome.scores["ensemble"] is None and outcome.vote.scores == alone.scores
    assert outcome.answers == [alone.predictions]
    assert [row[0] for row in outcome.shown[0].rows[1:]] == list(alone.scores)


def test_early_stop_has_only_the_vote(tiny, members, examples):
    full, early = (evaluate_files(tiny, members, examples, OPTIONS, early_stop=early) for early in (False, True))
    assert early.vote.scores == full.vote.scores
    assert [member["scores"] for member in early.scores["members"]] == [None, None]
    assert 0 <= early.scores["ensemble"]["saved"] < 1


def test_the_base_alone(tiny, examples):
    """Two few-shot prompts vote. Here they are equal, so that the vote gives the same answers."""
    outcome = evaluate_base(tiny, [examples, examples], ["shots 0", "shots 1"], OPTIONS)
    alone = evaluate(tiny, None, examples, OPTIONS)
    assert [way["name"] for way in outcome.scores["ways"]] == ["shots 0", "shots 1"]
    assert outcome.vote.predictions == alone.predictions
    assert outcome.scores["ensemble"]["agreement"] == [[1, 1], [1, 1]]
    single = evaluate_base(tiny, [examples], ["no shots"], OPTIONS)
    assert single.vote.scores == alone.scores and "ensemble" not in single.scores
