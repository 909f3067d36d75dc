"""Tasks of `add_task`: templates, preprocessors, and sources of text."""

import pytest

from prompt_jax.data.registry import add_task
from prompt_jax.data.text_tasks import text_source
from prompt_jax.errors import DataError
from prompt_jax.task_format import UNLABELED, TaskFormat
from reviews import load, text_task


def test_a_text_source_may_have_class_indices(registry, tokenizer):
    task = text_task("t_indices", [("a", 1), ("b", 0), ("c", -1)], sentinel=True)
    assert load(task, tokenizer).target_texts == ["<extra_id_0> good", "<extra_id_0> bad", UNLABELED]


@pytest.mark.parametrize(
    ("rows", "target", "message"),
    [
        ([("a", "good")], "answer", "'t_bad', split 'train', row 0: no column 'answer'; expected it among 'text'"),
        ([("a", "good"), (["b"], "bad")], "label", r"row 1: column 'text' holds \[\"b\"\]; expected text"),
        ([("a", "worse")], "label", "example 0 of t_bad, train, has the target 'worse'; expected one of 'bad', 'good'"),
        ([("a", 2)], "label", "has the target '2'; expected one of 'bad', 'good'"),
    ],
)
def test_a_text_source_that_does_not_match_its_format_is_an_error(registry, tokenizer, rows, target, message):
    with pytest.raises(DataError, match=message):
        load(text_task("t_bad", rows, target=target), tokenizer)


def test_exceptions_of_a_text_source_propagate(tokenizer, registry):
    def broken(split):
        raise DataError(f"no {split} here")
        yield

    task = add_task("broken", text_source(broken, ("train",)), TaskFormat("{source}"), target="target")
    with pytest.raises(DataError, match=r"^no train here$"):
        load(task, tokenizer)
