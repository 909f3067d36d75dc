"""Rows of text and of token ids become columns."""

import numpy as np
import pytest

from prompt_jax.control_tokens import mark
from prompt_jax.data.row_tokenizer import RowTokenizer, check_labels, new_columns
from prompt_jax.errors import DataError


@pytest.mark.parametrize("on_disk", [False, True])
def test_texts_and_token_ids(tokenizer, on_disk):
    """Token ids without their text are decoded."""
    ids = np.array([*tokenizer.encode("that one"), 1])
    rows = [
        {"inputs": b"this film is good", "targets": f"{mark('a')} good".encode()},
        {"inputs": ids, "targets": ids, "targets_pretokenized": b"THAT one"},
    ]
    columns, own = new_columns(on_disk), RowTokenizer("t", "train", tokenizer, 3, 64, ())
    for row in rows:
        own.append(row, columns)
    whole = [*tokenizer.encode("this film is good"), 1]
    assert len(whole) > 3 and len(ids) <= 64
    assert [each.tolist() for each in columns.inputs] == [[*whole[:2], 1], [*ids[:2], 1][: len(ids)]]
    assert columns.targets[1].tolist() == ids.tolist()
    assert list(columns.input_texts) == ["this film is good", "that one"]
    assert list(columns.target_texts) == ["a good", "THAT one"]
    assert columns.truncated == {"inputs": 1 + (len(ids) > 3), "targets": 0}


def test_a_target_that_is_not_a_label(tokenizer):
    columns, own = new_columns(False), RowTokenizer("t", "test", tokenizer, 9, 9, ("good", "bad"))
    for target in (b"good", b"<unk>"):
        own.append({"inputs": b"a", "targets": target}, columns)
    with pytest.raises(DataError, match="example 2 of t, test, has the target 'fine'; expected one of 'good', 'bad'"):
        own.append({"inputs": b"a", "targets": b"fine"}, columns)
    assert len(columns.inputs) == len(columns.target_texts) == 2


def test_labels_fit_the_target_length(tokenizer):
    length = len(tokenizer.target_ids("good"))
    check_labels("t", ("good",), tokenizer, length)
    with pytest.raises(DataError, match=f"'good' of the task 't' has {length} tokens .*at most target_length, "):
        check_labels("t", ("good",), tokenizer, length - 1)
