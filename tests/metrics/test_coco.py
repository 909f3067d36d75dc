"""MS COCO's ROUGE-L and CIDEr, against values computed by hand and its own package."""

import math

import pytest

from prompt_jax.metrics.coco import coco_words
from prompt_jax.metrics.generation import METRICS
from random_texts import texts


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
def test_coco_metrics_equal_pycocoevalcap(name):
    module = {"coco_rouge_l": ("rouge.rouge", "Rouge"), "cider": ("cider.cider", "Cider")}[name]
    package = pytest.importorskip(f"pycocoevalcap.{module[0]}", reason="needs the extra meteor")
    references, predictions = texts(40, 2)
    expected, _ = getattr(package, module[1])().compute_score(
        {i: [" ".join(coco_words(text)) for text in own] for i, own in enumerate(references)},
        {i: [" ".join(coco_words(text))] for i, text in enumerate(predictions)},
    )
    assert METRICS[name](references, predictions) == pytest.approx(expected)
