import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pages import Page
from prompt_jax import experiment as experiments
from prompt_jax.config.data import DataConfig
from prompt_jax.config.prompt import PromptConfig
from prompt_jax.experiment import Experiment
from prompt_jax.inspection import Inspection, Neighbor, NormRange, TokenInspection
from prompt_jax.report import details, formatting
from prompt_jax.report.run_report import ReportError, write_report

EVIL = "<script>alert('x')</script> & <b>bold</b>"
INSPECTION = Inspection(
    tokens=tuple(
        TokenInspection(
            10.0 + i,
            (Neighbor(7, "▁positive", 0.875, 9.0), Neighbor(8, "</td>", -0.25, 99.0)),
            (Neighbor(9, "▁near", 0.5, 0.25),),
        )
        for i in range(4)
    ),
    vocabulary=NormRange(mean=11.0, low=9.0, high=12.0),
)


def _member(number: int, task: str = "movie", **changes: Any) -> dict[str, Any]:
    return {
        "settings": {"train.seed": number},
        "task": task,
        "length": 4,
        "status": "finished",
        "steps": 50,
        "best": {"metric": "accuracy", "score": 0.8 + number / 100, "step": 25},
        "validation": {"accuracy": 0.8 + number / 100, "invalid": 0.0},
        **changes,
    }


def _test(task: str, members: list[int], trained_on: bool = True, vote: bool = True, **changes: Any) -> dict[str, Any]:
    """Member i has the accuracy 0.7 + i / 100, the vote 0.8."""
    scores = [{"accuracy": 0.7 + i / 100, "invalid": 0.05, "rank/accuracy": 0.75 + i / 100} for i in members]
    size = len(members)
    ensemble = {
        "vote_rule": "majority",
        "vote": {"accuracy": 0.8, "invalid": 0.0, "rank/accuracy": 0.85},
        "average": {name: sum(each[name] for each in scores) / size for name in scores[0]},
        "best": members[-1],
        "oracle": 0.9625,
        "agreement": [[1.0 if i == j else 0.875 for j in range(size)] for i in range(size)],
        "intervals": {"best": [-0.003, 0.012], "average": [0.011, 0.02]},
    }
    return {
        "task": task,
        "examples": 31,
        "trained_on": trained_on,
        "members": members,
        "before": {"accuracy": 0.125, "invalid": 0.5, "rank/accuracy": 0.25},
        "scores": scores,
        "ensemble": ensemble if vote and size > 1 else None,
        **changes,
    }


def _summary(members: list[dict[str, Any]], tests: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    tasks = {member["task"] for member in members}
    return {
        "name": EVIL,
        "model": {"name": "tiny", "revision": "abc", "fingerprint": "sha256:123", "parameters": 9_999_000},
        "trained_parameters": 1000,
        "stored_parameters": 2_000_000,
        "steps": 50,
        "seconds": 3725.2,
        "examples": {task: {"train": 100, "validation": 20, "test": 31} for task in sorted(tasks)},
        "truncated": {task: {"train": {"inputs": 17, "targets": 0}} for task in tasks},
        "versions": {"jax": "9.9.9"},
        "members": members,
        "tests": tests,
        **changes,
    }


def _log(members: int) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    for i in range(members):
        lines += [{"step": s, "member": i, "train/loss": 3 / s, "train/accuracy": 0.5} for s in range(1, 51)]
        lines += [{"step": s, "member": i, "validation/accuracy": (s + i) / 70, "seconds": 1.0} for s in (0, 25, 50)]
    return lines


def _predictions(task: str, members: int) -> list[dict[str, Any]]:
    """Of the vote: 20 right, 10 the other way round, and one answer that is no label.

    Where there are several members the last of them says the contrary of the others on every third example.
    """
    contrary = {"negative": "positive", "positive": "negative", "<i>": "<i>"}
    rows: list[dict[str, Any]] = []
    for i in range(30):
        target = ("negative", "positive")[i % 2]
        rows.append({"input": f"text {i}", "target": target, "prediction": target if i < 20 else contrary[target]})
    rows.append({"input": EVIL, "target": "positive", "prediction": "<i>"})
    for i, row in enumerate(rows):
        answers = [row["prediction"]] * members
        if members > 1 and i % 3 == 0:
            answers[-1] = contrary[answers[-1]]
        scores = {"negative": math.log(0.25), "positive": math.log(0.75)}
        row |= {"task": task, "before": "movie", "members": answers, "label_scores": scores}
    return rows


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _write(folder: Path, summary: dict[str, Any], *, logs: bool = True, **prompt: Any) -> Path:
    experiment = Experiment(data=DataConfig(task="movie"), prompt=PromptConfig(length=4, **prompt))
    (folder / "config.json").write_text(experiments.to_json(experiment))
    (folder / "summary.json").write_text(json.dumps(summary))
    if logs:
        _write_lines(folder / "metrics.jsonl", _log(len(summary["members"])))
        rows = [row for test in summary["tests"] for row in _predictions(test["task"], len(test["members"]))]
        _write_lines(folder / "predictions.jsonl", rows)
    return folder


def _page(folder: Path, inspections: Any = None, similarity: np.ndarray | None = None) -> Page:
    return Page(write_report(folder, inspections, similarity).read_text(encoding="utf-8"))


SINGLE = _summary([_member(3, settings={})], [_test("movie", [0])])
ENSEMBLE = _summary([_member(i) for i in range(3)], [_test("movie", [0, 1, 2])])


@pytest.fixture
def single(tmp_path: Path) -> Path:
    return _write(tmp_path, SINGLE)


@pytest.fixture
def ensemble(tmp_path: Path) -> Path:
    return _write(tmp_path, ENSEMBLE)


# --------------------------------------------------------------------------------------------------------------
# One prompt


def test_single_prompt(single):
    path = write_report(single, [INSPECTION], None)
    assert path == single / "report.html"
    page = Page(path.read_text(encoding="utf-8"))

    assert page.count("svg") == 3
    for expected in ("12.5% → 70.0%", "25.0% → 75.0%", "83.0%", "1 h 2 min 5 s", "(0.010% of all)", "jax 9.9.9"):
        assert expected in page.words
    assert "A soft prompt of 4 virtual tokens before the input, tuned for movie on" in page.words
    assert "beside its 9,999,000 (0.010% of all), 2,000,000 stored (7.63 MiB), 50 steps of" in page.words
    assert "accuracy 83.0% 12.5% 70.0% invalid answers 0.0% 50.0% 5.0% accuracy by ranking – 25.0% 75.0%" in page.words
    assert "▁positive 0.88" in page.words and "</td> -0.25" in page.words
    assert "train 100 17 0 validation 20 0 0 test 31 0 0" in page.words  # what was cut
    assert "negative 10 5 0 positive 5 10 1" in page.words  # the confusion table
    assert "Wrong answers: 11 of 31 " in page.words and "Right answers: 20 of 31 (12 shown)" in page.words
    assert "negative 0.25 positive 0.75" in page.words
    assert '"length": 4' in page.words
    words = page.words.replace('"init_member"', "")  # a field of the configuration
    for absent in ("Members", "member", "Vote", "Agreement", "disagree", "Domain", "Similarity", "diverged"):
        assert absent not in words


@pytest.mark.parametrize("status", ["stopped early", "diverged"])
def test_single_prompt_that_did_not_finish(tmp_path, status):
    members = [_member(0, settings={}, status=status, steps=30)]
    words = _page(_write(tmp_path, _summary(members, []))).words
    assert f"at step 25, the best, {status} at 30" in words
    assert ("Training diverged" in words) is (status == "diverged")


def test_without_optional_files(tmp_path):
    page = _page(_write(tmp_path, _summary([_member(3, settings={})], []), logs=False))
    assert page.count("svg") == 0
    assert "Validation accuracy 83.0%" in page.words and "accuracy 83.0% invalid answers 0.0%" in page.words
    for absent in ("answers:", "Virtual tokens", "Expected and answered", "Test"):
        assert absent not in page.words


def test_free_text_answers(tmp_path):
    _write(tmp_path, SINGLE)
    row = {"task": "movie", "input": "q", "target": "a", "before": None, "members": ["b"], "prediction": "b"}
    _write_lines(tmp_path / "predictions.jsonl", [{**row, "label_scores": None}])
    words = _page(tmp_path).words
    assert "Wrong answers: 1 of 1" in words
    assert "abel probabilities" not in words and "Expected and answered" not in words


@pytest.mark.parametrize(
    "placement, summary, expected",
    [
        ("before", SINGLE, "A prefix of 4 virtual tokens, tuned for movie on"),
        ("after", SINGLE, "An infix of 4 virtual tokens, tuned for movie on"),
        ("before", ENSEMBLE, "3 prefixes of 4 virtual tokens, trained together for movie on"),
    ],
)
def test_prefixes_are_called_so(tmp_path, placement, summary, expected):
    assert expected in _page(_write(tmp_path, summary, method="prefix", placement=placement)).words


def test_baselines_are_called_so(tmp_path):
    words = _page(_write(tmp_path, SINGLE, method="full")).words
    assert "The whole model, tuned for movie starting from tiny : 1,000 trained parameters" in words
    words = _page(_write(tmp_path, ENSEMBLE, method="adapter")).words
    assert "Adapters, 3 times, trained together for movie on the frozen model tiny :" in words


# --------------------------------------------------------------------------------------------------------------
# Several


def test_ensemble(ensemble):
    page = _page(ensemble, [INSPECTION] * 3, np.array([[1, 0.5, 0], [0.5, 1, 0.25], [0, 0.25, 1]]))
    assert "3 soft prompts of 4 virtual tokens before the input, trained together for movie on" in page.words
    assert "The prompts differ in train.seed ." in page.words
    for card in (
        "Test accuracy 12.5% → 80.0% majority vote of 3 members",
        "Average member 71.0% ± 1.0 points over 3 members",
        "Best member 72.0% member 2, the best on this test",
        "Test accuracy by ranking 25.0% → 85.0% vote on the most probable labels",
        "Validation accuracy 82.0% member 2, at step 25, the best",
    ):
        assert card in page.words

    assert page.count("svg") == 5  # two curves, agreement, similarity, norms of the best member
    assert "Circles mark each member’s best score" in page.words
    assert "Member 0 seed 0 Member 1 seed 1 Member 2 seed 2 Losses" in page.words  # the legend
    assert "Member seed Status Steps Best score at step 0 0 finished 50 80.0% 25 1 1 finished" in page.words

    assert "Base alone 12.5% 50.0% 25.0%" in page.words  # the paper's Table 3
    assert "Average of the members 71.0% ± 1.0 5.0% ± 0.0 76.0% ± 1.0" in page.words
    assert "Best member (2) 72.0% 5.0% 77.0% Vote 80.0% 0.0% 85.0% Member 0 seed 0 70.0% 5.0% 75.0%" in page.words
    assert "Vote minus the best member: +8.0 points [−0.3, 1.2], no clear difference." in page.words
    assert "Vote minus the average: +9.0 points [1.1, 2.0], clearly more." in page.words
    assert "right on 96.2% of the examples (the oracle)" in page.words

    assert page.count("svg", **{"class": "heat agreement"}) == page.count("svg", **{"class": "heat similarity"}) == 1
    assert "1, 2: 87.5" in page.words and "1, 2: 0.25" in page.words
    assert "Cosine similarity of the flattened prompts of 4 virtual tokens" in page.words
    assert "Member 2 seed 2 , the best on the validation split" in page.words
    assert page.count("details") == 3  # the other two members' tokens, and the configuration


def test_disagreements(ensemble):
    words = _page(ensemble).words
    # every third of 31, but for the last, on which all members say what is no label; wrong from the twentieth on
    assert "Members disagree: 10 of 31 The vote is right on 7 of them" in words
    assert "text 3 positive positive 0, 1 negative 2 positive" in words
    assert "text 27 positive negative 0, 1 positive 2 negative" in words
    assert "text 1 positive positive 0" not in words


def test_disagreements_of_free_text_are_of_normalized_answers(tmp_path):
    _write(tmp_path, ENSEMBLE)
    row = {"task": "movie", "input": "q", "target": "Paris", "before": None, "prediction": "Paris"}
    answers = (["Paris", "paris.", "the Paris"], ["Paris", "Rome", "rome"])
    rows = [{**row, "members": each, "label_scores": None} for each in answers]
    _write_lines(tmp_path / "predictions.jsonl", rows)
    words = _page(tmp_path).words
    assert "Members disagree: 1 of 2" in words and "Rome 1, 2 Paris 0 Paris" in words


def test_answers_are_compared_without_the_sentinel_of_their_targets(tmp_path):
    _write(tmp_path, ENSEMBLE)
    row = {"task": "movie", "input": "q", "target": "<extra_id_0> True", "before": None}
    row |= {"label_scores": {"<extra_id_0> False": -1.0, "<extra_id_0> True": -0.5}}
    given = (["True", "<extra_id_0> True", "True"], ["<extra_id_0> False", "False", "True"])
    _write_lines(tmp_path / "predictions.jsonl", [{**row, "prediction": own[0], "members": own} for own in given])
    words = _page(tmp_path).words
    assert "Members disagree: 1 of 2" in words and "q True False 0, 1 True 2 False" in words
    assert "answered → False True other False 0 0 0 True 1 1 0" in words  # the confusion of the votes


def test_members_that_agree(ensemble):
    rows = _predictions("movie", 3)
    _write_lines(ensemble / "predictions.jsonl", [{**row, "members": [row["prediction"]] * 3} for row in rows])
    assert "Members disagree: 0 of 31 Expected" in _page(ensemble).words


def test_vote_by_mean_probability(tmp_path):
    """It has metrics by ranking alone."""
    summary = copy.deepcopy(ENSEMBLE)
    summary["tests"][0]["ensemble"] |= {"vote_rule": "mean-probability", "vote": {"rank/accuracy": 0.85}}
    words = _page(_write(tmp_path, summary)).words
    assert "Test accuracy by ranking 25.0% → 85.0% mean probability vote of 3 members" in words
    assert "Vote – – 85.0%" in words and "Vote minus the best member: +8.0 points" in words
    assert "intervals of the difference in accuracy by ranking" in words


def test_members_without_a_vote(tmp_path):
    words = _page(_write(tmp_path, _summary(ENSEMBLE["members"], [_test("movie", [0, 1, 2], vote=False)]))).words
    assert "Test accuracy 12.5% → 71.0%" in words and "Average of the members 71.0%" in words
    assert "Vote minus" not in words and "(the oracle)" not in words


def test_domain_shift(tmp_path):
    everyone = [0, 1, 2]
    tests = [_test("nyt_x", everyone, False), _test("movie", everyone), _test("tweets", everyone, False)]
    page = _page(_write(tmp_path, _summary(ENSEMBLE["members"], tests)))
    assert "2 other tasks 12.5% → 80.0% average, not trained on" in page.words
    assert (
        "Domain shift Task Examples Base alone Average Best Vote "
        "accuracy movie trained on 31 12.5% 71.0% ± 1.0 72.0% 80.0% "
        "nyt_x 31 12.5% 71.0% ± 1.0 72.0% 80.0% tweets 31 12.5% 71.0% ± 1.0 72.0% 80.0% "
        "accuracy by ranking movie trained on 31 25.0% 76.0% ± 1.0 77.0% 85.0%"
    ) in page.words
    assert "Domain shift (Lester et al. 2021, section 5): the prompts were trained" in page.words
    assert "Test on movie Metric" not in page.words and page.count("details", **{"class": "test"}) == 2
    assert "Test on nyt_x: 12.5% → 80.0% accuracy" in page.words


def test_domain_shift_of_one_prompt(tmp_path):
    tests = [_test("movie", [0]), _test("nyt", [0], False)]
    words = _page(_write(tmp_path, _summary([_member(0, settings={})], tests))).words
    assert "1 other task 12.5% → 70.0% not trained on" in words
    assert "Base alone With the prompt accuracy movie trained on 31 12.5% 70.0% nyt 31 12.5% 70.0%" in words
    assert "the prompt was trained" in words and "standard deviation" not in words


def test_prompt_bank(tmp_path):
    """Tasks with metrics of their own."""
    members = [_member(i, "ab"[i // 2], settings={"train.seed": i % 2, "data.task": "ab"[i // 2]}) for i in range(4)]
    for member in members[2:]:
        member["best"]["metric"] = "f1"
        member["validation"] = {"f1": 0.5}
    tests = [_test("a", [0, 1]), _test("b", [2, 3])]
    tests[1]["scores"] = [{"f1": 0.5}, {"f1": 0.6}]
    tests[1]["ensemble"] |= {"vote": {"f1": 0.7}, "average": {"f1": 0.55}}
    page = _page(_write(tmp_path, _summary(members, tests)), [INSPECTION] * 4, np.eye(4))
    assert "trained together for a and b on" in page.words and "differ in train.seed ." in page.words
    assert "a 12.5% → 80.0% accuracy, majority vote of 2 members b – → 70.0% F1, majority" in page.words
    assert "Member seed Task Status Steps Best score at step 0 0 a finished 50 80.0% accuracy 25" in page.words
    assert "Validation score" in page.words  # the curves' own name, since there are two metrics
    assert "Tasks Task Examples Base alone Average Best Vote accuracy a 31 12.5% 70.5%" in page.words
    assert "F1 b 31 – 55.0% ± 7.1 60.0% 70.0%" in page.words
    assert "Test on b: – → 70.0% F1" in page.words and page.count("details", **{"class": "test"}) == 1
    assert "a train 100 17 0 validation 20 0 0 test 31 0 0 b train" in page.words
    assert "Validation accuracy" not in page.words  # no card: scores of two tasks are not compared


def test_prompt_bank_of_one_prompt_a_task(tmp_path):
    members = [_member(i, "ab"[i], settings={"data.task": "ab"[i]}) for i in range(2)]
    words = _page(_write(tmp_path, _summary(members, [_test("a", [0]), _test("b", [1])]))).words
    assert "2 tasks 12.5% → 70.5%" in words and "b 12.5% → 71.0% accuracy, with its prompt" in words
    assert "Test on a Metric Validation" in words and "differ in" not in words


def test_many_members(tmp_path):
    lengths = [1, 5] * 10
    members = [_member(i, length=lengths[i], settings={"prompt.length": lengths[i]}) for i in range(20)]
    members[7] |= {"status": "diverged", "steps": 30}
    members[9] |= {"status": "stopped early", "steps": 40}
    page = _page(_write(tmp_path, _summary(members, [_test("movie", list(range(20)))])), None, np.eye(20))
    assert "20 soft prompts of 1 to 5 virtual tokens" in page.words
    assert "Diverged: member 7, whose numbers are those of the best prompt until then" in page.words
    assert "mean of the members their range diverged (excluded)" in page.words
    assert "7 5 diverged 30" in page.words and "9 5 stopped early 40" in page.words
    assert "Cosine similarity of the prompts’ mean virtual tokens, since their lengths differ" in page.words
    assert "text 3 positive positive × 19 0–18 negative × 1 19 positive" in page.words
    assert page.count("svg", **{"class": "heat agreement plain"}) == 1


# --------------------------------------------------------------------------------------------------------------
# The page


def test_nothing_is_loaded_and_ids_are_distinct(ensemble):
    text = write_report(ensemble, [INSPECTION] * 3, np.eye(3)).read_text()
    page = Page(text)
    assert page.count("script") == 0 and page.count("link") == 0 and page.count("img") == 0
    assert "http" not in text.replace("http-equiv", "")
    references = [v for _, attrs in page.elements for n, v in attrs.items() if n in ("src", "href", "xlink:href")]
    assert all(reference.startswith("#") for reference in references if reference)
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_texts_are_escaped(tmp_path):
    """Of data and models, and names of tasks, metrics and settings."""
    metric = EVIL.replace("'", "")
    member = _member(0, EVIL, settings={f"a.{EVIL}": EVIL}, best={"metric": metric, "score": 0.5, "step": 1})
    test = _test(EVIL, [0, 1])
    for scores in (*test["scores"], test["before"], test["ensemble"]["vote"], test["ensemble"]["average"]):
        scores[metric] = scores.pop("accuracy")
    summary = _summary([member, member], [test, _test(f"{EVIL}_2", [0, 1], False)])
    _write(tmp_path, summary)
    _write_lines(tmp_path / "metrics.jsonl", [{"step": s, "member": 0, f"validation/{metric}": 0.5} for s in (1, 2)])
    text = write_report(tmp_path, [INSPECTION] * 2, np.eye(2)).read_text()
    assert "<script" not in text and "<b>bold" not in text and "<i>" not in text and "<td>-" not in text
    assert EVIL in Page(text).words


def test_same_files_same_bytes(ensemble):
    first = write_report(ensemble, [INSPECTION] * 3, np.eye(3)).read_bytes()
    assert write_report(ensemble, [INSPECTION] * 3, np.eye(3)).read_bytes() == first


# --------------------------------------------------------------------------------------------------------------
# Bad input


def test_odd_values(single):
    """Losses that are no numbers, half a surrogate pair, a line separator in a text, a label of no probability."""
    losses = [{"step": step, "member": 0, "train/loss": loss} for step, loss in ((1, math.nan), (2, math.inf))]
    _write_lines(single / "metrics.jsonl", losses)
    row = {**_predictions("movie", 1)[0], "input": "\ud800\u2028"}
    row["label_scores"] = {"negative": -math.inf, "positive": 0.0}
    (single / "predictions.jsonl").write_text(json.dumps(row, ensure_ascii=False), "utf-8", "surrogatepass")
    with pytest.raises(ReportError, match=r"predictions\.jsonl: not UTF-8"):
        write_report(single, None, None)
    _write_lines(single / "predictions.jsonl", [row])
    assert _page(single).count("svg") == 0


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
        ("members.1.status", "asleep", "members[1].status must be 'finished' or 'stopped early' or 'diverged'"),
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
        write_report(_write(tmp_path, summary, logs=False), None, None)
    assert str(error.value).startswith(str(tmp_path / "summary.json")) and message in str(error.value)


def test_two_tests_of_one_task(tmp_path):
    summary = _summary(ENSEMBLE["members"], [_test("movie", [0, 1, 2])] * 2)
    with pytest.raises(ReportError, match="there are 2 tests of the task 'movie'"):
        write_report(_write(tmp_path, summary, logs=False), None, None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "other"}, "summary.json has no test of the task 'other'"),
        ({"members": ["a", "b"]}, "answers of 2 members; summary.json has 3"),
        ({"members": ["a", "b", None]}, "members must be list[str], not ['a', 'b', None]"),
    ],
)
def test_predictions_of_other_members(ensemble, change, message):
    _write_lines(ensemble / "predictions.jsonl", [{**_predictions("movie", 3)[0], **change}])
    with pytest.raises(ReportError) as error:
        write_report(ensemble, None, None)
    assert message in str(error.value)


def test_arguments_of_another_number_of_members(ensemble):
    with pytest.raises(ValueError, match="2 inspections of 3 members"):
        write_report(ensemble, [INSPECTION] * 2, None)
    with pytest.raises(ValueError, match=r"similarity of 3 members has the shape \(2, 2\)"):
        write_report(ensemble, None, np.eye(2))


# --------------------------------------------------------------------------------------------------------------
# Small things


def test_spread():
    assert details._spread("abc") == ["a", "b", "c"] and details._spread([]) == []
    assert details._spread(range(24)) == list(range(0, 24, 2))


@pytest.mark.parametrize(
    ("numbers", "text"),
    [([3], "3"), ([0, 1], "0, 1"), ([0, 1, 2], "0–2"), ([0, 2, 3, 4, 9], "0, 2–4, 9"), ([], "")],
)
def test_ranges(numbers, text):
    assert formatting.ranges(numbers) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "under 1 s"), (59.7, "1 min"), (61, "1 min 1 s"), (7200, "2 h"), (7265, "2 h 1 min 5 s")],
)
def test_duration(seconds, text):
    assert formatting.duration(seconds) == text


# --------------------------------------------------------------------------------------------------------------
# Texts that are compared with references


def _described(members: int) -> dict[str, Any]:
    """A run whose first metric is NIST, in its own unit, and the second BLEU, a fraction."""
    scores = [{"nist": 8.25 + i / 4, "bleu": 0.5 + i / 10} for i in range(members)]
    together = {
        **_test("e2e", list(range(max(members, 2))))["ensemble"],
        "vote": {"nist": 8.9, "bleu": 0.65},
        "average": {"nist": 8.375, "bleu": 0.55},
        "best": members - 1,
        "agreement": [[1.0] * members] * members,
        "intervals": {"best": [-0.034, 0.78], "average": [0.11, 1.2]},
    }
    test = _test("e2e", list(range(members)), before={"nist": 1.5, "bleu": 0.125}, scores=scores)
    test["ensemble"] = together if members > 1 else None
    best = {"metric": "nist", "score": 8.125, "step": 25}
    settings = [{"train.seed": i} if members > 1 else {} for i in range(members)]
    trained = [
        _member(i, "e2e", settings=settings[i], best=best, validation={"nist": 8.125, "bleu": 0.5})
        for i in range(members)
    ]
    return _summary(trained, [test])


def _described_page(folder: Path, members: int) -> Page:
    _write(folder, _described(members), logs=False)
    rows = [{**row, "label_scores": None} for row in _predictions("e2e", members)]
    _write_lines(folder / "predictions.jsonl", rows)
    lines = [{"step": s, "member": i, "validation/nist": s / 6} for i in range(members) for s in (0, 25, 50)]
    _write_lines(folder / "metrics.jsonl", lines)
    return _page(folder)


def test_values_in_units_of_their_own_are_no_percentages(tmp_path):
    page = _described_page(tmp_path, 1)
    assert "Test NIST 1.50 → 8.25" in page.words and "Validation NIST 8.12 at step 25" in page.words
    assert "NIST 8.12 1.50 8.25 BLEU 50.0% 12.5% 50.0%" in page.words
    assert "825" not in page.words and "150.0%" not in page.words
    assert "Some answers: 31 of 31 (12 shown)" in page.words
    assert "Wrong answers" not in page.words and "Right answers" not in page.words


def test_an_ensemble_of_writers(tmp_path):
    page = _described_page(tmp_path, 2)
    assert "Vote minus the best member: +0.40 [−0.03, 0.78], no clear difference" in page.words
    assert "Vote minus the average: +0.53 [0.11, 1.20], clearly more" in page.words
    assert "± 0.18 over 2 members" in page.words and "Average of the members 8.38 ± 0.18 55.0% ± 7.1" in page.words
    assert "oracle" not in page.words and "The vote is right" not in page.words
    assert "Members disagree: 10 of 31" in page.words
    assert not any(page.count("span", **{"class": f"answer is-{kind}"}) for kind in ("right", "wrong"))
    assert page.count("span", **{"class": "answer"}) > 10


def test_tasks_of_several_units_have_no_mean(tmp_path):
    one, other = _described(1), _summary([_member(0)], [_test("movie", [0])])
    test = {**other["tests"][0], "members": [1]}
    mixed = _summary([one["members"][0], _member(1)], [one["tests"][0], test])
    words = _page(_write(tmp_path, mixed, logs=False)).words
    assert "e2e 1.50 → 8.25" in words and "movie 12.5% → 70.0%" in words and "2 tasks" not in words
