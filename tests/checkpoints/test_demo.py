"""The demo model: its one-time conversion, and errors."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import prompt_jax
from prompt_jax.checkpoints import demo
from prompt_jax.errors import CheckpointError


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """Return an empty cache."""
    monkeypatch.setenv("PROMPT_JAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def model(demo_model_folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROMPT_JAX_CACHE", str(demo_model_folder.parent))
        return prompt_jax.load_model("demo")


def test_the_model(model):
    config = model.config
    assert (model.name, model.revision) == ("demo", None)
    assert (config.d_model, config.num_heads, config.d_kv, config.d_ff) == (512, 6, 64, 1024)
    assert (config.encoder_layers, config.decoder_layers, config.vocab_size) == (8, 8, 32128)
    assert (config.tied_output, config.scale_output, config.gated, config.activation) == (False, False, True, "gelu")
    assert model.tokenizer.vocab_size == 32100
    # Prompts record the fingerprint, so it may change only if the model does.
    assert model.fingerprint == "sha256:22d735adb7bb24f8ea6330b2d2a7eb4d392132b9fe732b0812329cb5ff96325e"


def test_it_translates(model):
    """onnxruntime gives the same translation with the package's graphs."""
    ids = [*model.tokenizer.encode("translate English to German: The house is wonderful."), model.tokenizer.eos_id]
    batch = {"inputs": np.array([ids]), "inputs_mask": np.ones((1, len(ids)), bool)}
    tokens = prompt_jax.generate(model.params, model.config, batch, max_new_tokens=8)
    assert model.tokenizer.decode(np.asarray(tokens)[0]) == "Das Haus ist wunderbar."


def test_converted_once_and_then_without_onnx(demo_model_folder, monkeypatch):
    monkeypatch.setenv("PROMPT_JAX_CACHE", str(demo_model_folder.parent))
    for package in ("onnx", "traceforge_title_model"):
        monkeypatch.setitem(sys.modules, package, None)
    assert demo.demo_folder() == demo_model_folder
    assert sorted(path.name for path in demo_model_folder.iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]


@pytest.mark.parametrize("package", ["onnx", "traceforge_title_model"])
def test_a_package_is_missing(cache, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"the demo model needs the package {package}: pip install '\.\[demo\]'"):
        prompt_jax.load_model("demo")
    assert not cache.exists()


def test_another_version_of_the_package(cache, monkeypatch, demo_model_folder):
    monkeypatch.setattr(demo, "PACKAGE_VERSION", "0.1.0")
    with pytest.raises(ImportError, match=r"traceforge-title-model 0.1.0, not 0.2.0: pip install '\.\[demo\]'"):
        demo.demo_folder()


# --------------------------------------------------------------------------------------------------------------
# Dequantization of a small graph of the same form


def quantized(name: str, values: np.ndarray, zero_point: int, scale: float) -> list:
    from onnx import numpy_helper

    return [
        numpy_helper.from_array(values, f"{name}_quantized"),
        numpy_helper.from_array(np.array(zero_point, values.dtype), f"{name}_zero_point"),
        numpy_helper.from_array(np.array(scale, np.float32), f"{name}_scale"),
    ]


def save_graph(file: Path, initializers: list, matmuls: dict[str, str]) -> None:
    """Save a graph of initializers, and of products with some of them, given as names of node and weight."""
    onnx = pytest.importorskip("onnx")
    nodes = [
        onnx.helper.make_node("MatMulInteger", ["x", f"{weight}_quantized"], [node], name=node)
        for node, weight in matmuls.items()
    ]
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph(nodes, "graph", [], [], initializers)), file)


MATRIX = np.array([[-128, 0, 127], [1, 2, 3]], np.int8)  # [in, out]
TABLE = np.array([[0, 255], [128, 7]], np.uint8)
NORM = np.array([1.5, -2.0], np.float32)


def save_pair(folder: Path, encoder_table: np.ndarray = TABLE) -> None:
    from onnx import numpy_helper

    save_graph(
        folder / "encoder.onnx",
        [
            *quantized("onnx::MatMul_7", MATRIX, 2, 0.5),
            *quantized("enc.embed_tokens.weight", encoder_table, 128, 0.25),
            numpy_helper.from_array(NORM, "enc.final_layer_norm.weight"),
        ],
        {"/enc/block.0/layer.0/SelfAttention/q/MatMul_quant": "onnx::MatMul_7"},
    )
    save_graph(
        folder / "decoder.onnx",
        [*quantized("onnx::MatMul_9", MATRIX, 0, 2.0), *quantized("m.shared.weight", TABLE, 128, 0.25)],
        {"/m/lm_head/MatMul_quant": "onnx::MatMul_9"},
    )


def test_convert(tmp_path):
    pytest.importorskip("onnx")
    save_pair(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(b"pieces")
    out = tmp_path / "out"
    out.mkdir()
    demo.convert(tmp_path, out)
    actual = load_file(out / "model.safetensors")
    expected = {
        "encoder.block.0.layer.0.SelfAttention.q.weight": (MATRIX.T.astype(np.float32) - 2) * 0.5,
        "encoder.final_layer_norm.weight": NORM,
        "lm_head.weight": MATRIX.T.astype(np.float32) * 2,
        "shared.weight": (TABLE.astype(np.float32) - 128) * 0.25,
    }
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert actual[name].dtype == np.float32
        np.testing.assert_array_equal(actual[name], tensor, err_msg=name)
    assert json.loads((out / "config.json").read_text())["model_type"] == "t5"
    assert (out / "tokenizer.json").read_bytes() == b"pieces"


def test_embeddings_that_differ_are_refused(tmp_path):
    pytest.importorskip("onnx")
    save_pair(tmp_path, encoder_table=TABLE[::-1].copy())
    with pytest.raises(CheckpointError, match="the encoder and the decoder have different embeddings"):
        demo.convert(tmp_path, tmp_path)
