"""Rows of JSONL, CSV and TSV files: the same text comes back, whichever program wrote the file."""

import csv
import gzip
import io
import json
import warnings
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzzing import FUZZ
from prompt_jax.data.files import read_examples
from prompt_jax.data.lines import MAX_LINE
from prompt_jax.data.rows import read_rows
from prompt_jax.errors import DataError
from prompt_jax.task_format import TaskFormat
from reviews import write

SMALL = settings(max_examples=50)

text = st.text(st.characters(codec="utf-8"), max_size=20)
cells = st.lists(st.tuples(text, text), min_size=1, max_size=5)


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


def rows_of(path: Path) -> list[dict]:
    return [row for _, row in read_rows(path)]


def column(path: Path, name: str) -> list[str]:
    return [row[name] for row in rows_of(path)]


def test_an_unclosed_quotation_mark_does_not_read_the_whole_file(tmp_path):
    path = write(tmp_path / "x.csv", 'text\n"' + ("a" * 999 + "\n") * (MAX_LINE // 1000 + 1))
    with pytest.raises(DataError, match=r"x.csv:2: broken CSV .*more than .* a quotation mark may be missing"):
        rows_of(path)


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv", "x.tsv", "quoted.tsv"])
def test_a_cell_may_be_long(tmp_path, name):
    """The csv module's global limit of 131,072 characters does not apply, and stays unchanged."""
    text = "word " * 30_000 + ("\n" if name == "quoted.tsv" else "")
    content = json.dumps({"text": text, "n": 1}) if name == "x.jsonl" else None
    if content is None:
        out = io.StringIO(newline="")
        csv.writer(out, delimiter="," if name == "x.csv" else "\t").writerows([("text", "n"), (text, 1)])
        content = out.getvalue()
    limit = csv.field_size_limit()
    assert column(write(tmp_path / name, content), "text") == [text]
    assert csv.field_size_limit() == limit == 131_072


@pytest.mark.parametrize("name", sorted(path.name for path in TABLES.iterdir()))
@pytest.mark.parametrize("gz", ["", ".gz"])
def test_files_written_by_pandas_and_polars(tmp_path, name, gz):
    rows = rows_of(write(tmp_path / f"{name}{gz}", (TABLES / name).read_bytes()))
    assert [row["#1 String"] for row in rows] == TEXTS
    assert [row["my-text"] for row in rows] == TEXTS[::-1]
    assert [str(row["label"]) for row in rows] == ["0", "1"] * 5
    assert set(rows[0]) == {"#1 String", "my-text", "label"}, "the index has no name and is left out"


def excel(rows, separator: str) -> str:
    """Text as saved by Excel: cells with a comma, quotation mark, tab or line break are quoted; rows end with CRLF."""

    def cell(text: str) -> str:
        return '"' + text.replace('"', '""') + '"' if set(text) & set('",\t\n') else text

    return "".join(separator.join(map(cell, row)) + "\r\n" for row in rows)


@pytest.mark.parametrize(
    ("name", "separator", "encoding"),
    [("x.csv", ",", "utf-8-sig"), ("x.tsv", "\t", "utf-8-sig"), ("x.tsv", "\t", "utf-16")],
)
def test_files_written_by_excel(tmp_path, name, separator, encoding):
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


def test_mrpcs_released_file(tmp_path):
    """Read like TFDS does, with the csv module and QUOTE_NONE."""
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
def test_an_ambiguous_tsv_file_is_read_as_text_with_a_warning(tmp_path, row):
    for lines, number in (([row, 'not "quoted'], 3), (['not "quoted', row], 2)):
        path = write(tmp_path / "x.tsv", "".join(f"{line}\t1\n" for line in ["text", *lines]))
        with pytest.warns(UserWarning, match=rf"x.tsv:\d: the cell .* looks quoted, .* writes line {number}\. Fix"):
            assert column(path, "text") == lines


snippets = st.sampled_from(['"', '""', "\t", ",", "\n", "\r\n", "\r", "\u2028", "\x85", "\0", " ", "a", "é", "🙂", ";"])
texts = st.one_of(st.text(st.characters(codec="utf-8"), max_size=12), st.lists(snippets, max_size=8).map("".join))


@FUZZ
@given(rows=st.lists(st.tuples(texts, texts), min_size=1, max_size=6), quoting=st.sampled_from([0, 1, 2]))
@pytest.mark.parametrize(("name", "separator"), [("x.csv", ","), ("x.tsv", "\t")])
def test_any_quoting_of_pythons_csv_module_round_trips(tmp_path, name, separator, rows, quoting):
    out = io.StringIO(newline="")
    csv.writer(out, delimiter=separator, quoting=quoting).writerows([("a", "b"), *rows])
    assert [(row["a"], row["b"]) for row in rows_of(write(tmp_path / name, out.getvalue()))] == rows


@FUZZ
@given(content=st.text(st.sampled_from('"\t,\n\r ab;\0\ufeff'), max_size=40))
def test_any_tsv_file_is_read_or_refused(tmp_path, content):
    """Without quotation marks, rows are lines split at tabs."""
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


@SMALL
@given(rows=cells, gz=st.sampled_from(["", ".gz"]), ascii=st.booleans())
def test_any_text_round_trips_through_jsonl(folder, rows, gz, ascii):
    lines = [json.dumps({"a": a, "b": b}, ensure_ascii=ascii) + "\n" for a, b in rows]
    path = write(folder / f"x.jsonl{gz}", "".join(lines))
    assert [(row["a"], row["b"]) for row in rows_of(path)] == rows


@SMALL
@given(rows=cells, gz=st.sampled_from(["", ".gz"]))
def test_any_text_round_trips_through_csv(folder, rows, gz):
    out = io.StringIO(newline="")
    csv.writer(out).writerows([("a", "b"), *rows])
    path = write(folder / f"x.csv{gz}", out.getvalue())
    assert [(row["a"], row["b"]) for row in rows_of(path)] == rows


@pytest.mark.filterwarnings("ignore:.* looks quoted")
@SMALL
@given(rows=cells, gz=st.sampled_from(["", ".gz"]), end=st.sampled_from(["\n", "\r\n"]))
def test_any_text_without_tabs_and_line_breaks_round_trips_through_tsv(folder, rows, gz, end):
    rows = [tuple(cell.translate({9: " ", 10: " ", 13: " "}) for cell in row) for row in rows]
    rows.insert(0, ('not "quoted', ""))  # no program writes this in a file with quoted cells
    path = write(folder / f"x.tsv{gz}", "".join(f"{a}\t{b}{end}" for a, b in [("a", "b"), *rows]))
    assert [(row["a"], row["b"]) for row in rows_of(path)] == rows


def test_a_byte_order_mark_and_blank_lines_are_not_data(tmp_path):
    for name, content in (
        ("x.csv", "\ufeffa,b\n\n1,2\n\n"),
        ("x.tsv", "\ufeffa\tb\n\n1\t2\n\n"),
        ("x.jsonl", '\ufeff{"a": "1", "b": "2"}\n\n'),
    ):
        assert rows_of(write(tmp_path / name, content)) == [{"a": "1", "b": "2"}]


def test_a_quotation_mark_in_tsv_is_text(tmp_path):
    assert rows_of(write(tmp_path / "x.tsv", 'a\tb\n"so"\tx\n"no\ty\n')) == [
        {"a": '"so"', "b": "x"},
        {"a": '"no', "b": "y"},
    ]


def test_csv_rows_are_numbered_by_the_line_they_begin_on(tmp_path):
    path = write(tmp_path / "x.csv", 'a,b\n"1\n2",3\n4,5\n')
    assert [number for number, _ in read_rows(path)] == [2, 4]


@pytest.mark.parametrize("cut", [5, -3])
def test_a_damaged_gzip_file_is_a_data_error(tmp_path, cut):
    packed = gzip.compress(b"text,label\n" + b"a,good\n" * 1000)
    path = tmp_path / "x.csv.gz"
    path.write_bytes(packed[:cut])
    with pytest.raises(DataError, match="x.csv.gz: cannot be read after line"):
        rows_of(path)
