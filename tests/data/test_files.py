"""Files of examples: templates, labels, hold-outs, and errors that name the line."""

import contextlib
import json
import string
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sentencepieces
from fuzzing import FUZZ
from prompt_jax.data.files import data_folder, file_task, normalize_text, read_documents, text_fraction
from prompt_jax.data.load import LoadOptions, load_examples
from prompt_jax.data.rows import read_rows
from prompt_jax.errors import DataError
from prompt_jax.task_format import UNLABELED, TaskFormat
from reviews import LABELS, REVIEW, load, review_file, write

SMALL = settings(max_examples=50)


def read(path):
    return [row for _, row in read_rows(path)]


@SMALL
@given(
    content=st.one_of(
        st.binary(max_size=60),
        st.text(st.sampled_from('{}[]":,\t\n\r ab1"\\'), max_size=60).map(str.encode),
    ),
    name=st.sampled_from(["x.jsonl", "x.csv", "x.tsv"]),
    gz=st.sampled_from(["", ".gz"]),
)
def test_any_content_gives_rows_or_a_data_error(folder, content, name, gz):
    path = folder / f"any-{name}{gz}"
    path.write_bytes(content)  # as .gz, nearly never a gzip file
    with contextlib.suppress(DataError):
        rows = read(path)
        assert rows and all(isinstance(row, dict) for row in rows)
    with contextlib.suppress(DataError):
        list(file_task("t", {"train": path}, TaskFormat("{a}", LABELS), target="b").examples("train"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", '{"text": "a", "label": "good"}\n{"text": \n', r"x.jsonl:2: broken JSON.*one JSON object a line"),
        ("x.jsonl", '{"text": "a", "label": "good"}\n[1]\n', "x.jsonl:2: a JSON list; expected one JSON object"),
        ("x.jsonl", '{"text": "a"}\n', "x.jsonl:1: no column 'label'; expected it among 'text'"),
        ("x.jsonl", '{"text": null, "label": "good"}\n', "x.jsonl:1: column 'text' holds null; expected text"),
        ("x.jsonl", '{"text": ["a"], "label": "good"}\n', r"x.jsonl:1: column 'text' holds \[\"a\"\]"),
        ("x.jsonl", '{"text": "\\ud800", "label": "good"}\n', "x.jsonl:1: column 'text' holds half of a surrogate"),
        ("x.jsonl", "[" * 100_000, "x.jsonl:1: broken JSON"),
        ("x.jsonl", '{"text": ' + "9" * 5000 + "}", "x.jsonl:1: broken JSON"),
        ("x.csv", "text,label\na,good\nb\n", r"x.csv:3: 1 cells; expected 2 \(text, label\)"),
        ("x.csv", "text,label\na,good,b\n", "x.csv:2: 3 cells; expected 2"),
        ("x.csv", 'text,label\n"a,good\nb,bad\n', "x.csv:2: broken CSV"),
        ("x.csv", 'text,label\n"a"b,good\n', "x.csv:2: broken CSV"),
        ("x.csv", "text,text\na,good\n", "x.csv:1: a header line with the columns.*expected distinct names"),
        ("x.csv", "txt,label\na,good\n", "x.csv:2: no column 'text'; expected it among 'txt', 'label'"),
        ("x.tsv", "text\tlabel\na\tgood\t\n", "x.tsv:2: 3 cells; expected 2.*a tab or a line break has to be quoted"),
        ("x.tsv", "text\tlabel\na\tGood\n", "x.tsv:2: column 'label' holds the label 'Good'; expected one of 'bad'"),
        ("x.csv", "text,label\na,2\n", "x.csv:2: .*'2'; expected one of 'bad', 'good', or its number from 0 to 1"),
        ("x.csv", b"text,label\na,good\n\xff,bad\n", "x.csv:3: not UTF-8.*byte 0.*expected UTF-8"),
        ("x.jsonl", '{"text": "a"}'.encode("utf-16-le"), "x.jsonl:1: broken JSON"),
        ("x.csv", "text,label\na,good\n".encode("utf-16-le"), "x.csv:1: a header line with NUL.*byte order mark"),
        ("x.csv", "text,label\na,good\n".encode("utf-32"), "x.csv: UTF-32; expected UTF-8"),
        ("x.csv", "text,label\nä,good\n".encode("utf-16")[:-1], "x.csv, after line 1: not UTF-16"),
        ("x.csv", "text,label\nnaïve,good\n".encode("latin-1"), "x.csv:2: not UTF-8 .byte 0xef at character 3"),
        ("x.jsonl", '{"text": NaN, "label": "good"}\n', "x.jsonl:1: column 'text' holds NaN; expected text, a finite"),
        ("x.csv", "text,label\na," + "9" * 5000 + "\n", "x.csv:2: column 'label' holds the label '9{60}…'; expected"),
        ("x.csv", "text;label\na;good\n", "x.csv:1: a header line with semicolons and no commas; expected commas"),
        ("x.csv", '"text";"label"\n"a";"good"\n', "x.csv:1: a header line with semicolons and no commas"),
        ("x.csv", "text\tlabel\na\tgood\n", "x.csv:1: .* with tabs and no commas; expected commas, or the name .tsv"),
        ("x.tsv", "text,label\na,good\n", "x.tsv:1: .* with commas and no tabs; expected tabs, or the name .csv"),
        ("x.tsv", 'text\tlabel\n"a ""b"" c"\tgood\nd\n', "x.tsv:3: 1 cells; expected 2"),
        ("x.csv", "text,label\r\ra,good\rb\r", r"x.csv:4: 1 cells; expected 2 \(text, label\)"),
        ("x.csv", "", "x.csv: no rows; expected at least one after a header line"),
        ("x.csv", "text,label\n", "x.csv: no rows"),
        ("x.jsonl", "\n \n", "x.jsonl: no rows; expected at least one JSON object on a line"),
    ],
)
def test_errors_in_a_file_name_the_line(tmp_path, tokenizer, name, content, message):
    task = file_task("t", {"train": write(tmp_path / name, content)}, REVIEW)
    with pytest.raises(DataError, match=message):
        load_examples(task, tokenizer, "train", LoadOptions(64, 16))


@pytest.mark.parametrize(
    ("names", "share", "message"),
    [
        ({"train": "none.csv"}, 0, "none.csv: no such file"),
        ({"train": "x.txt"}, 0, r"x.txt: expected a file named .jsonl, .csv or .tsv"),
        ({}, 0, "names no file"),
        ({"train": "x.csv"}, 1.0, "less than 1, not 1.0"),
        ({"train": "x.csv", "validation": "x.csv"}, 0.1, "none for validation"),
        ({"test": "x.csv"}, 0.1, "there are files for test"),
    ],
)
def test_invalid_combinations_of_files_are_refused(tmp_path, names, share, message):
    write(tmp_path / "x.csv", "text,label\na,good\n")
    with pytest.raises(DataError, match=message):
        file_task("t", {k: tmp_path / v for k, v in names.items()}, REVIEW, validation_share=share)


def labels_read(tmp_path, labels, values):
    path = write(tmp_path / "x.jsonl", "".join(json.dumps({"text": "a", "label": v}) + "\n" for v in values))
    return [target for _, target in file_task("t", {"test": path}, TaskFormat("{text}", labels)).examples("test")]


def test_labels_may_be_strings_or_class_indices(tmp_path):
    values = ["good", "bad", 0, 1, "0", "1", -1, "-1"]
    expected = ["good", "bad", "bad", "good", "bad", "good", UNLABELED, UNLABELED]
    assert labels_read(tmp_path, LABELS, values) == expected
    assert labels_read(tmp_path, ("False", "True"), [True, False, 0]) == ["True", "False", "False"]


def test_if_a_label_is_a_number_numbers_are_labels(tmp_path):
    assert labels_read(tmp_path, ("1", "2"), [1, "2"]) == ["1", "2"]
    with pytest.raises(DataError, match=r"the label '0'; expected one of '1', '2'$"):
        labels_read(tmp_path, ("1", "2"), [1, 0])


def test_free_text_and_missing_targets(tmp_path):
    path = write(tmp_path / "x.csv", "text,answer\na,so it is\nb,\n")
    free = file_task("t", {"test": path}, TaskFormat("{text}"), target="answer")
    assert list(free.examples("test")) == [("a", "so it is"), ("b", "")]
    unlabeled = file_task("t", {"test": path}, REVIEW, target=None)
    assert [target for _, target in unlabeled.examples("test")] == [UNLABELED] * 2


def test_the_hold_out_is_a_function_of_the_text(tmp_path):
    rows = [f"text {i},good" for i in range(200)]
    path = write(tmp_path / "x.csv", "\n".join(["text,label", *rows, *[row.upper() for row in rows[:50]]]))
    path.write_text(path.read_text().replace(",GOOD", ",good"))
    task = file_task("t", {"train": path}, REVIEW, validation_share=0.25)
    assert task.splits == ("train", "validation")
    train, held_out = ([inputs for inputs, _ in task.examples(split)] for split in ("train", "validation"))
    assert len(train) + len(held_out) == 250 and 30 < len(held_out) < 95
    assert not set(map(normalize_text, train)) & set(map(normalize_text, held_out))


def test_normalized_text_and_its_hash():
    assert normalize_text("  It's GREAT —\tisn't it? ") == "it s great isn t it"
    assert normalize_text(":) ") == ":)" != normalize_text(":(")
    assert text_fraction("A b!") == text_fraction("a  B")
    fractions = np.array([text_fraction(str(i)) for i in range(2000)])
    assert fractions.min() >= 0 and fractions.max() < 1
    assert abs((fractions < 0.1).mean() - 0.1) < 0.03


def test_a_hold_out_without_examples_is_an_error(tmp_path, tokenizer):
    path = review_file(tmp_path, [("a", "good")])
    share = text_fraction("review: a") / 2  # the only text is above it
    with pytest.raises(DataError, match="'validation' of the task 't' has no examples"):
        load(file_task("t", {"train": path}, REVIEW, validation_share=share), tokenizer, "validation")


def test_the_folder_of_a_data_set(tmp_path, monkeypatch):
    monkeypatch.delenv("PROMPT_JAX_DATA", raising=False)
    with pytest.raises(DataError, match="set PROMPT_JAX_DATA to a folder with the data set in e2e/"):
        data_folder("e2e")
    monkeypatch.setenv("PROMPT_JAX_DATA", str(tmp_path))
    with pytest.raises(DataError, match="e2e: no such folder"):
        data_folder("e2e")
    (tmp_path / "e2e").mkdir()
    assert data_folder("e2e") == tmp_path / "e2e"


names = st.text(st.characters(codec="utf-8", exclude_characters="{}"), min_size=1, max_size=8)
pieces = st.text(st.characters(codec="utf-8", exclude_characters="{}"), max_size=8)


@FUZZ
@given(
    columns=st.lists(names, min_size=1, max_size=4), between=st.lists(pieces, min_size=5, max_size=5), data=st.data()
)
def test_a_column_may_have_any_name_without_braces(columns, between, data):
    """`#1 String`, `my-text`, `a.b`. Cells are not searched for columns."""
    row = {name: data.draw(st.text(max_size=8) | st.sampled_from(["{text}", "\\1", "{0}"])) for name in columns}
    template = between[0] + "".join(f"{{{name}}}{fixed}" for name, fixed in zip(columns, between[1:], strict=False))
    task_format = TaskFormat(template)
    assert task_format.columns == tuple(dict.fromkeys(columns))
    expected = between[0] + "".join(row[name] + fixed for name, fixed in zip(columns, between[1:], strict=False))
    assert task_format.render(row) == expected
    assert task_format.segments[::2] == (*between[: len(columns) + 1],) and task_format.segments[1::2] == (*columns,)


@pytest.mark.parametrize(("rows", "split"), [(4, "validation"), (8, "validation"), (1, "train")])
def test_an_empty_hold_out_says_what_to_change(tmp_path, rows, split):
    share = 0.1 if split == "validation" else 0.999
    lines = [f"{word},good" for word in string.ascii_lowercase if 0.1 <= text_fraction(word) < 0.999][:rows]
    path = write(tmp_path / "x.csv", "\n".join(["text,label", *lines]))
    task_format = TaskFormat("{text}", ("bad", "good"))
    task = file_task("files", {"train": path}, task_format, validation_share=share)
    amount = f"holds out none of {rows}" if split == "validation" else "holds out all of 1"
    message = rf"x.csv: the split '{split}' .* data.validation_share {share} {amount}; expected data.validation_share"
    with pytest.raises(DataError, match=message) as caught:
        list(task.examples(split))
    assert str(caught.value).endswith("or a file in data.validation")
    words = str(caught.value).rpartition("data.validation_share of at ")[2].split()
    mended = file_task("files", {"train": path}, task_format, validation_share=float(words[1].rstrip(",")))
    assert list(mended.examples(split)), "what the message says is enough"


def test_a_limit_keeps_only_its_sample_in_memory(tmp_path):
    """It is the same sample as one of all rows in memory."""

    tokenizer = sentencepieces.tokenizer(tmp_path, ["text 0 1 2 3 4 5 6 7 8 9 good bad"], 30, 4)
    count = 300
    rows = "".join(f"text {number} {'x' * 10_000},good\n" for number in range(count))
    path = write(tmp_path / "x.csv.gz", "text,label\n" + rows)
    task = file_task("files", {"test": path}, TaskFormat("{text}", ("bad", "good")))
    tokenizer.input_ids("text")  # which loads it
    tracemalloc.start()
    try:
        few = load_examples(task, tokenizer, "test", LoadOptions(20_000, 8, limit=2, seed=3))
        assert tracemalloc.get_traced_memory()[1] < 1_500_000  # of 3 MB of texts
    finally:
        tracemalloc.stop()
    kept = sorted(np.random.default_rng(3).permutation(count)[:2])
    assert few.input_texts == [f"text {number} {'x' * 10_000}" for number in kept]


def test_documents_are_equal_in_every_file_format(tmp_path):
    documents = ["  indented\nand on", "a second one ", "the third"]
    for end in ("\n", "\r\n", "\r"):
        text = "\n\n \t\n".join(documents).replace("\n", end)
        assert list(read_documents(write(tmp_path / "x.txt", text))) == documents
    lines = "".join(json.dumps({"text": document}) + "\n" for document in documents)
    assert list(read_documents(write(tmp_path / "x.jsonl", lines))) == documents
