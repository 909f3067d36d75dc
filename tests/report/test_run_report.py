"""The report of a run: its words, plots and escaping."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pages import Page
from prompt_jax import AdapterTuning, FullTuning, PrefixTuning
from prompt_jax.inspection.neighbors import Inspection, Neighbor, TokenInspection
from prompt_jax.inspection.vectors import NormRange
from prompt_jax.report.run_report import write_report
from run_folders import (
    ENSEMBLE,
    EVIL,
    SINGLE,
    a_member,
    a_run,
    a_test,
    predictions,
    write_lines,
    write_run,
)

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


def _page(folder: Path, inspections: Any = None, similarity: np.ndarray | None = None) -> Page:
    return Page(write_report(folder, inspections, similarity).read_text(encoding="utf-8"))


@pytest.fixture
def single(tmp_path: Path) -> Path:
    return write_run(tmp_path, SINGLE)


@pytest.fixture
def ensemble(tmp_path: Path) -> Path:
    return write_run(tmp_path, ENSEMBLE)


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
    assert "train 100 17 0 validation 20 0 0 test 31 0 0" in page.words  # truncated
    assert "negative 10 5 0 66.7% 66.7% positive 5 10 1 62.5% 66.7%" in page.words  # the confusion table
    assert "Wrong answers: 11 of 31 " in page.words and "Right answers: 20 of 31 (12 shown)" in page.words
    assert "negative 0.25 positive 0.75" in page.words
    assert '"length": 4' in page.words
    words = page.words.replace('"init_member"', "")  # a field of the configuration
    for absent in ("Members", "member", "Vote", "Agreement", "disagree", "Domain", "Similarity", "diverged"):
        assert absent not in words


@pytest.mark.parametrize("status", ["stopped early", "diverged"])
def test_single_prompt_that_did_not_finish(tmp_path, status):
    members = [a_member(0, settings={}, status=status, steps=30)]
    words = _page(write_run(tmp_path, a_run(members, []))).words
    assert f"at step 25, the best, {status} at 30" in words
    assert ("Training diverged" in words) is (status == "diverged")


def test_without_optional_files(tmp_path):
    page = _page(write_run(tmp_path, a_run([a_member(3, settings={})], []), logs=False))
    assert page.count("svg") == 0
    assert "Validation accuracy 83.0%" in page.words and "accuracy 83.0% invalid answers 0.0%" in page.words
    for absent in ("answers:", "Virtual tokens", "Expected and answered", "Test"):
        assert absent not in page.words


def test_free_text_answers(tmp_path):
    write_run(tmp_path, SINGLE)
    row = {"task": "movie", "input": "q", "target": "a", "before": None, "members": ["b"], "prediction": "b"}
    write_lines(tmp_path / "predictions.jsonl", [{**row, "label_scores": None}])
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
def test_names_of_prefixes(tmp_path, placement, summary, expected):
    assert expected in _page(write_run(tmp_path, summary, prompt=PrefixTuning(length=4, placement=placement))).words


def test_names_of_baselines(tmp_path):
    words = _page(write_run(tmp_path, SINGLE, prompt=FullTuning())).words
    assert "The whole model, tuned for movie starting from tiny : 1,000 trained parameters" in words
    words = _page(write_run(tmp_path, ENSEMBLE, prompt=AdapterTuning())).words
    assert "Adapters, 3 times, trained together for movie on the frozen model tiny :" in words


# --------------------------------------------------------------------------------------------------------------
# Ensembles


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
    assert "Member 0 seed 0 Member 1 seed 1 Member 2 seed 2 Training losses are smoothed" in page.words  # the legend
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
    # every third of 31 but the last one, where no member answers with a label; wrong from the twentieth on
    assert "Members disagree: 10 of 31 The vote is right on 7 of them" in words
    assert "text 3 positive positive 0, 1 negative 2 positive" in words
    assert "text 27 positive negative 0, 1 positive 2 negative" in words
    assert "text 1 positive positive 0" not in words


def test_free_text_is_normalized_before_comparison(tmp_path):
    write_run(tmp_path, ENSEMBLE)
    row = {"task": "movie", "input": "q", "target": "Paris", "before": None, "prediction": "Paris"}
    answers = (["Paris", "paris.", "the Paris"], ["Paris", "Rome", "rome"])
    rows = [{**row, "members": each, "label_scores": None} for each in answers]
    write_lines(tmp_path / "predictions.jsonl", rows)
    words = _page(tmp_path).words
    assert "Members disagree: 1 of 2" in words and "Rome 1, 2 Paris 0 Paris" in words


def test_answers_are_compared_without_sentinels(tmp_path):
    write_run(tmp_path, ENSEMBLE)
    row = {"task": "movie", "input": "q", "target": "<extra_id_0> True", "before": None}
    row |= {"label_scores": {"<extra_id_0> False": -1.0, "<extra_id_0> True": -0.5}}
    given = (["True", "<extra_id_0> True", "True"], ["<extra_id_0> False", "False", "True"])
    write_lines(tmp_path / "predictions.jsonl", [{**row, "prediction": own[0], "members": own} for own in given])
    words = _page(tmp_path).words
    assert "Members disagree: 1 of 2" in words and "q True False 0, 1 True 2 False" in words
    assert (
        "True other recall precision False 0 0 0 – 0.0% True 1 1 0 50.0% 100.0%" in words
    )  # the confusion of the votes


def test_members_that_agree(ensemble):
    rows = predictions("movie", 3)
    write_lines(ensemble / "predictions.jsonl", [{**row, "members": [row["prediction"]] * 3} for row in rows])
    assert "Members disagree: 0 of 31 Expected" in _page(ensemble).words


def test_vote_by_mean_probability(tmp_path):
    """It only has metrics by ranking."""
    summary = copy.deepcopy(ENSEMBLE)
    summary["tests"][0]["ensemble"] |= {"vote_rule": "mean-probability", "vote": {"rank/accuracy": 0.85}}
    words = _page(write_run(tmp_path, summary)).words
    assert "Test accuracy by ranking 25.0% → 85.0% mean probability vote of 3 members" in words
    assert "Vote – – 85.0%" in words and "Vote minus the best member: +8.0 points" in words
    assert "intervals of the difference in accuracy by ranking" in words


def test_members_without_a_vote(tmp_path):
    words = _page(write_run(tmp_path, a_run(ENSEMBLE["members"], [a_test("movie", [0, 1, 2], vote=False)]))).words
    assert "Test accuracy 12.5% → 71.0%" in words and "Average of the members 71.0%" in words
    assert "Vote minus" not in words and "(the oracle)" not in words


def test_domain_shift(tmp_path):
    everyone = [0, 1, 2]
    tests = [
        a_test("nyt_x", everyone, False),
        a_test("movie", everyone),
        a_test("tweets", everyone, False),
    ]
    page = _page(write_run(tmp_path, a_run(ENSEMBLE["members"], tests)))
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
    tests = [a_test("movie", [0]), a_test("nyt", [0], False)]
    words = _page(write_run(tmp_path, a_run([a_member(0, settings={})], tests))).words
    assert "1 other task 12.5% → 70.0% not trained on" in words
    assert "Base alone With the prompt accuracy movie trained on 31 12.5% 70.0% nyt 31 12.5% 70.0%" in words
    assert "the prompt was trained" in words and "standard deviation" not in words


def test_prompt_bank(tmp_path):
    """One prompt per task and seed; the tasks have different metrics."""
    members = [a_member(i, "ab"[i // 2], settings={"train.seed": i % 2, "data.task": "ab"[i // 2]}) for i in range(4)]
    for member in members[2:]:
        member["best"]["metric"] = "f1"
        member["validation"] = {"f1": 0.5}
    tests = [a_test("a", [0, 1]), a_test("b", [2, 3])]
    tests[1]["scores"] = [{"f1": 0.5}, {"f1": 0.6}]
    tests[1]["ensemble"] |= {"vote": {"f1": 0.7}, "average": {"f1": 0.55}}
    page = _page(write_run(tmp_path, a_run(members, tests)), [INSPECTION] * 4, np.eye(4))
    assert "trained together for a and b on" in page.words and "differ in train.seed ." in page.words
    assert "a 12.5% → 80.0% accuracy, majority vote of 2 members b – → 70.0% F1, majority" in page.words
    assert "Member seed Task Status Steps Best score at step 0 0 a finished 50 80.0% accuracy 25" in page.words
    assert "Validation score" in page.words  # the title of the curves of two metrics
    assert "Tasks Task Examples Base alone Average Best Vote accuracy a 31 12.5% 70.5%" in page.words
    assert "F1 b 31 – 55.0% ± 7.1 60.0% 70.0%" in page.words
    assert "Test on b: – → 70.0% F1" in page.words and page.count("details", **{"class": "test"}) == 1
    assert "a train 100 17 0 validation 20 0 0 test 31 0 0 b train" in page.words
    assert "Validation accuracy" not in page.words  # no card: scores of two tasks are not compared


def test_prompt_bank_with_one_prompt_per_task(tmp_path):
    members = [a_member(i, "ab"[i], settings={"data.task": "ab"[i]}) for i in range(2)]
    words = _page(write_run(tmp_path, a_run(members, [a_test("a", [0]), a_test("b", [1])]))).words
    assert "2 tasks 12.5% → 70.5%" in words and "b 12.5% → 71.0% accuracy, with its prompt" in words
    assert "Test on a Metric Validation" in words and "differ in" not in words


def test_many_members(tmp_path):
    lengths = [1, 5] * 10
    members = [a_member(i, length=lengths[i], settings={"prompt.length": lengths[i]}) for i in range(20)]
    members[7] |= {"status": "diverged", "steps": 30}
    members[9] |= {"status": "stopped early", "steps": 40}
    page = _page(write_run(tmp_path, a_run(members, [a_test("movie", list(range(20)))])), None, np.eye(20))
    assert "20 soft prompts of 1 to 5 virtual tokens" in page.words
    assert "Diverged: member 7, whose numbers are those of the best prompt until then" in page.words
    assert "mean of the members their range diverged (excluded)" in page.words
    assert "7 5 diverged 30" in page.words and "9 5 stopped early 40" in page.words
    assert "Cosine similarity of the prompts’ mean virtual tokens, since their lengths differ" in page.words
    assert "text 3 positive positive × 19 0–18 negative × 1 19 positive" in page.words
    assert page.count("svg", **{"class": "heat agreement plain"}) == 1


# --------------------------------------------------------------------------------------------------------------
# Curves, gains and resources


def _logged(folder: Path, points: int, members: int = 1, **more: float) -> None:
    steps = range(1, points + 1)
    lines = [{"step": s, "member": i, "train/loss": 3 / s, **more} for i in range(members) for s in steps]
    write_lines(folder / "metrics.jsonl", lines)


@pytest.mark.parametrize(("points", "smoothed"), [(19, False), (20, True)])
def test_only_smoothed_curves_are_called_so(tmp_path, points, smoothed):
    write_run(tmp_path, SINGLE)
    _logged(tmp_path, points)
    assert ("training, smoothed" in _page(tmp_path).words) is smoothed
    write_run(tmp_path, ENSEMBLE)
    _logged(tmp_path, points, members=3)
    assert ("Training losses are smoothed." in _page(tmp_path).words) is smoothed


def test_the_validation_loss(tmp_path):
    """In the plot of a single member, and in a separate one of several."""
    write_run(tmp_path, SINGLE, logs=False)
    lines = [{"step": s, "member": i, "train/loss": 3 / s, "validation/loss": 2.0} for s in (1, 2) for i in range(3)]
    write_lines(tmp_path / "metrics.jsonl", lines[::3])
    page = _page(tmp_path)
    assert page.labeled("svg") == ["Training loss by step"] and "validation" in page.words
    write_run(tmp_path, ENSEMBLE, logs=False)
    write_lines(tmp_path / "metrics.jsonl", lines)
    assert _page(tmp_path).labeled("svg")[:2] == ["Training loss by step", "Validation loss by step"]


@pytest.mark.parametrize(("rates", "plotted"), [((0.3, 0.3), False), ((0.3, 0.1), True)])
def test_the_learning_rate(tmp_path, rates, plotted):
    write_run(tmp_path, a_run([a_member(3, settings={}, learning_rate=0.3)], []), logs=False)
    lines = [{"step": s, "member": 0, "train/learning_rate": rate} for s, rate in enumerate(rates, 1)]
    write_lines(tmp_path / "metrics.jsonl", lines)
    page = _page(tmp_path)
    assert ("Learning rate by step" in page.labeled("svg")) is plotted
    assert "Learning rate 0.3, constant" in page.words


@pytest.mark.parametrize(("vote", "gains"), [(0.8, 1), (0.125, 0), (0.1, 0)])
def test_only_gains_have_the_color_of_success(tmp_path, vote, gains):
    summary = copy.deepcopy(ENSEMBLE)
    summary["tests"][0]["ensemble"]["vote"]["accuracy"] = vote
    page = _page(write_run(tmp_path, summary))
    assert page.count("tr", **{"class": "vote gain"}) == gains == 1 - page.count("tr", **{"class": "vote"})
    first = next(attributes["class"] for _, attributes in page.elements if "card" in (attributes.get("class") or ""))
    assert ("gain" in first) == bool(gains) or first == "cards"


USED = {
    "sessions": 2,
    "times": {"compile": 12.0, "train": 130.0, "validation": 20.0, "test": 61.0},
    "throughput": {"examples": 12.345, "tokens": 1234.5},
    "environment": {
        "command": f"prompt-jax train c.py --name {EVIL}",
        "commit": "a" * 40,
        "modified": True,
        "device": "NVIDIA H200",
        "devices": 4,
        "processes": 2,
        "host_memory": 3 << 29,
        "device_memory": 850 << 20,
    },
}


def test_resources(tmp_path):
    words = _page(write_run(tmp_path, {**SINGLE, **USED, "seconds": 162.0})).words
    for expected in (
        "Wall time 2 min 42 s: 12 s of compilation, 2 min 10 s of training, 20 s of validation; then 1 min 1 s",
        "Throughput 12.3 examples/s, 1,234 tokens/s in training",
        "Devices 4 × NVIDIA H200 in 2 processes Peak memory 1.5 GiB on the host, 850 MiB on a device",
        "Times add up over 2 sessions",
        f"Command: prompt-jax train c.py --name {EVIL}",
        f"commit {'a' * 40} , with changes that are not committed",
    ):
        assert expected in words, words


def test_resources_of_a_run_of_an_earlier_version(tmp_path):
    path = write_run(tmp_path, SINGLE) / "config.json"
    config = json.loads(path.read_text())
    config["optimizer"] |= {"learning_rate": 0.3, "schedule": "linear", "warmup_steps": 100}
    path.write_text(json.dumps(config))
    words = _page(tmp_path).words
    assert "Wall time 1 h 2 min 5 s Learning rate 0.3, linear decay after 100 warm-up steps Record" in words
    assert "sessions" not in words and "Command" not in words


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
    """Texts of data and models, and names of tasks, metrics and settings."""
    metric = EVIL.replace("'", "")
    member = a_member(0, EVIL, settings={f"a.{EVIL}": EVIL}, best={"metric": metric, "score": 0.5, "step": 1})
    test = a_test(EVIL, [0, 1])
    for scores in (*test["scores"], test["before"], test["ensemble"]["vote"], test["ensemble"]["average"]):
        scores[metric] = scores.pop("accuracy")
    summary = a_run([member, member], [test, a_test(f"{EVIL}_2", [0, 1], False)])
    write_run(tmp_path, summary)
    write_lines(tmp_path / "metrics.jsonl", [{"step": s, "member": 0, f"validation/{metric}": 0.5} for s in (1, 2)])
    text = write_report(tmp_path, [INSPECTION] * 2, np.eye(2)).read_text()
    assert "<script" not in text and "<b>bold" not in text and "<i>" not in text and "<td>-" not in text
    assert EVIL in Page(text).words


def test_same_files_same_bytes(ensemble):
    first = write_report(ensemble, [INSPECTION] * 3, np.eye(3)).read_bytes()
    assert write_report(ensemble, [INSPECTION] * 3, np.eye(3)).read_bytes() == first


def test_arguments_of_another_number_of_members(ensemble):
    with pytest.raises(ValueError, match="2 inspections of 3 members"):
        write_report(ensemble, [INSPECTION] * 2, None)
    with pytest.raises(ValueError, match=r"similarity of 3 members has the shape \(2, 2\)"):
        write_report(ensemble, None, np.eye(2))


# --------------------------------------------------------------------------------------------------------------
# Free text that is scored against references


def _described(members: int) -> dict[str, Any]:
    """Return a run whose first metric is NIST, which is no share, and the second BLEU, which is."""
    scores = [{"nist": 8.25 + i / 4, "bleu": 0.5 + i / 10} for i in range(members)]
    batched = {
        **a_test("e2e", list(range(max(members, 2))))["ensemble"],
        "vote": {"nist": 8.9, "bleu": 0.65},
        "average": {"nist": 8.375, "bleu": 0.55},
        "best": members - 1,
        "agreement": [[1.0] * members] * members,
        "intervals": {"best": [-0.034, 0.78], "average": [0.11, 1.2]},
    }
    test = a_test("e2e", list(range(members)), before={"nist": 1.5, "bleu": 0.125}, scores=scores)
    test["ensemble"] = batched if members > 1 else None
    best = {"metric": "nist", "score": 8.125, "step": 25}
    settings = [{"train.seed": i} if members > 1 else {} for i in range(members)]
    trained = [
        a_member(i, "e2e", settings=settings[i], best=best, validation={"nist": 8.125, "bleu": 0.5})
        for i in range(members)
    ]
    return a_run(trained, [test])


def _described_page(folder: Path, members: int) -> Page:
    write_run(folder, _described(members), logs=False)
    rows = [{**row, "label_scores": None} for row in predictions("e2e", members)]
    write_lines(folder / "predictions.jsonl", rows)
    lines = [{"step": s, "member": i, "validation/nist": s / 6} for i in range(members) for s in (0, 25, 50)]
    write_lines(folder / "metrics.jsonl", lines)
    return _page(folder)


def test_only_shares_are_percentages(tmp_path):
    page = _described_page(tmp_path, 1)
    assert "Test NIST 1.50 → 8.25" in page.words and "Validation NIST 8.12 at step 25" in page.words
    assert "NIST 8.12 1.50 8.25 BLEU 50.0% 12.5% 50.0%" in page.words
    assert "825" not in page.words and "150.0%" not in page.words
    assert "Some answers: 31 of 31 (12 shown)" in page.words
    assert "Wrong answers" not in page.words and "Right answers" not in page.words


def test_an_ensemble_that_writes_free_text(tmp_path):
    page = _described_page(tmp_path, 2)
    assert "Vote minus the best member: +0.40 [−0.03, 0.78], no clear difference" in page.words
    assert "Vote minus the average: +0.53 [0.11, 1.20], clearly more" in page.words
    assert "± 0.18 over 2 members" in page.words and "Average of the members 8.38 ± 0.18 55.0% ± 7.1" in page.words
    assert "oracle" not in page.words and "The vote is right" not in page.words
    assert "Members disagree: 10 of 31" in page.words
    assert not any(page.count("span", **{"class": f"answer is-{kind}"}) for kind in ("right", "wrong"))
    assert page.count("span", **{"class": "answer"}) > 10


def test_tasks_with_different_units_have_no_mean(tmp_path):
    one, other = _described(1), a_run([a_member(0)], [a_test("movie", [0])])
    test = {**other["tests"][0], "members": [1]}
    mixed = a_run([one["members"][0], a_member(1)], [one["tests"][0], test])
    words = _page(write_run(tmp_path, mixed, logs=False)).words
    assert "e2e 1.50 → 8.25" in words and "movie 12.5% → 70.0%" in words and "2 tasks" not in words
