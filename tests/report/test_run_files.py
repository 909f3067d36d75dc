"""Missing, damaged and inconsistent files of a run."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest

from pages import Page
from prompt_jax.report.run_files import ReportError
from prompt_jax.report.run_report import write_report
from run_folders import ENSEMBLE, SINGLE, a_run, a_test, predictions, write_lines, write_run


@pytest.fixture
def single(tmp_path: Path) -> Path:
    return write_run(tmp_path, SINGLE)


@pytest.fixture
def ensemble(tmp_path: Path) -> Path:
    return write_run(tmp_path, ENSEMBLE)


def test_odd_values(single):
    """NaN losses, half a surrogate pair, a line separator in a text, and a label with probability 0."""
    losses = [{"step": step, "member": 0, "train/loss": loss} for step, loss in ((1, math.nan), (2, math.inf))]
    write_lines(single / "metrics.jsonl", losses)
    row = {**predictions("movie", 1)[0], "input": "\ud800\u2028"}
    row["label_scores"] = {"negative": -math.inf, "positive": 0.0}
    (single / "predictions.jsonl").write_text(json.dumps(row, ensure_ascii=False), "utf-8", "surrogatepass")
    with pytest.raises(ReportError, match=r"predictions\.jsonl: not UTF-8"):
        write_report(single, None, None)
    write_lines(single / "predictions.jsonl", [row])
    assert Page(write_report(single, None, None).read_text(encoding="utf-8")).count("svg") == 0


@pytest.mark.parametrize("name", ["config.json", "summary.json"])
def test_missing_files(single, name):
    (single / name).unlink()
    with pytest.raises(ReportError, match=f"{name} is missing"):
        write_report(single, None, None)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("config.json", '{"nane": 1}', "unknown field nane"),
        ("summary.json", "{", "not JSON"),
        ("summary.json", "[]", "the file must be a JSON object"),
        ("summary.json", '{"name": "x"}', "summary.json: model is missing"),
        ("predictions.jsonl", '\n{"input": "x"}\n', "predictions.jsonl:2: not a prediction: task is missing"),
        ("predictions.jsonl", "{\n", "predictions.jsonl:1: not a prediction: Expecting"),
        ("metrics.jsonl", '{"step": 1}\n', "a member from 0 to 2 and numbers, not {'step': 1}"),
        ("metrics.jsonl", '{"step": 1, "member": 3}\n', "a member from 0 to 2"),
        ("metrics.jsonl", '{"step": 1, "member": 0, "train/loss": "low"}\n', "and numbers"),
    ],
)
def test_damaged_files(ensemble, name, text, message):
    (ensemble / name).write_text(text)
    with pytest.raises(ReportError, match=message):
        write_report(ensemble, None, None)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("members", [], "there are no members"),
        (
            "members.1.status",
            "asleep",
            "members[1].status must be 'training' or 'finished' or 'stopped early' or 'diverged'",
        ),
        ("members.0.best", {"metric": "accuracy"}, "members[0].best.score is missing"),
        ("members.0.steps", 1.5, "members[0].steps must be int, not 1.5"),
        ("members.0.settings", [], "members[0].settings must be dict[str, Any], not []"),
        (
            "members.2.validation",
            {"accuracy": "high"},
            "members[2].validation must be dict[str, float], not {'accu",
        ),
        ("truncated", {"movie": {"train": {}}}, "truncated[...][...].inputs is missing"),
        ("examples", {"movie": 3}, "examples must be dict[str, dict[str, int]], not {'movie': 3}"),
        ("tests", {}, "tests must be list[TaskScores], not {}"),
        ("tests.0.trained_on", 1, "tests[0].trained_on must be bool, not 1"),
        ("tests.0.members", [0, 1, 3], "tests[0].members must be different numbers below 3, not [0, 1, 3]"),
        ("tests.0.members", [0, 1, 1], "different numbers"),
        ("tests.0.members", [], "different numbers"),
        ("tests.0.scores", [{"accuracy": 1}], "tests[0].scores must have the metrics of 3 members"),
        ("tests.0.scores.1", {}, "tests[0].scores must have the metrics of 3 members"),
        ("tests.0.scores.1", {"f1": 1}, "the same metrics for all members"),
        ("tests.0.ensemble", {}, "tests[0].ensemble.vote_rule is missing"),
        ("tests.0.ensemble", 3, "tests[0].ensemble must be a JSON object, not 3"),
        ("tests.0.ensemble.vote_rule", "lot", "must be 'majority' or 'mean-probability'"),
        ("tests.0.ensemble.vote", {}, "tests[0].ensemble.vote must have metrics"),
        ("tests.0.ensemble.vote", {"f1": 1}, "must have the metric f1, the first of ensemble.vote"),
        ("tests.0.ensemble.average", {}, "tests[0].ensemble.average must have the metric accuracy"),
        ("tests.0.ensemble.best", 5, "tests[0].ensemble.best must be one of the members [0, 1, 2], not 5"),
        ("tests.0.ensemble.agreement", [[1]], "tests[0].ensemble.agreement must be a matrix of 3 by 3"),
        ("tests.0.ensemble.intervals", {"best": [0, 1]}, "tests[0].ensemble.intervals.average is missing"),
        ("tests.0.ensemble.intervals.best", [0], "tests[0].ensemble.intervals must be dict["),
    ],
)
def test_wrong_values(tmp_path, place, value, message):
    summary = copy.deepcopy(ENSEMBLE)
    *path, last = [int(part) if part.isdigit() else part for part in place.split(".")]
    at: Any = summary
    for part in path:
        at = at[part]
    at[last] = value
    with pytest.raises(ReportError) as error:
        write_report(write_run(tmp_path, summary, logs=False), None, None)
    assert str(error.value).startswith(str(tmp_path / "summary.json")) and message in str(error.value)


def test_two_tests_of_one_task(tmp_path):
    summary = a_run(ENSEMBLE["members"], [a_test("movie", [0, 1, 2])] * 2)
    with pytest.raises(ReportError, match="there are 2 tests of the task 'movie'"):
        write_report(write_run(tmp_path, summary, logs=False), None, None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "other"}, "summary.json has no test of the task 'other'"),
        ({"members": ["a", "b"]}, "answers of 2 members; summary.json has 3"),
        ({"members": ["a", "b", None]}, "members must be list[str], not ['a', 'b', None]"),
    ],
)
def test_predictions_of_other_members(ensemble, change, message):
    write_lines(ensemble / "predictions.jsonl", [{**predictions("movie", 3)[0], **change}])
    with pytest.raises(ReportError) as error:
        write_report(ensemble, None, None)
    assert message in str(error.value)
