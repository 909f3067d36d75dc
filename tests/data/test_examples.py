"""Examples: their scores, and subsets of them."""

import numpy as np
import pytest

from prompt_jax import load_model
from prompt_jax.control_tokens import remove_marks
from prompt_jax.data.examples import Examples, input_ids, truncate
from prompt_jax.data.files import file_task
from prompt_jax.errors import DataError
from prompt_jax.metrics import metric_fns
from prompt_jax.task_format import TaskFormat
from reviews import REVIEW, load, review_file, write


def test_scores_count_answers_outside_the_labels(tmp_path, tokenizer):
    examples = load(file_task("t", {"train": review_file(tmp_path)}, REVIEW), tokenizer)
    assert examples.score(["good", "good", "great"]) == pytest.approx({"accuracy": 1 / 3, "invalid": 1 / 3})
    with pytest.raises(ValueError, match="2 predictions for 3 examples"):
        examples.score(["good", "good"])


def test_free_text_without_an_answer_is_not_scored(tmp_path, tokenizer):
    path = write(tmp_path / "x.csv", "text,answer\nx 1,so it is\nx 2,\n")
    examples = load(
        file_task("t", {"test": path}, TaskFormat("{text}", metrics=("exact_match",)), target=None), tokenizer, "test"
    )
    assert examples.unlabeled == 2
    with pytest.raises(DataError, match="t, test: 2 of 2 examples have no label, or no answer"):
        examples.score(["a", "b"])


LABELED = TaskFormat("{x}", ("no", "yes"))


def examples_of(targets, task_format=LABELED, **fields) -> Examples:
    """Return examples whose inputs and targets are two tokens each."""
    ids = [np.array([number + 2, 1], np.int32) for number in range(len(targets))]
    texts = [f"text {number}" for number in range(len(targets))]
    functions = tuple(metric_fns(task_format))
    return Examples("task", "test", ids, ids, texts, list(targets), {}, task_format, functions, **fields)


def test_taking_examples():
    examples = examples_of(["no", "yes", "no"], rows=({"i": 0}, {"i": 1}, {"i": 2}))
    taken = examples.take(np.array([2, 1, 1]))
    assert len(taken) == 3 and taken.input_texts == ["text 2", "text 1", "text 1"]
    assert taken.target_texts == ["no", "yes", "yes"] and [row["i"] for row in taken.rows] == [2, 1, 1]
    assert [ids[0] for ids in taken.inputs] == [ids[0] for ids in taken.targets] == [4, 3, 3]
    assert taken.score(["no", "no", "yes"])["accuracy"] == pytest.approx(2 / 3)


def test_the_log_likelihood_needs_no_answers():
    """It is the mean log-probability of a target's token."""
    examples = examples_of(["no", "yes"], TaskFormat("{x}", metrics=("log_likelihood",)))
    assert examples.needs_log_likelihood and not examples.needs_answers
    assert examples.score([], np.array([-1.0, -3.0])) == {"log_likelihood": -1.0}


@pytest.mark.parametrize("name", ("gpt2", "llama", "t5"))
@pytest.mark.parametrize("ending", ("\nthat is", "n film", " END, that is", ""))
def test_a_truncated_input_of_a_causal_model_keeps_the_end_of_its_template(tiny_folders, name, ending):
    """A token may span the end of the column. A control token of the template is kept too."""
    tokenizer = load_model(str(tiny_folders[name])).tokenizer
    ending = tokenizer.marked(ending.replace("END", tokenizer.piece(tokenizer.eos_id)))
    text = "a good film and long" * 5 + ending
    whole = tokenizer.input_ids(text)
    short = len(whole) - 8
    assert input_ids(tokenizer, text, len(whole), ending)[0].tolist() == whole
    ids, truncated = input_ids(tokenizer, text, short, ending)
    assert truncated and len(ids) == short and ids.dtype == np.int32
    if name == "t5" or not ending:
        np.testing.assert_array_equal(ids, truncate(whole, short, tokenizer.eos_id))
        return
    written = tokenizer.transformers.decode(ids).lstrip()
    assert written.endswith(remove_marks(ending))
    assert text.startswith(written[: -len(ending) - 5]), "the token that spans the end has fewer letters"
    with pytest.raises(DataError, match="the template ends in .* has . tokens, and an input has at most 1"):
        input_ids(tokenizer, text, 1, ending)


def test_a_truncated_text_keeps_its_end_token():
    assert truncate([5, 6, 7, 1], 3, eos_id=1).tolist() == [5, 6, 1]
    assert truncate([5, 6, 7], 2, eos_id=1).tolist() == [5, 6]
    assert truncate([5, 6, 1], 3, eos_id=1).tolist() == [5, 6, 1]
