"""Metrics of texts against values worked out by hand, against other packages, and against published values."""

import csv
import importlib.util
import math
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from prompt_jax import metrics
from prompt_jax.data.registry import discover_tasks
from prompt_jax.metrics import meteor
from prompt_jax.metrics.coco import coco_words
from prompt_jax.metrics.generation import METRICS
from prompt_jax.task_format import LOWER_IS_BETTER, REFERENCE_METRICS

ROOT = Path(__file__).parents[2]
E2E = ROOT.parent / "shared" / "data" / "e2e"
NEEDS_JAVA = {name for name in METRICS if "meteor" in name}

WORDS = (
    *("the", "a", "cat", "dog", "sat", "on", "mat,", "near", "riverside", ".", "£20-25", "it's"),
    *("family-friendly", "and", "Cheap", "The", "offers", "food"),
)


def texts(count: int, seed: int) -> tuple[list[list[str]], list[str]]:
    """Random references, one to four for each example, and predictions that have something of them."""
    draw = random.Random(seed)

    def text() -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(3, 14)))

    references = [[text() for _ in range(draw.randint(1, 4))] for _ in range(count)]
    predictions = [f"{own[0][: draw.randint(5, 40)]} {text()}" for own in references]
    return references, predictions


def streams(references, missing=None):
    count = max(map(len, references))
    return [[own[i] if i < len(own) else missing for own in references] for i in range(count)]


def test_there_is_a_function_for_each_name():
    assert set(METRICS) == set(REFERENCE_METRICS)


@pytest.mark.parametrize(
    ("name", "options", "missing"),
    [
        ("bleu", ("BLEU", {"lowercase": True, "smooth_method": "none"}), None),
        ("multi_bleu", ("BLEU", {"tokenize": "none", "smooth_method": "none", "force": True}), ""),
        ("chrf", ("CHRF", {}), None),
        ("ter", ("TER", {}), None),
    ],
)
def test_sacrebleus_metrics_are_its_own(name, options, missing):
    import sacrebleu.metrics

    references, predictions = texts(30, 1)
    metric = getattr(sacrebleu.metrics, options[0])(**options[1])
    expected = metric.corpus_score(predictions, streams(references, missing)).score / 100
    assert 0.01 < expected < 2
    assert METRICS[name](references, predictions) == pytest.approx(expected, abs=1e-12)


def test_a_missing_reference_is_an_empty_one_for_multi_bleu():
    """multi-bleu.perl's nearest length is then 0 for a short answer, which so is not too short: no brevity penalty."""
    long = "one two three four five six seven eight nine ten eleven twelve thirteen"
    references, predictions = [[long], ["a b c d", "e f g h"]], ["one two three four five", "a b c d"]
    # All n-grams match. Lengths: 5 + 4 words, and 0 + 4 in the references; without the empty one it is 13 + 4.
    assert METRICS["multi_bleu"](references, predictions) == pytest.approx(1.0)
    assert METRICS["multi_bleu"](references[:1], predictions[:1]) == pytest.approx(math.exp(1 - 13 / 5))


def test_bleu_by_hand():
    # 5 of 6 words, 3 of 5 pairs, 1 of 4 triples, 0 of 3 fours; and with the case ignored the last is no better.
    references = [["The cat sat on the mat"]]
    assert METRICS["bleu"](references, ["the cat lay on the mat"]) == 0
    # 7 of 8 words, 5 of 7 pairs, 3 of 6, 2 of 5 (the first four and those from word 2 to 5); lengths are equal.
    references = [["a b c d e f g h"]]
    expected = (7 / 8 * 5 / 7 * 4 / 6 * 3 / 5) ** 0.25
    assert METRICS["bleu"](references, ["A B C D E F x H"]) == pytest.approx(expected)


def test_nist_by_hand():
    # All references have 8 words: a 3 times, b twice, c, d and e once. Pairs: a b twice, others once.
    references, predictions = [["a b c", "a b"], ["a d e"]], ["a b d", "a"]
    word = {"a": math.log2(8 / 3), "b": math.log2(8 / 2), "d": math.log2(8 / 1)}
    one = (word["a"] + word["b"] + word["a"]) / 4  # of 4 words d is not in the first example's references
    two = math.log2(3 / 2) / 2  # a b, of a b and b d
    # 4 words given, and 2.5 + 3 expected.
    brevity = math.exp(math.log(0.5) / math.log(1.5) ** 2 * math.log(4 / 5.5) ** 2)
    assert METRICS["nist"](references, predictions) == pytest.approx((one + two) * brevity)


def test_nist_counts_an_ngram_as_often_as_one_reference_has_it():
    once, twice = [["a b", "b a"]], [["a a", "b a"]]
    assert METRICS["nist"](once, ["a a"]) == pytest.approx(1 / 2)  # log2(4 / 2), of two words
    assert METRICS["nist"](twice, ["a a"]) == pytest.approx(2 * math.log2(4 / 3) / 2 + math.log2(3 / 1))


def test_perls_nist_compares_lengths_with_the_mean_of_all_references():
    """As by hand above, where the three references have 3, 2 and 3 words: two answers, 2 * 8 / 3 words expected."""
    references, predictions = [["a b c", "a b"], ["a d e"]], ["a b d", "a"]
    beta = math.log(0.5) / math.log(1.5) ** 2
    ratio = math.exp(beta * math.log(4 / (2 * 8 / 3)) ** 2) / math.exp(beta * math.log(4 / 5.5) ** 2)
    assert METRICS["nist_perl"](references, predictions) == pytest.approx(
        ratio * METRICS["nist"](references, predictions)
    )
    # An empty reference has no place in the mean: 8 words in three references again.
    references[1].append("")
    assert METRICS["nist_perl"](references, predictions) == pytest.approx(
        ratio * METRICS["nist"](references[:1] + [["a d e"]], predictions)
    )


def test_nist_of_nothing_is_zero():
    assert METRICS["nist"]([["a b"]], [""]) == 0


def test_rouge_l_by_hand():
    # In common with the first: the cat sat; with the second: cat on. Precision 3 of 4, recall 3 of 4 or 2 of 2.
    references = [["the cat, sat here.", "Cat on"]]
    precision, recall = 3 / 4, 2 / 2
    expected = (1 + 1.44) * precision * recall / (recall + 1.44 * precision)
    assert METRICS["coco_rouge_l"](references, ["the cat on, sat!"]) == pytest.approx(expected)
    assert METRICS["coco_rouge_l"]([["a"], ["b"]], ["", "b"]) == 0.5


def test_cider_by_hand():
    # Two examples: words of both weigh 0, of one ln 2 each. x and y are right, z is in no reference.
    references, predictions = [["x y"], ["u v"]], ["x y", "u z"]
    # The first: cosine 1 for words and for pairs, none for longer, of 4 orders. The second: words only. u weighs ln 2
    # and z ln 2 (a frequency of 0 counts as 1), so that the cosine is 1/2.
    assert METRICS["cider"](references, predictions) == pytest.approx(10 * (2 / 4 + 0.5 / 4) / 2)
    # One more pair of words than the reference: the penalty on length.
    longer = 10 * math.exp(-1 / 72) * (2 / math.sqrt(6) + 1 / math.sqrt(2)) / 4
    assert METRICS["cider"](references, ["x y z", "q"]) == pytest.approx(longer / 2)


@pytest.mark.parametrize("name", ["coco_rouge_l", "cider"])
def test_coco_metrics_are_those_of_its_package(name):
    module = {"coco_rouge_l": ("rouge.rouge", "Rouge"), "cider": ("cider.cider", "Cider")}[name]
    package = pytest.importorskip(f"pycocoevalcap.{module[0]}", reason="needs the extra meteor")
    references, predictions = texts(40, 2)
    expected, _ = getattr(package, module[1])().compute_score(
        {i: [" ".join(coco_words(text)) for text in own] for i, own in enumerate(references)},
        {i: [" ".join(coco_words(text))] for i, text in enumerate(predictions)},
    )
    assert METRICS[name](references, predictions) == pytest.approx(expected)


def test_rouge_by_hand():
    # Stems: cat, run; "cats running" against "the cat runs": 2 of 2 and 2 of 3 words, and the nearest reference counts.
    references = [["the cat runs", "a dog"]]
    assert METRICS["rouge_1"](references, ["cats running"]) == pytest.approx(0.8)
    assert METRICS["rouge_2"](references, ["cats running"]) == pytest.approx(2 * 1 * 0.5 / 1.5)
    assert METRICS["rouge_l"](references, ["running cats"]) == pytest.approx(2 * 0.5 * (1 / 3) / (1 / 2 + 1 / 3))


@pytest.mark.parametrize(
    ("references", "prediction", "expected"),
    [
        (
            ["in the Denver Broncos' stadium"],
            "Denver Broncos",
            2 * 1 * 0.5 / 1.5,
        ),  # two of in, denver, broncos, stadium
        (["Denver", "the broncos of Denver", "x"], "Broncos, Denver!", 2 * 2 / 5),
        (["a a b b b"], "b b c c", 2 * 2 / (3 + 4)),  # each as often as both have it
        (["1990"], "1991", 0.0),
        (["the"], "a", 0.0),
        (["U.S."], "us", 1.0),
    ],
)
def test_squads_f1(references, prediction, expected):
    assert METRICS["squad_f1"]([references], [prediction]) == pytest.approx(expected)
    assert METRICS["squad_f1"]([references, ["x"]], [prediction, "x"]) == pytest.approx((expected + 1) / 2)


@pytest.mark.parametrize("name", sorted(set(METRICS) - NEEDS_JAVA))
def test_a_score_is_a_function_of_a_sum(name):
    """Of the examples repeated, as in a bootstrap's resample, it is the same; and perfect answers are best."""
    references, predictions = texts(12, 3)
    metric = METRICS[name]
    statistics = metric.statistics(references, predictions)
    assert len(statistics) == 12 and np.isfinite(statistics).all()
    value = metric(references, predictions)
    assert metric.score(statistics.sum(axis=0)) == value
    assert metric.score(3 * statistics.sum(axis=0)) == pytest.approx(value)
    if name not in ("nist", "nist_perl", "cider"):  # whose weights depend on what all examples are
        parts = [metric.statistics(references[i::2], predictions[i::2]).sum(axis=0) for i in (0, 1)]
        assert metric.score(parts[0] + parts[1]) == pytest.approx(value)
    perfect = metric(references, [own[0] for own in references])
    if name in LOWER_IS_BETTER:
        assert perfect == 0 < value
    else:
        assert perfect > value > metric(references, [""] * 12) == 0


def test_functions_take_one_target_or_several():
    one = metrics.corpus_score(["a b c d e"], ["a b c d f"], name="bleu")
    assert one == metrics.corpus_score([["a b c d e"]], ["a b c d f"], name="bleu")
    assert one["bleu"] < metrics.corpus_score([["a b c d e", "f"]], ["a b c d f"], name="bleu")["bleu"] < 1
    with pytest.raises(ValueError, match="2 targets and 1 predictions"):
        metrics.corpus_score(["a", "b"], ["a"], name="bleu")


# --------------------------------------------------------------------------------------------------------------
# The official scorers of WebNLG and DART

# Raw texts, and what the scorers make of them: WebNLG's `evaluation.py`, and the form of DART's reference files.
NORMALIZED = [
    ("Aarhus_Airport's runway, 10L/28R, is 2776.0m.",)
    + ("aarhus_airport ' s runway , 10l / 28r , is 2776 . 0m .",) * 2,
    ("  São Tomé\n “serves”  Ørsta!", 'sao tome " serves " orsta !', "são tomé “ serves ” ørsta !"),
    ("½ km – Łódź…", "1 / 2 km - lodz . . .", "½ km – łódź …"),
    ("", "", ""),
]


@pytest.mark.parametrize(("text", "webnlg", "dart"), NORMALIZED)
@pytest.mark.parametrize(("name", "plain", "missing"), [("bleu", "multi_bleu", [""]), ("ter", "ter", [])])
def test_official_scorers_normalize_references_and_answers(text, webnlg, dart, name, plain, missing):
    """As what the plain metric gives for texts that are normalized by hand; BLEU has three files of references."""
    other = ["the cat sat on the mat", *missing, *missing]
    for benchmark, normalized in (("webnlg", webnlg), ("dart", dart)):
        score = METRICS[f"{benchmark}_{name}"](
            [[text, "A"], ["The cat sat on the mat"]], ["A text.", "the cat sat on a mat"]
        )
        expected = METRICS[plain]([[normalized, "a", *missing], other], ["a text .", "the cat sat on a mat"])
        assert score == pytest.approx(expected)
        score = METRICS[f"{benchmark}_{name}"](
            [["A text."], ["The cat sat on the mat"]], [text, "the cat sat on a mat"]
        )
        expected = METRICS[plain]([["a text .", *missing, *missing], other], [normalized, "the cat sat on a mat"])
        assert score == pytest.approx(expected)


@pytest.mark.parametrize("benchmark", ["webnlg", "dart"])
def test_official_scorers_take_the_first_three_references(benchmark):
    references, answer = ["a b c d e", "f g h i j", "k l m n o", "p q r s t"], "P q r s t"
    for name, none, all_of_it in (("bleu", 0, 1), ("ter", 1, 0)):
        metric = METRICS[f"{benchmark}_{name}"]
        assert metric([references], [answer]) == none
        assert metric([references[1:]], [answer]) == pytest.approx(all_of_it)
    # BLEU has three files of references. The empty lines of a single one are nearest to this answer's length.
    long = "one two three four five six seven eight nine ten eleven twelve thirteen"
    assert METRICS[f"{benchmark}_bleu"]([[long]], ["one two three four five"]) == pytest.approx(1.0)


# --------------------------------------------------------------------------------------------------------------
# METEOR

needs_meteor = pytest.mark.skipif(
    shutil.which("java") is None or importlib.util.find_spec("pycocoevalcap") is None,
    reason="needs Java and the extra meteor",
)


@needs_meteor
@pytest.mark.slow
def test_meteor_is_what_its_program_says():
    references, predictions = texts(20, 4)
    references[3], predictions[3] = ["the cat sat", "a dog"], "the cat sat"  # one without fragments
    references[4], predictions[4] = ["naïve ||| café\nhere"], "naïve café, here"
    predictions[5] = ""
    rows = meteor.statistics(references, predictions)

    def program(line: str) -> list[str]:
        command = ["java", "-Xmx2G", "-jar", str(meteor._jar()), "-", "-", "-stdio", "-l", "en", "-norm"]
        return subprocess.run(command, input=line.encode(), capture_output=True, check=True).stdout.decode().split("\n")

    raw = rows.copy()
    raw[3, 20] = 1  # the program itself leaves the run of such an answer out of a sum
    numbers = [" ".join(map(str, row)) for row in raw]
    *each, total = map(float, program(" ||| ".join(["EVAL", *numbers]) + "\n")[:-1])
    assert [meteor.score(row) for row in rows] == pytest.approx(each)
    assert meteor.score(rows.sum(axis=0)) == pytest.approx(total)
    assert meteor.score(rows[3]) == 1 and meteor.score(rows[5]) == 0 and 0 < meteor.score(rows[4]) < 1


def test_meteor_says_what_it_needs(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(meteor.MeteorError, match="needs Java, and there is no `java`"):
        METRICS["meteor"]([["a"]], ["a"])
    monkeypatch.setattr(shutil, "which", lambda name: "java")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(meteor.MeteorError, match=r"pycocoevalcap: pip install 'prompt-jax\[meteor\]'"):
        METRICS["meteor"]([["a"]], ["a"])


@pytest.mark.skipif(shutil.which("false") is None, reason="needs the command false")
def test_a_program_that_fails_is_named(monkeypatch, tmp_path):
    jar = tmp_path / "meteor" / "meteor-1.5.jar"
    jar.parent.mkdir()
    jar.touch()
    spec = importlib.util.spec_from_loader("pycocoevalcap", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setattr(shutil, "which", lambda name: "false")
    with pytest.raises(meteor.MeteorError, match="0 results for 1 examples"):
        METRICS["meteor"]([["a"]], ["a"])


# --------------------------------------------------------------------------------------------------------------
# E2E's development set: the first reference of each table against the others


@pytest.fixture(scope="module")
def first_and_others():
    if not E2E.is_dir():
        pytest.skip("needs E2E's files in ../shared/data/e2e")
    path = ROOT / "tasks" / "e2e.py"
    discover_tasks(path)
    tokenize = next(
        module for module in sys.modules.values() if getattr(module, "__file__", None) == str(path)
    ).tokenize
    tables: dict[str, list[str]] = {}
    with (E2E / "devset.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            tables.setdefault(row["mr"], []).append(tokenize(row["ref"]))
    assert len(tables) == 547
    return [own[1:] for own in tables.values()], [own[0] for own in tables.values()]


# Of the official scripts on the published tokenized file, of which the rebuilt one differs in a few signs.
@pytest.mark.parametrize(
    ("name", "published", "tolerance"),
    [
        ("bleu", 0.6061390, 3e-5),
        ("nist", 8.636432, 4e-4),
        ("nist_perl", 8.6368, 4e-4),
        ("coco_rouge_l", 0.65471, 5e-6),
        ("cider", 1.8943, 1e-4),
        ("chrf", 0.7250, 1e-4),
        pytest.param("coco_meteor", 0.44972, 1e-4, marks=[needs_meteor, pytest.mark.slow]),
    ],
)
def test_published_values_on_e2e(first_and_others, name, published, tolerance):
    assert METRICS[name](*first_and_others) == pytest.approx(published, abs=tolerance)


@pytest.mark.slow
def test_ter_on_e2e(first_and_others):
    """Of the first sixty tables; the same as tercom's."""
    references, predictions = first_and_others
    assert METRICS["ter"](references[:60], predictions[:60]) == pytest.approx(0.3736895, abs=1e-7)
