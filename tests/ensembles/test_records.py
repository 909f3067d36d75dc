"""Predictions as JSON lines."""

import dataclasses
import json

import numpy as np
import pytest

from prompt_jax.ensembles.evaluation import combine, ranked_alone
from prompt_jax.ensembles.records import prediction_lines, write_predictions


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
