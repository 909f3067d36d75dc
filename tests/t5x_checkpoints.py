"""T5X checkpoints, made from models in Hugging Face's layout."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore
from flax import serialization
from flax.traverse_util import unflatten_dict

# What Hugging Face's conversion script (convert_t5x_checkpoint_to_pytorch.py) makes of T5X's names, from right to left.
ATTENTION = {"q": "query", "k": "key", "v": "value", "o": "out"}
NORMS = {
    "encoder": ("pre_attention_layer_norm", "pre_mlp_layer_norm"),
    "decoder": ("pre_self_attention_layer_norm", "pre_cross_attention_layer_norm", "pre_mlp_layer_norm"),
}
WHOLE = {
    "shared.weight": "token_embedder/embedding",
    "lm_head.weight": "decoder/logits_dense/kernel",
    "encoder.final_layer_norm.weight": "encoder/encoder_norm/scale",
    "decoder.final_layer_norm.weight": "decoder/decoder_norm/scale",
}


def arrays_of(tensors: dict[str, np.ndarray], heads: int, scanned: str | None = None) -> dict[str, np.ndarray]:
    """Return T5X's arrays of a T5's tensors.

    `scanned` is None, or "flaxformer" or "t5x": layers in one array, along axis 1, with heads and their width in two
    axes, and relative positions in each layer (those of the first, where there are no others).
    """
    arrays: dict[str, np.ndarray] = {}
    layers: dict[str, dict[int, np.ndarray]] = {}
    for name, tensor in tensors.items():
        if name in WHOLE:
            arrays[WHOLE[name]] = tensor if name != "lm_head.weight" else tensor.T
            continue
        match = re.fullmatch(r"(encoder|decoder)\.block\.(\d+)\.layer\.(\d)\.(.*)\.weight", name)
        if match is None:
            assert name.endswith("embed_tokens.weight"), name
            continue
        side, block, sublayer, rest = match[1], int(match[2]), int(match[3]), match[4]
        if rest.endswith("relative_attention_bias"):
            path, array = "relpos_bias/rel_embedding", tensor.T
            if scanned is None:
                arrays[f"{side}/{path}"] = array
                continue
            path = path if scanned == "flaxformer" else "relative_posemb/rel_embedding"
        elif rest == "layer_norm":
            path, array = f"{NORMS[side][sublayer]}/scale", tensor
        elif rest.startswith("DenseReluDense."):
            path, array = f"mlp/{rest.removeprefix('DenseReluDense.')}/kernel", tensor.T
        else:
            module, own = rest.split(".")
            kind = {"SelfAttention": "self_attention", "EncDecAttention": "encoder_decoder_attention"}[module]
            path, array = f"{'attention' if side == 'encoder' else kind}/{ATTENTION[own]}/kernel", tensor.T
            if scanned is not None:
                array = array.reshape((heads, -1, array.shape[1]) if own == "o" else (array.shape[0], heads, -1))
        if scanned is None:
            arrays[f"{side}/layers_{block}/{path}"] = array
        else:
            layers.setdefault(f"{side}/{side if scanned == 'flaxformer' else 'layers'}/{path}", {})[block] = array
    depth = {
        side: 1 + max(int(name.split(".")[2]) for name in tensors if name.startswith(f"{side}.block")) for side in NORMS
    }
    for path, own in layers.items():
        arrays[path] = np.stack([own.get(layer, own[0]) for layer in range(depth[path.split("/")[0]])], axis=1)
    return arrays


def write(
    folder: Path, arrays: dict[str, np.ndarray], *, compressor: Any = "gzip", chunks: int = 5, axes: int = 2
) -> Path:
    """Write a checkpoint: arrays with at least that many axes by TensorStore in chunks of rows, the rest in msgpack."""
    folder.mkdir(parents=True)
    tree: dict[str, Any] = {}
    for path, array in arrays.items():
        if array.ndim < axes or path.endswith("rel_embedding"):
            tree[path] = np.ascontiguousarray(array)
            continue
        name = "target." + path.replace("/", ".")
        metadata = {
            "shape": list(array.shape),
            "chunks": [min(chunks, array.shape[0]), *array.shape[1:]],
            "compressor": {"id": compressor, "level": 1} if compressor else None,
        }
        spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": f"{folder / name}/"}, "metadata": metadata}
        tensorstore.open({**spec, "dtype": array.dtype.name}, create=True).result().write(array).result()
        tree[path] = {"driver": "zarr", "kvstore": {"driver": "gfile", "path": name}, "metadata": metadata}
    target = unflatten_dict({tuple(path.split("/")): leaf for path, leaf in tree.items()})
    state = {"step": np.int32(3), "param_states": {"encoder": {"m": np.zeros(1, np.float32)}, "none": None}}
    optimizer = {"target": target, "state": state}
    (folder / "checkpoint").write_bytes(serialization.msgpack_serialize({"version": 3, "optimizer": optimizer}))
    return folder


# A checkpoint of a prompt alone, whose array is in the folder ZARR.
PROMPT = "encoder/prompt/prompt/prompt"
ZARR = "target.encoder.prompt.prompt.prompt"
SMALL = {"encoder/encoder_norm/scale": np.ones(4, np.float32), PROMPT: np.arange(24, dtype=np.float32).reshape(6, 4)}


def rewrite(file: str, changed) -> Callable[[Path], object]:
    return lambda folder: (folder / file).write_bytes(changed((folder / file).read_bytes()))
