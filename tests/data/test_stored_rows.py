"""Rows in a file: nothing is lost or changed, and only what is needed is read."""

from io import FileIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prompt_jax.data import stored_rows
from prompt_jax.data.stored_rows import Concatenated, RowFile, StoredTexts, StoredTokens, row_lengths, token_blocks
from prompt_jax.errors import DataError

SMALL = settings(max_examples=50)
tokens_of = st.lists(st.lists(st.integers(-(2**31), 2**31 - 1), max_size=9), max_size=12)


def stored(rows, file=None):
    column = StoredTokens(file or RowFile())
    for row in rows:
        column.append(np.array(row, np.int64))
    return column


@SMALL
@given(st.lists(st.tuples(st.text(st.characters(exclude_categories=["Cs"])), st.lists(st.integers(0, 9)))))
def test_columns_in_one_file(rows):
    file = RowFile()
    texts, tokens = StoredTexts(file), StoredTokens(file)
    for text, ids in rows:
        texts.append(text)
        tokens.append(np.array(ids, np.int32))
    assert list(texts) == [text for text, _ in rows] and len(tokens) == len(rows)
    assert [row.tolist() for row in tokens] == [ids for _, ids in rows]
    assert all(row.dtype == np.int32 for row in tokens)


@SMALL
@given(tokens_of, tokens_of, st.integers(1, 60))
def test_stored_rows_are_like_a_list_of_arrays(first, second, block):
    whole = [np.array(row, np.int32) for row in first + second]
    columns = [stored(first + second), Concatenated([stored(first), stored(second)])]
    columns.append(Concatenated([whole[: len(first)], whole[len(first) :]]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stored_rows, "_BLOCK", block)
        for column in columns:
            assert len(column) == len(whole)
            assert b"".join(token_blocks(column)) == b"".join(row.tobytes() for row in whole)
            np.testing.assert_array_equal(row_lengths(column), [len(row) for row in whole])
            for index in range(-len(whole), len(whole)):
                np.testing.assert_array_equal(column[index], whole[index])
                np.testing.assert_array_equal(column[np.int64(index)], whole[index])
            for ours, row in zip(column[1:7:2], whole[1:7:2], strict=True):
                np.testing.assert_array_equal(ours, row)
            for outside in (len(whole), -len(whole) - 1):
                with pytest.raises(IndexError):
                    column[outside]


def test_only_the_rows_of_an_index_are_read(monkeypatch):
    column, read, real = stored([[1, 2], [3], [4, 5, 6]]), [], RowFile.read

    def spy(file, position, size):
        read.append((position, size))
        return real(file, position, size)

    monkeypatch.setattr(RowFile, "read", spy)
    assert column.lengths.tolist() == [2, 1, 3] and len(column) == 3 and read == []
    assert column[2].tolist() == [4, 5, 6] and read == [(12, 12)]


def test_a_full_disk_is_reported(monkeypatch):
    """Data is buffered, so the error may come with the first row that is read."""
    monkeypatch.setattr(stored_rows.tempfile, "TemporaryFile", lambda buffering: FileIO("/dev/full", "r+"))
    for rows in ([[1]], [[1] * 2**20]):
        with pytest.raises(DataError, match="could not be written there .No space left on device.; set TMPDIR to a"):
            stored(rows)[0]
