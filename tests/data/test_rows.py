"""Lines, rows and the two kinds of TSV: the same text comes out of a file however it was written."""

import csv
import gzip
import io
import json
import os
import string
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sentencepieces
from fuzzing import FUZZ
from prompt_jax.data.files import file_task, read_documents, read_examples, text_fraction
from prompt_jax.data.lines import MAX_LINE, read_lines, stream_lines, strip_line_ending
from prompt_jax.data.load import LoadOptions, load_examples
from prompt_jax.data.rows import read_rows
from prompt_jax.errors import DataError
from prompt_jax.task_format import TaskFormat

TABLES = Path(__file__).parents[1] / "fixtures" / "tables"

# What the files in TABLES hold: pandas 3.1.1 and polars wrote DataFrame({"#1 String": TEXTS, "my-text": TEXTS[::-1],
# "label": 0, 1, 0, ...}): pandas.csv and pandas.tsv with the index, pandas_all.tsv and pandas_nonnumeric.tsv with
# csv.QUOTE_ALL and QUOTE_NONNUMERIC, pandas_utf16.tsv with encoding="utf-16" and CRLF.
TEXTS = [
    'He said "good" twice.',
    '"All quoted"',
    "a, b; c",
    "tab\there",
    "two\nlines",
    "",
    " spaces ",
    "U+2028 \u2028 and U+0085 \x85 stay",
    "#1 — naïve café",
    "it's",
]


def write(path: Path, content: str | bytes) -> Path:
    raw = content if isinstance(content, bytes) else content.encode("utf-8")
    path.write_bytes(gzip.compress(raw) if path.name.lower().endswith(".gz") else raw)
    return path


def rows_of(path: Path) -> list[dict]:
    return [row for _, row in read_rows(path)]


def column(path: Path, name: str) -> list[str]:
    return [row[name] for row in rows_of(path)]


# ---- lines


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("name", ["x.txt", "x.txt.gz", "X.TXT.GZ"])
def test_every_line_end_and_encoding_gives_the_same_lines(tmp_path, end, encoding, name):
    lines = ["plain", "", " spaces\t", "\u2028\x85\x0b\x0c\x1c\x1d\x1e", "naïve 🙂", "nul \0 in it", "\ufeffmark"]
    for last in ("", end):
        path = write(tmp_path / name, (end.join(lines) + last).encode(encoding))
        assert list(map(strip_line_ending, read_lines(path))) == lines
    assert list(read_lines(write(tmp_path / name, "".encode(encoding)))) == []


def test_a_line_is_read_before_the_next_one_is_written():
    """Of a pipe; and the stream is left open."""
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as stream, os.fdopen(writing, "wb", buffering=0) as out:
        lines = stream_lines(stream, "pipe")
        for text in ("one", "two"):
            out.write(f"{text}\n".encode())
            assert next(lines) == f"{text}\n"
        lines.close()
        assert not stream.closed


@pytest.mark.parametrize("name", ["x.jsonl.gz", "x.csv.gz", "x.tsv.gz", "x.txt.gz"])
def test_a_small_file_of_one_long_line_takes_little_memory(tmp_path, name):
    """200 MB, in 200 kB."""
    start = b'{"text": "' if "jsonl" in name else b"" if "txt" in name else b"text\n"
    path = tmp_path / name
    with gzip.open(path, "wb", 1) as file:
        file.write(start)
        for _ in range(200):
            file.write(b"a" * 1_000_000)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=rf"{name}:\d: a line of more than {MAX_LINE:,} characters; expected"):
            list(read_documents(path))
        assert tracemalloc.get_traced_memory()[1] < 16 * MAX_LINE
    finally:
        tracemalloc.stop()


def test_a_quotation_mark_without_an_end_does_not_take_the_whole_file(tmp_path):
    path = write(tmp_path / "x.csv", 'text\n"' + ("a" * 999 + "\n") * (MAX_LINE // 1000 + 1))
    with pytest.raises(DataError, match=r"x.csv:2: broken CSV .*more than .* a quotation mark may be missing"):
        rows_of(path)


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv", "x.tsv", "quoted.tsv"])
def test_a_cell_may_be_long(tmp_path, name):
    """The csv module's own limit is 131,072 characters, and stays so for others."""
    text = "word " * 30_000 + ("\n" if name == "quoted.tsv" else "")
    content = json.dumps({"text": text, "n": 1}) if name == "x.jsonl" else None
    if content is None:
        out = io.StringIO(newline="")
        csv.writer(out, delimiter="," if name == "x.csv" else "\t").writerows([("text", "n"), (text, 1)])
        content = out.getvalue()
    limit = csv.field_size_limit()
    assert column(write(tmp_path / name, content), "text") == [text]
    assert csv.field_size_limit() == limit == 131_072


# ---- tables


@pytest.mark.parametrize("name", sorted(path.name for path in TABLES.iterdir()))
@pytest.mark.parametrize("gz", ["", ".gz"])
def test_what_pandas_and_polars_write(tmp_path, name, gz):
    rows = rows_of(write(tmp_path / f"{name}{gz}", (TABLES / name).read_bytes()))
    assert [row["#1 String"] for row in rows] == TEXTS
    assert [row["my-text"] for row in rows] == TEXTS[::-1]
    assert [str(row["label"]) for row in rows] == ["0", "1"] * 5
    assert set(rows[0]) == {"#1 String", "my-text", "label"}, "the index has no name and is left out"


def excel(rows, separator: str) -> str:
    """As Excel saves text: quoted with a comma, a quotation mark, a tab or a line break in it, CRLF after each row."""

    def cell(text: str) -> str:
        return '"' + text.replace('"', '""') + '"' if set(text) & set('",\t\n') else text

    return "".join(separator.join(map(cell, row)) + "\r\n" for row in rows)


@pytest.mark.parametrize(
    ("name", "separator", "encoding"),
    [("x.csv", ",", "utf-8-sig"), ("x.tsv", "\t", "utf-8-sig"), ("x.tsv", "\t", "utf-16")],
)
def test_what_excel_writes(tmp_path, name, separator, encoding):
    rows = [(text, str(i % 2)) for i, text in enumerate(TEXTS)]
    path = write(tmp_path / name, excel([("text", "label"), *rows], separator).encode(encoding))
    assert [(row["text"], row["label"]) for row in rows_of(path)] == rows
    only_commas = [("Yes, indeed.", "1"), ("No", "0"), ("Well, well.", "1")]
    path = write(tmp_path / name, excel([("text", "label"), *only_commas], separator).encode(encoding))
    assert [(row["text"], row["label"]) for row in rows_of(path)] == only_commas


# With the header, the byte order mark and the kinds of quotation marks of MRPC's own file.
MRPC = (
    "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
    '1\t7\t8\tHe said " no " twice .\tHe said no twice .\n'
    '0\t9\t10\t" It is late , " she said .\t" It is late . "\n'
    "1\t11\t12\tThe yen rose .\tThe yen was up .\n"
)


def test_mrpcs_own_file(tmp_path):
    """As the csv module reads it with QUOTE_NONE, which is how TFDS reads GLUE's files."""
    path = write(tmp_path / "msr_paraphrase_train.tsv", MRPC)
    expected = list(csv.DictReader(io.StringIO(MRPC.removeprefix("\ufeff")), delimiter="\t", quoting=csv.QUOTE_NONE))
    assert rows_of(path) == expected
    task_format = TaskFormat("sentence1: {#1 String} sentence2: {#2 String}", ("not_equivalent", "equivalent"))
    inputs, target = list(read_examples(path, task_format, "Quality"))[1]
    assert inputs == 'sentence1: " It is late , " she said . sentence2: " It is late . "' and target == "not_equivalent"


@pytest.mark.parametrize(
    "rows",
    [
        ['"so"'],  # no program quotes this
        ['"so', "a"],
        ['a "b" c'],
        ['" It is late . "', "Yes , it is"],  # a comma in quotation marks, and one without
        ['"a" b'],
        ['5" disk', '"x, y"'],
        ['"one" and "two"'],
    ],
)
def test_quotation_marks_that_are_text(tmp_path, rows):
    path = write(tmp_path / "x.tsv", "".join(f"{row}\t1\n" for row in ["text", *rows]))
    assert column(path, "text") == rows


@pytest.mark.parametrize("row", ['"He said ""no"" ."', '"a""b"'])
def test_a_tsv_file_of_both_kinds_is_read_as_text_with_a_warning(tmp_path, row):
    for lines, number in (([row, 'not "quoted'], 3), (['not "quoted', row], 2)):
        path = write(tmp_path / "x.tsv", "".join(f"{line}\t1\n" for line in ["text", *lines]))
        with pytest.warns(UserWarning, match=rf"x.tsv:\d: the cell .* looks quoted, .* writes line {number}\. Fix"):
            assert column(path, "text") == lines


snippets = st.sampled_from(['"', '""', "\t", ",", "\n", "\r\n", "\r", "\u2028", "\x85", "\0", " ", "a", "é", "🙂", ";"])
texts = st.one_of(st.text(st.characters(codec="utf-8"), max_size=12), st.lists(snippets, max_size=8).map("".join))


@FUZZ
@given(rows=st.lists(st.tuples(texts, texts), min_size=1, max_size=6), quoting=st.sampled_from([0, 1, 2]))
@pytest.mark.parametrize(("name", "separator"), [("x.csv", ","), ("x.tsv", "\t")])
def test_whatever_pythons_csv_module_quotes_comes_back(tmp_path, name, separator, rows, quoting):
    out = io.StringIO(newline="")
    csv.writer(out, delimiter=separator, quoting=quoting).writerows([("a", "b"), *rows])
    assert [(row["a"], row["b"]) for row in rows_of(write(tmp_path / name, out.getvalue()))] == rows


@FUZZ
@given(content=st.text(st.sampled_from('"\t,\n\r ab;\0\ufeff'), max_size=40))
def test_any_tsv_file_is_read_or_refused(tmp_path, content):
    """And one without a quotation mark as lines and tabs say."""
    path = write(tmp_path / "x.tsv", content)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rows = rows_of(path)
    except DataError:
        return
    if '"' not in content:
        text = content.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
        header, *cells = [line.split("\t") for line in text.split("\n") if line]
        expected = [{name: cell for name, cell in zip(header, own, strict=True) if name} for own in cells]
        assert rows == expected


# ---- templates


names = st.text(st.characters(codec="utf-8", exclude_characters="{}"), min_size=1, max_size=8)
pieces = st.text(st.characters(codec="utf-8", exclude_characters="{}"), max_size=8)


@FUZZ
@given(
    columns=st.lists(names, min_size=1, max_size=4), between=st.lists(pieces, min_size=5, max_size=5), data=st.data()
)
def test_a_column_may_have_any_name_without_braces(columns, between, data):
    """`#1 String`, `my-text`, `a.b`; and what a cell holds is not looked through for columns."""
    row = {name: data.draw(st.text(max_size=8) | st.sampled_from(["{text}", "\\1", "{0}"])) for name in columns}
    template = between[0] + "".join(f"{{{name}}}{fixed}" for name, fixed in zip(columns, between[1:], strict=False))
    task_format = TaskFormat(template)
    assert task_format.columns == tuple(dict.fromkeys(columns))
    expected = between[0] + "".join(row[name] + fixed for name, fixed in zip(columns, between[1:], strict=False))
    assert task_format.render(row) == expected
    assert task_format.segments[::2] == (*between[: len(columns) + 1],) and task_format.segments[1::2] == (*columns,)


# ---- tasks over files


@pytest.mark.parametrize(("rows", "split"), [(4, "validation"), (8, "validation"), (1, "train")])
def test_a_split_that_is_left_empty_names_what_to_change(tmp_path, rows, split):
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


def test_a_limit_keeps_no_other_rows_in_memory(tmp_path):
    """And draws the rows that a draw from all of them in memory does."""

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


def test_documents_are_the_same_texts_from_every_file(tmp_path):
    documents = ["  indented\nand on", "a second one ", "the third"]
    for end in ("\n", "\r\n", "\r"):
        text = "\n\n \t\n".join(documents).replace("\n", end)
        assert list(read_documents(write(tmp_path / "x.txt", text))) == documents
    lines = "".join(json.dumps({"text": document}) + "\n" for document in documents)
    assert list(read_documents(write(tmp_path / "x.jsonl", lines))) == documents
