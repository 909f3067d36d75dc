"""Lines: every line ending and encoding gives the same text."""

import gzip
import os
import tracemalloc

import pytest

from prompt_jax.data.files import read_documents
from prompt_jax.data.lines import MAX_LINE, read_lines, stream_lines, strip_line_ending
from prompt_jax.errors import DataError
from reviews import write


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("name", ["x.txt", "x.txt.gz", "X.TXT.GZ"])
def test_every_line_ending_and_encoding_gives_the_same_lines(tmp_path, end, encoding, name):
    lines = ["plain", "", " spaces\t", "\u2028\x85\x0b\x0c\x1c\x1d\x1e", "naïve 🙂", "nul \0 in it", "\ufeffmark"]
    for last in ("", end):
        path = write(tmp_path / name, (end.join(lines) + last).encode(encoding))
        assert list(map(strip_line_ending, read_lines(path))) == lines
    assert list(read_lines(write(tmp_path / name, "".encode(encoding)))) == []


def test_a_pipe_is_read_line_by_line_and_left_open():
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as stream, os.fdopen(writing, "wb", buffering=0) as out:
        lines = stream_lines(stream, "pipe")
        for text in ("one", "two"):
            out.write(f"{text}\n".encode())
            assert next(lines) == f"{text}\n"
        lines.close()
        assert not stream.closed


@pytest.mark.parametrize("name", ["x.jsonl.gz", "x.csv.gz", "x.tsv.gz", "x.txt.gz"])
def test_a_small_compressed_file_with_a_long_line_takes_little_memory(tmp_path, name):
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
