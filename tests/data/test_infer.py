"""What files of examples look like."""

import json

import pytest

from prompt_jax.data.infer import Inferred, infer
from prompt_jax.errors import DataError


@pytest.fixture
def write(tmp_path):
    """Return a function that writes rows to a JSONL file."""

    def write(rows):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


def texts(answers, **more):
    return [{"text": f"text {i}", "label": answer, **more} for i, answer in enumerate(answers)]


def test_labels(write):
    assert infer(write(texts(["good", "bad"] * 5))) == Inferred("{text}", "label", ("bad", "good"), 10, 4)


@pytest.mark.parametrize(
    "answers",
    [
        ["good", "bad"] * 4 + ["good"],  # fewer than five rows for each
        [f"answer {i % 21}" for i in range(1000)],  # more than 20
        ["same"] * 100,
    ],
)
def test_free_text(write, answers):
    assert infer(write(texts(answers))).labels == ()


def test_numbers(write):
    found = infer(write(texts([10, 9, 0] * 10)))
    assert found.labels == ("0", "9", "10") and found.numbered
    assert not infer(write(texts(["1", "b"] * 5))).numbered and not infer(write(texts(["1", "2"]))).numbered


def test_columns(write):
    assert infer(write([{"review": "x", "summary": "é"}])) == Inferred("{review}", "summary", (), 1, 2)
    both = [{"title": "x", "body": "y", "id": 3, "label": "z"}]
    with pytest.raises(DataError, match=r'with --template, e.g. --template "title: {title} body: {body} id: {id}"'):
        infer(write(both))
    assert infer(write(both), template="{title}").target == "label"
    assert infer(write(both), template="{title}", target="id").target == "id"
    assert infer(write([{"text": "x", "id": 3, "label": "z"}])).template == "{text}"
    with pytest.raises(DataError, match="the columns are text, verdict; name the one with the answers with --target"):
        infer(write([{"text": "x", "verdict": "z"}]))
    with pytest.raises(DataError, match="no column 'verdict'"):
        infer(write(both), target="verdict", template="{title}")


def test_rows_without_an_answer(write):
    with pytest.raises(DataError, match=r"rows.jsonl:2: column 'label' is empty"):
        infer(write(texts(["a", " "])))
    with pytest.raises(DataError, match=r"rows.jsonl:2: no column 'label'"):
        infer(write([{"text": "a", "label": "b"}, {"text": "a"}]))


def test_a_csv_file(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("sentence,target\n" + 'one,"a, b"\ntwo,c\n' * 5)
    assert infer(path) == Inferred("{sentence}", "target", ("a, b", "c"), 10, 4)
