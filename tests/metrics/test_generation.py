"""Metrics of text, against values computed by hand, other packages, and published values."""

import csv
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from prompt_jax import metrics
from prompt_jax.data.registry import discover_tasks
from prompt_jax.metrics.generation import METRICS
from prompt_jax.task_format import LOWER_IS_BETTER, REFERENCE_METRICS
from random_texts import needs_meteor, texts

ROOT = Path(__file__).parents[2]
E2E = ROOT.parent / "shared" / "data" / "e2e"
NEEDS_JAVA = {name for name in METRICS if "meteor" in name}


def streams(references, missing=None):
    count = max(map(len, references))
    return [[own[i] if i < len(own) else missing for own in references] for i in range(count)]


def test_each_name_has_a_function():
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
def test_metrics_equal_sacrebleu(name, options, missing):
    import sacrebleu.metrics

    references, predictions = texts(30, 1)
    metric = getattr(sacrebleu.metrics, options[0])(**options[1])
    expected = metric.corpus_score(predictions, streams(references, missing)).score / 100
    assert 0.01 < expected < 2
    assert METRICS[name](references, predictions) == pytest.approx(expected, abs=1e-12)


def test_multi_bleu_treats_missing_references_as_empty():
    """multi-bleu.perl's closest reference length is then 0 for a short answer: no brevity penalty."""
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


def test_rouge_by_hand():
    # Stems: cat, run; "cats running" against "the cat runs": 2 of 2 and 2 of 3 words, and the nearest reference counts.
    references = [["the cat runs", "a dog"]]
    assert METRICS["rouge_1"](references, ["cats running"]) == pytest.approx(0.8)
    assert METRICS["rouge_2"](references, ["cats running"]) == pytest.approx(2 * 1 * 0.5 / 1.5)
    assert METRICS["rouge_l"](references, ["running cats"]) == pytest.approx(2 * 0.5 * (1 / 3) / (1 / 2 + 1 / 3))


@pytest.mark.parametrize("name", sorted(set(METRICS) - NEEDS_JAVA))
def test_a_score_is_a_function_of_a_sum(name):
    """Repeating all examples, as a bootstrap sample may, does not change it. Perfect answers score best."""
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
    """The same as the plain metric on texts normalized by hand; BLEU has three files of references."""
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
    """On the first sixty tables, equal to tercom's."""
    references, predictions = first_and_others
    assert METRICS["ter"](references[:60], predictions[:60]) == pytest.approx(0.3736895, abs=1e-7)
