"""Flax's files: names, orientation, chunks, and objects that Flax does not write."""

from pathlib import Path

import msgpack
import numpy as np
import pytest
from flax import serialization

from prompt_jax.errors import CheckpointError
from weight_files import ARRAY, contents


def write_flax(file: Path, tree: dict) -> Path:
    file.write_bytes(serialization.msgpack_serialize(tree, in_place=True))  # else it sorts the entries
    return file


def test_flax_names_and_orientation(tmp_path):
    array = np.arange(6.0).reshape(2, 3)
    tree = {"a": {"0": {"kernel": array}, "norm": {"weight": array[0]}, "shared": {"embedding": array}}}
    actual = contents("flax", write_flax(tmp_path / "f", tree))
    assert actual.keys() == {"a.0.weight", "a.norm.weight", "a.shared.weight"}
    np.testing.assert_array_equal(actual["a.0.weight"], array.T)
    np.testing.assert_array_equal(actual["a.norm.weight"], array[0])
    np.testing.assert_array_equal(actual["a.shared.weight"], array)


def test_flax_arrays_in_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 16)
    array = np.random.default_rng(0).normal(size=(7, 9)).astype(np.float32)  # 16 chunks: "10" is written before "2"
    tree = {"a": {"kernel": array}, "b": {"embedding": array + 1}}
    file = write_flax(tmp_path / "f", tree)
    assert b"__msgpack_chunked_array__" in file.read_bytes()
    actual = contents("flax", file)
    np.testing.assert_array_equal(actual["a.weight"], array.T)
    np.testing.assert_array_equal(actual["b.weight"], array + 1)


def test_flax_names_of_every_length(tmp_path):
    names = ["n" * length for length in (1, 31, 32, 255, 256, 70_000)]
    tree = {name: np.full(2, float(index)) for index, name in enumerate(names)}
    actual = contents("flax", write_flax(tmp_path / "f", tree))
    assert {name: array[0] for name, array in actual.items()} == {name: array[0] for name, array in tree.items()}


def chunked(shape: list[int], *chunks: np.ndarray) -> dict:
    return {
        "__msgpack_chunked_array__": True,
        "shape": {str(index): size for index, size in enumerate(shape)},
        "chunks": {str(index): chunk for index, chunk in enumerate(chunks)},
    }


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"w": 1.5}, "kind float"),
        ({"w": [1]}, "'w' should be an array or a map of arrays; it is of kind array"),
        ({"w": msgpack.ExtType(3, b"1234")}, "'w' is no array .extension type 3"),
        (
            {"w": msgpack.ExtType(1, msgpack.packb([[3], "float32", b"1234"]))},
            r"'w' has 4 bytes; \[3\] of float32 is 12",
        ),
        ({"w": msgpack.ExtType(1, msgpack.packb([[1], "object", b"1234"]))}, "w has dtype object; supported are"),
        ({"w": msgpack.ExtType(1, msgpack.packb([[1], "float32", b"1234"]) + b"1")}, "'w' has 4 bytes"),
        ({"a": {"kernel": ARRAY}}, r"a/kernel has shape \[4\]; a kernel has two axes"),
        ({"a": {"weight": ARRAY, "embedding": ARRAY}}, "a/embedding occurs twice"),
        ({"w": chunked([2, 4], ARRAY)}, r"the chunks of 'w' do not make up its shape \[2, 4\]"),
        ({"w": chunked([8], ARRAY, ARRAY.astype(np.float16))}, "the chunks of 'w' do not make up its shape"),
        ({"w": chunked([4], ARRAY) | {"more": ARRAY}}, "the chunked array 'w' has 4 entries; 3 were expected"),
        ({"w": chunked([4], ARRAY) | {"chunks": {"1": ARRAY}}}, "'chunks' with .'1'.; 'chunks' was expected"),
    ],
)
def test_objects_that_flax_does_not_write(tmp_path, tree, message):
    with pytest.raises(CheckpointError, match=message):
        contents("flax", write_flax(tmp_path / "f", tree))


def test_flax_maps_without_end(tmp_path):
    file = tmp_path / "f"
    file.write_bytes(b"\x81\xa1a" * 100_000)
    with pytest.raises(CheckpointError, match="should be an array or a map of arrays"):
        contents("flax", file)


def test_data_after_the_parameters(tmp_path):
    file = write_flax(tmp_path / "f", {"w": ARRAY})
    file.write_bytes(file.read_bytes() + b"more")
    with pytest.raises(CheckpointError, match="unexpected data after the parameters"):
        contents("flax", file)
