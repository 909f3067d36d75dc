"""Weight files and how they are assembled: exact values, reported damage, and one copy in memory."""

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from prompt_jax.checkpoints import weights
from prompt_jax.checkpoints.files import TensorInFile
from prompt_jax.distributed.sharding import parameter_sharding
from prompt_jax.errors import CheckpointError
from prompt_jax.models.t5 import T5Config, parameters
from weight_files import ARRAY

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


@pytest.mark.parametrize("dtype", weights.DTYPES)
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
    if dtype in ("int8", "fp8"):
        assert q.values.sharding.spec == spec(None, None, "model", None) and q.scale.shape == (2, 1, 4, 4)
        assert q.scale.sharding.spec == spec(None, None, "model", None)
        down = shapes["decoder"]["layers"][0]["mlp"]["down"]
        assert down.values.sharding.spec == spec(None, "model", None)
        assert down.scale.sharding.spec == spec(None, None, None)
    elif dtype == "int4":  # a group for each head's inputs; 12 inputs of four devices are a single group
        o, down = (shapes["decoder"]["layers"][0][site][name] for site, name in (("self", "o"), ("mlp", "down")))
        assert o.values.sharding.spec == spec(None, "model", None, None) and o.scale.shape == (3, 4, 1, 8)
        assert o.scale.sharding.spec == spec(None, "model", None, None)
        assert down.values.sharding.spec == spec(None, "model", None) and down.scale.shape == (3, 1, 8)
        assert down.scale.sharding.spec == spec(None, None, None)
    else:
        assert q.sharding.spec == spec(None, None, "model", None) and q.dtype == weights.DTYPES[dtype]
    assert shapes["embedding"].sharding.spec == spec(None, None)  # 50 words are no multiple of 4
