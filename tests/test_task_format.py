"""Task formats: rendering a row, and formats that are refused."""

import pytest

from prompt_jax.task_format import MAX_LENGTH, FormatError, TaskFormat, without_sentinel


def test_columns_are_rendered_in_their_places():
    task_format = TaskFormat("a: {one} {two}, {one}")
    assert task_format.columns == ("one", "two")
    assert task_format.segments == ("a: ", "one", " ", "two", ", ", "one", "")
    assert task_format.render({"one": 1, "two": "{one} {three}", "other": 0}) == "a: 1 {one} {three}, 1"


def test_a_template_cannot_read_attributes():
    """A template may come from an untrusted file. The text between braces is only a column's name."""
    task_format = TaskFormat("{text.__class__}")
    assert task_format.columns == ("text.__class__",)
    with pytest.raises(FormatError, match="no column 'text.__class__'; there are 'text'"):
        task_format.render({"text": "a"})


def test_marks_are_between_the_columns():
    marked = TaskFormat("a {one} b {two}").marked(str.upper)
    assert marked.template == "A {one} B {two}" and marked.render({"one": "x", "two": "y"}) == "A x B y"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"template": "{a} {"}, "has a brace that is not part of a {column}"),
        ({"template": "{{a}}"}, "has a brace that is not part of a {column}"),
        ({"template": "{a} {}"}, "has {}; write the column's name between the braces"),
        ({"template": "text"}, "names no column; write e.g. '{text}'"),
        ({"labels": ("a", "b", "a")}, r"the labels \['a', 'b', 'a'\] are not distinct"),
        ({"metrics": ()}, "at least one metric is needed: accuracy, "),
        ({"metrics": ("f1",), "labels": ("a", "b", "c")}, "the metric f1 needs two labels, .* not"),
        ({"metrics": ("matthews",)}, "the metric matthews needs labels"),
        ({"metrics": ("pearson",), "labels": ("1", "2")}, "the metric pearson is for free text"),
        ({"input_length": 0}, f"input_length must be from 1 to {MAX_LENGTH}, not 0"),
        ({"target_length": MAX_LENGTH + 1}, f"target_length must be from 1 to {MAX_LENGTH}, not {MAX_LENGTH + 1}"),
    ],
)
def test_invalid_formats_are_refused(fields, message):
    with pytest.raises(FormatError, match=message):
        TaskFormat(**{"template": "{a}", **fields})


def test_a_sentinel_before_an_answer_is_removed():
    assert without_sentinel("<extra_id_0> good <extra_id_0>") == "good <extra_id_0>"
    assert without_sentinel(" good") == "good"
