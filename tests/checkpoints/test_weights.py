"""Weight files and how they are assembled: exact values, reported damage, and one copy in memory."""

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import jax
import ml_dtypes
import msgpack
import numpy as np
import pytest
from flax import serialization
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from prompt_jax.checkpoints import weights
from prompt_jax.checkpoints.files import TensorInFile, open_safetensors, open_torch
from prompt_jax.checkpoints.flax_msgpack import open_flax
from prompt_jax.distributed.sharding import parameter_sharding
from prompt_jax.errors import CheckpointError
from prompt_jax.models.t5 import T5Config, parameters

OPENERS = {"safetensors": open_safetensors, "flax": open_flax}
DTYPES = (np.float64, np.float32, np.float16, ml_dtypes.bfloat16)


def encoded(form: str, arrays: dict[str, np.ndarray], folder: Path) -> Path:
    """Write a file of arrays under names without a module."""
    file = folder / form
    if form == "safetensors":
        save_file(arrays, file)
    else:
        file.write_bytes(serialization.msgpack_serialize(dict(arrays)))
    return file


def contents(form: str, file: Path) -> dict[str, np.ndarray]:
    with OPENERS[form](file) as tensors:
        actual = {name: stored.read() for name, stored in tensors.items()}
        assert all(actual[name].shape == stored.shape for name, stored in tensors.items())
        return actual


# --------------------------------------------------------------------------------------------------------------
# Files


@pytest.mark.parametrize("form", OPENERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_is_read_as_stored(tmp_path, form, dtype):
    array = np.random.default_rng(0).normal(size=(3, 5, 2)).astype(dtype)
    file = encoded(form, {"odd": array[0, 0, :1].copy(), "w": array}, tmp_path)  # the second begins anywhere
    actual = contents(form, file)
    assert actual["w"].dtype == dtype
    np.testing.assert_array_equal(actual["w"], array)


@pytest.mark.parametrize("form", OPENERS)
def test_other_dtypes_are_refused(tmp_path, form):
    file = encoded(form, {"w": np.arange(3, dtype=np.int8)}, tmp_path)
    with pytest.raises(
        CheckpointError, match="w has dtype (I8|int8); supported are float64, float32, float16, bfloat16"
    ):
        contents(form, file)


@pytest.mark.parametrize("form", OPENERS)
def test_an_empty_file(tmp_path, form):
    (tmp_path / "empty").touch()
    with pytest.raises(CheckpointError, match="empty is (empty|not a complete)"):
        contents(form, tmp_path / "empty")


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


ARRAY = np.zeros(4, np.float32)


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


@pytest.fixture(scope="module", params=OPENERS)
def whole(request, tmp_path_factory) -> tuple[str, bytes, Path]:
    """Return a small file of each format: its format, its bytes, and the path for a changed copy."""
    folder = tmp_path_factory.mktemp("fuzz")
    arrays = {"w": np.ones((2, 3), np.float32), "v": np.ones(2, np.float16)}
    return request.param, encoded(request.param, arrays, folder).read_bytes(), folder / "changed"


@settings(max_examples=50)
@given(st.data())
def test_truncated_files(whole, data):
    form, content, file = whole
    file.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(CheckpointError, match=str(file)):
        contents(form, file)


@settings(max_examples=150)
@given(st.data())
def test_altered_files(whole, data):
    """Any change is detected, or the file still loads."""
    form, content, file = whole
    changed = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        changed[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
    file.write_bytes(changed)
    try:
        contents(form, file)
    except CheckpointError as error:
        assert str(file) in str(error)


@pytest.mark.interop
class TestPyTorch:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("zipped", [True, False])  # PyTorch 1.6 and later, or before
    def test_every_dtype_is_read_as_stored(self, tmp_path, dtype, zipped):
        torch = pytest.importorskip("torch")
        array = np.random.default_rng(0).normal(size=(3, 5)).astype(dtype)
        tensor = torch.from_numpy(array.astype(np.float64)).to(getattr(torch, np.dtype(dtype).name))
        torch.save({"w": tensor, "t": tensor.T}, tmp_path / "f", _use_new_zipfile_serialization=zipped)
        with open_torch(tmp_path / "f") as tensors:
            assert tensors["w"].read().dtype == dtype
            np.testing.assert_array_equal(tensors["w"].read(), array)
            np.testing.assert_array_equal(tensors["t"].read(), array.T)

    def test_objects_are_not_loaded(self, tmp_path):
        torch = pytest.importorskip("torch")
        torch.save({"w": Path("anything")}, tmp_path / "f")
        with pytest.raises(CheckpointError, match="not a complete PyTorch file of tensors"), open_torch(tmp_path / "f"):
            pass

    @pytest.mark.parametrize(
        ("content", "message"),
        [(["w"], "holds a list, not a dict"), ({"w": 1}, "w is a int, not a tensor")],
    )
    def test_other_contents(self, tmp_path, content, message):
        torch = pytest.importorskip("torch")
        torch.save(content, tmp_path / "f")
        with pytest.raises(CheckpointError, match=message), open_torch(tmp_path / "f"):
            pass

    @settings(max_examples=30)
    @given(st.floats(0, 0.999))
    def test_truncated_files(self, tmp_path_factory, share):
        torch = pytest.importorskip("torch")
        file = tmp_path_factory.mktemp("torch") / "f"
        torch.save({"w": torch.ones(20, 30)}, file)
        file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
        with pytest.raises(CheckpointError, match="not a complete PyTorch file"), open_torch(file):
            pass


# --------------------------------------------------------------------------------------------------------------
# Shards


def shards(folder: Path, weight_map: object) -> Path:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({}, "names no files"),
        (["w"], "is not a shard index: it has no 'weight_map'"),
        (None, "is not a shard index"),
        ({"w": "../elsewhere"}, "names the file '../elsewhere', which is not a plain file name"),
        ({"w": "/etc/passwd"}, "which is not a plain file name"),
        ({"w": ".."}, "which is not a plain file name"),
        ({"w": ""}, "which is not a plain file name"),
        ({"w": 3}, "names the file 3"),
        ({"w": "gone"}, "gone is missing; model.safetensors.index.json names it"),
    ],
)
def test_unusable_indices(tmp_path, weight_map, message):
    with pytest.raises(CheckpointError, match=message), weights.open_checkpoint(shards(tmp_path, weight_map)):
        pass


def test_a_tensor_in_two_shards(tmp_path):
    for name in ("one", "two"):
        save_file({"w": ARRAY, name: ARRAY}, tmp_path / name)
    folder = shards(tmp_path, {"one": "one", "two": "two", "w": "one"})
    with pytest.raises(CheckpointError, match="two: w is in another shard too"), weights.open_checkpoint(folder):
        pass


# --------------------------------------------------------------------------------------------------------------
# Assembly


def test_missing_surplus_and_misshapen_tensors_are_listed(model_folder, deep_tensors):
    from prompt_jax.checkpoints.load import load_model

    mlp = "decoder.block.2.layer.2.DenseReluDense.wi_0.weight"
    deep_tensors["bias"] = np.zeros(3, np.float32)
    deep_tensors["encoder.final_layer_norm.weight"] = np.zeros((20, 2), np.float32)
    deep_tensors[mlp] = deep_tensors[mlp].T
    del deep_tensors["decoder.block.1.layer.1.EncDecAttention.o.weight"]
    with pytest.raises(CheckpointError) as info:
        load_model(model_folder(deep_tensors))
    folder, *lines = str(info.value).splitlines()
    assert folder.endswith("model: the weights do not match the config.")
    assert lines == [
        "1 missing:",
        "  decoder.block.1.layer.1.EncDecAttention.o.weight [20, 36]",
        "1 surplus:",
        "  bias [3]",
        "2 of another shape:",
        "  encoder.final_layer_norm.weight [20, 2], expected [20]",
        f"  {mlp} [20, 32], expected [32, 20]",
    ]


def test_a_long_list_is_cut(model_folder, deep_tensors):
    from prompt_jax.checkpoints.load import load_model

    encoder = {name: tensor for name, tensor in deep_tensors.items() if not name.startswith("decoder")}
    with pytest.raises(CheckpointError) as info:
        load_model(model_folder(encoder))
    lines = str(info.value).splitlines()
    gone = len(deep_tensors) - len(encoder)
    assert (lines[1], len(lines), lines[-1]) == (f"{gone} missing:", 2 + 12 + 1, f"  and {gone - 12} more")


@pytest.fixture(scope="module")
def synthetic() -> tuple[list, dict[str, np.ndarray]]:
    """Return the table of a T5 of 20 MB, and its weights under Hugging Face's names."""
    config = T5Config(vocab_size=2000, d_model=128, d_kv=16, d_ff=512, num_heads=8, encoder_layers=7, decoder_layers=8)
    table = parameters(config)
    rng = np.random.default_rng(0)
    tensors = {}
    for parameter in table:
        for name in weights._names(parameter):
            tensors[name] = rng.normal(size=weights.stored_shape(parameter)).astype(np.float32)
    return table, tensors


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("form", ["model.safetensors", "flax_model.msgpack"])
def test_memory_stays_near_one_copy(synthetic, model_folder, form, dtype):
    table, tensors = synthetic
    stored = sum(tensor.nbytes for tensor in tensors.values())
    assert 18e6 < stored < 22e6
    folder = model_folder(tensors, form)
    tracemalloc.start()
    with weights.open_checkpoint(folder) as opened:
        params, _ = weights.assemble(table, opened, dtype)
    params = jax.block_until_ready(params)
    left, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # JAX's arrays are either the traced NumPy buffers themselves or copies that are not traced.
    one_copy = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    copies = max(one_copy, one_copy - left + peak) / one_copy
    assert copies < 1.6


def test_tensors_are_read_one_at_a_time(synthetic):
    """The table is read in order: first samples of each tensor, then each tensor."""
    table, tensors = synthetic
    names = []

    def reader(name: str) -> Callable[[], np.ndarray]:
        return lambda: names.append(name) or tensors[name]

    weights.assemble(
        table, {name: TensorInFile(tensors[name].shape, reader(name)) for name in reversed(tensors)}, "float32"
    )
    assert names == 2 * list(tensors)


@pytest.mark.parametrize("dtype", weights.DTYPES)
def test_abstract_parameters_have_the_shapes_of_real_ones(dtype, synthetic):
    table, tensors = synthetic
    stored = {name: TensorInFile(tensors[name].shape, lambda name=name: tensors[name]) for name in tensors}
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    params, _ = weights.assemble(table, stored, dtype, device)
    shapes = weights.abstract(table, dtype, device)
    assert jax.tree.structure(shapes) == jax.tree.structure(params)
    for shape, leaf in zip(jax.tree.leaves(shapes), jax.tree.leaves(params), strict=True):
        assert (shape.shape, shape.dtype, shape.sharding) == (leaf.shape, leaf.dtype, leaf.sharding)


@pytest.mark.parametrize("dtype", weights.DTYPES)
def test_abstract_parameters_have_the_shardings_of_loaded_ones(dtype):
    """Shardings on an abstract mesh, with the axes of the families' tables."""
    mesh = jax.sharding.AbstractMesh((1, 2, 4), ("ensemble", "data", "model"))
    config = T5Config(vocab_size=50, d_model=8, d_kv=4, d_ff=12, num_heads=4, encoder_layers=2, decoder_layers=3)
    shapes = weights.abstract(parameters(config), dtype, parameter_sharding(mesh))
    spec = jax.sharding.PartitionSpec
    q = shapes["encoder"]["layers"][0]["self"]["q"]
    if dtype == "int8":
        assert q.values.sharding.spec == spec(None, None, "model", None) and q.scale.shape == (2, 1, 4, 4)
        assert q.scale.sharding.spec == spec(None, None, "model", None)
        down = shapes["decoder"]["layers"][0]["mlp"]["down"]
        assert down.values.sharding.spec == spec(None, "model", None)
        assert down.scale.sharding.spec == spec(None, None, None)
    else:
        assert q.sharding.spec == spec(None, None, "model", None) and q.dtype == weights.DTYPES[dtype]
    assert shapes["embedding"].sharding.spec == spec(None, None)  # 50 words are no multiple of 4
