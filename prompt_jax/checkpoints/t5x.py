"""T5X checkpoints: T5 1.0, 1.1, LM-adapted and mT5 as their authors published them, and prompts tuned with T5X.

A checkpoint is a folder in the layout of `t5x.checkpoints` without Orbax:

    checkpoint                                         Flax's msgpack, which contains the small arrays
    target.encoder.layers_0.attention.query.kernel/    each other array in zarr, version 2: `.zarray` and chunks

Arrays have Flax's layout: a kernel is [in, out], relative positions are [H, buckets], and heads and their width are one
axis or two. Each layer has separate arrays (`encoder/layers_0/...`). A scanned model has one array for all layers, with
the layers along axis 1: `encoder/encoder/...` in Flaxformer, `encoder/layers/...` in T5X's scalable T5. Scanned models
have separate relative positions in each layer.

Checkpoints may come from strangers: links and paths in the file `checkpoint` are not followed, sizes are compared
before memory is allocated, and values that are not finite are refused. Properties that a checkpoint does not record
are assumed to be those of the published models: GELU for gated feed-forward layers as in T5 1.1, else ReLU; output
weights tied to the embedding are scaled as in T5 1.0; relative distances end at 128.
"""

import functools
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from prompt_jax.checkpoints.files import TensorInFile, Tensors
from prompt_jax.checkpoints.flax_msgpack import FlaxArray, flax_part
from prompt_jax.checkpoints.zarr import check_finite, open_zarr
from prompt_jax.errors import CheckpointError
from prompt_jax.models.t5 import T5Config
from prompt_jax.storage.paths import BucketPath

FILE = "checkpoint"
_TARGET = "target."

# T5X's names of arrays -> Hugging Face's names of tensors.
_ATTENTION = {"query": "q", "key": "k", "value": "v", "out": "o"}
_SUBLAYERS = {
    "encoder": (("pre_attention_layer_norm", "attention", "SelfAttention"),),
    "decoder": (
        ("pre_self_attention_layer_norm", "self_attention", "SelfAttention"),
        ("pre_cross_attention_layer_norm", "encoder_decoder_attention", "EncDecAttention"),
    ),
}
_RELATIVE = "layer.0.SelfAttention.relative_attention_bias"
_MODEL = {
    "token_embedder/embedding": "shared",
    "decoder/logits_dense/kernel": "lm_head",
    **{f"{side}/{side}_norm/scale": f"{side}.final_layer_norm" for side in _SUBLAYERS},
    **{f"{side}/relpos_bias/rel_embedding": f"{side}.block.0.{_RELATIVE}" for side in _SUBLAYERS},
}
_LAYER = re.compile(r"(encoder|decoder)/(?:layers_(0|[1-9][0-9]{0,3})|\1|layers)/(.+)", re.ASCII)
_PROMPT = re.compile(r"(^|/)prompt(/|$)")

_MAX_LAYERS = 1000


def is_t5x(folder: Path) -> bool:
    """Return whether a folder is a T5X checkpoint."""
    return (folder / FILE).is_file() and not (folder / FILE).is_symlink()


def steps_in(folder: Path) -> list[str]:
    """Return the names of the checkpoints in a T5X model folder."""
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("checkpoint_") and is_t5x(path))


def open_t5x(folder: Path) -> tuple[T5Config, Tensors]:
    """Return a model's config, and its tensors under Hugging Face's names, without prompts.

    Raises:
      CheckpointError: not a checkpoint, a damaged one, or not of a T5.
    """
    tensors: Tensors = {}
    # The layers of a scanned array are read one after the other, so keep the last array that was read.
    whole = functools.lru_cache(maxsize=1)(lambda stored: stored.read())
    arrays, missing = _arrays(folder)
    if lacking := sorted(path for path in missing if not _PROMPT.search(path)):
        raise CheckpointError(
            f"{folder} is incomplete: {len(lacking)} folders are missing, the first is "
            f"{_TARGET}{lacking[0].replace('/', '.'):.200}"
        )
    for path, stored in arrays.items():
        if not _PROMPT.search(path):
            for name, tensor in _layers(path, stored, folder, whole):
                if name in tensors:
                    raise CheckpointError(f"{folder}: {name} occurs twice, the second time as {path}")
                tensors[name] = tensor
    return _config(tensors, folder), tensors


def read_prompt_array(folder: Path) -> np.ndarray:
    """Return the prompt of a checkpoint, [P, D], in its stored dtype.

    Raises:
      CheckpointError: not a checkpoint, a damaged one, or one without a prompt or with several.
    """
    arrays, missing = _arrays(folder)
    prompts = {path: stored for path, stored in arrays.items() if _PROMPT.search(path)}
    if lacking := sorted(path for path in missing if _PROMPT.search(path)):
        raise CheckpointError(f"{folder} is incomplete: {_TARGET}{lacking[0].replace('/', '.'):.200} is missing")
    if len(prompts) != 1:
        which = f"several prompts: {', '.join(sorted(prompts)[:8]):.300}" if prompts else "no prompt"
        raise CheckpointError(f"{folder} is a T5X checkpoint with {which}; expected one array 'encoder/.../prompt'")
    ((path, stored),) = prompts.items()
    if len(stored.shape) != 2 or 0 in stored.shape:
        raise CheckpointError(f"{folder}: {path} is {list(stored.shape)}; a prompt is [P, D]")
    return stored.read()


# --------------------------------------------------------------------------------------------------------------
# Names and orientation


def _layers(
    path: str, stored: TensorInFile, folder: Path, whole: Callable[[TensorInFile], np.ndarray]
) -> Iterator[tuple[str, TensorInFile]]:
    """Yield the tensors of an array under Hugging Face's names, one per layer. An unknown array keeps its name."""
    if match := _LAYER.fullmatch(path):
        side, number, rest = match.groups()
        if (name := _in_layer(side, rest)) is None:
            yield path, stored
        elif number is not None:
            yield f"{side}.block.{number}.{name}.weight", _transpose(rest, stored)
        else:
            if len(stored.shape) < 2 or 0 in stored.shape or stored.shape[1] > _MAX_LAYERS:
                raise CheckpointError(
                    f"{folder}: {path} is {list(stored.shape)}; expected layers along axis 1, at most {_MAX_LAYERS}"
                )
            shape = stored.shape[:1] + stored.shape[2:]
            for layer in range(stored.shape[1]):
                tensor = TensorInFile(shape, functools.partial(_one_layer, whole, stored, layer))
                yield f"{side}.block.{layer}.{name}.weight", _transpose(rest, tensor)
    elif path in _MODEL:
        yield f"{_MODEL[path]}.weight", _transpose(path, stored) if path != "token_embedder/embedding" else stored
    else:
        yield path, stored


def _one_layer(whole: Callable[[TensorInFile], np.ndarray], stored: TensorInFile, layer: int) -> np.ndarray:
    return whole(stored)[:, layer]


def _in_layer(side: str, path: str) -> str | None:
    """Return Hugging Face's name of an array within its layer; None if a T5 has no such array."""
    sublayers = _SUBLAYERS[side]
    module, _, leaf = path.rpartition("/")
    for number, (norm, attention, theirs) in enumerate(sublayers):
        if path == f"{norm}/scale":
            return f"layer.{number}.layer_norm"
        if leaf == "kernel" and module in (known := {f"{attention}/{name}": own for name, own in _ATTENTION.items()}):
            return f"layer.{number}.{theirs}.{known[module]}"
    last = f"layer.{len(sublayers)}"
    if path in ("mlp/wi/kernel", "mlp/wi_0/kernel", "mlp/wi_1/kernel", "mlp/wo/kernel"):
        return f"{last}.DenseReluDense.{module.removeprefix('mlp/')}"
    if path in ("relpos_bias/rel_embedding", "relative_posemb/rel_embedding"):
        return _RELATIVE
    return f"{last}.layer_norm" if path == "pre_mlp_layer_norm/scale" else None


def _transpose(path: str, stored: TensorInFile) -> TensorInFile:
    """Return an array in PyTorch's orientation: a kernel as [out, in], with heads and their width in one axis."""
    shape = stored.shape
    if len(shape) == 3:  # [D, H, K], or [H, K, D] for the output of attention
        merged = (shape[0] * shape[1], shape[2]) if path.endswith("out/kernel") else (shape[0], shape[1] * shape[2])
        return TensorInFile(merged[::-1], functools.partial(_read_transposed, stored, merged))
    return TensorInFile(shape[::-1], functools.partial(_read_transposed, stored, shape))


def _read_transposed(stored: TensorInFile, shape: tuple[int, ...]) -> np.ndarray:
    return stored.read().reshape(shape).T


def _config(tensors: Tensors, folder: Path) -> T5Config:
    """Infer the config from the tensors' shapes. `prompt_jax.checkpoints.weights.check` reports missing tensors."""

    def shape(name: str) -> tuple[int, ...]:
        name = f"{name}.weight"
        if name not in tensors or len(tensors[name].shape) != 2 or 0 in tensors[name].shape:
            problem = "is missing" if name not in tensors else f"is {list(tensors[name].shape)}"
            raise CheckpointError(f"{folder} is a T5X checkpoint, but not of a T5: {name} {problem}")
        return tensors[name].shape

    def depth(side: str) -> int:
        numbers = [int(name.split(".")[2]) for name in tensors if name.startswith(f"{side}.block.")]
        return max(numbers, default=-1) + 1

    relative = [f"{side}.block.{{}}.{_RELATIVE}.weight" for side in _SUBLAYERS]
    per_layer = any(name.format(1) in tensors for name in relative)
    sides = zip(relative, _SUBLAYERS, strict=True)
    if per_layer and all(_equal_in_all_layers(tensors, name, depth(side)) for name, side in sides):
        # The model was converted to scanned layers: all layers have the relative positions of the first.
        per_layer = False
        for name, side in zip(relative, _SUBLAYERS, strict=True):
            for layer in range(1, depth(side)):
                del tensors[name.format(layer)]
    vocab_size, d_model = shape("shared")
    buckets, heads = shape(f"encoder.block.0.{_RELATIVE}")
    inner, _ = shape("encoder.block.0.layer.0.SelfAttention.q")
    if inner % heads:
        raise CheckpointError(f"{folder}: queries of width {inner} do not divide into {heads} heads")
    gated = "encoder.block.0.layer.1.DenseReluDense.wi_0.weight" in tensors
    tied = "lm_head.weight" not in tensors
    return T5Config(
        vocab_size=vocab_size,
        d_model=d_model,
        d_kv=inner // heads,
        d_ff=shape("encoder.block.0.layer.1.DenseReluDense.wo")[1],
        num_heads=heads,
        encoder_layers=depth("encoder"),
        decoder_layers=depth("decoder"),
        activation="gelu" if gated else "relu",
        gated=gated,
        tied_output=tied,
        scale_output=tied,
        relative_buckets=buckets,
        relative_per_layer=per_layer,
    )


def _equal_in_all_layers(tensors: Tensors, name: str, layers: int) -> bool:
    """Return whether the tensors of that name are equal in all layers."""
    names = [name.format(layer) for layer in range(layers)]
    if not names or any(each not in tensors for each in names):
        return False
    first = tensors[names[0]].read()
    return all(np.array_equal(tensors[each].read(), first) for each in names[1:])


# --------------------------------------------------------------------------------------------------------------
# Files


def _arrays(folder: Path) -> tuple[dict[str, TensorInFile], set[str]]:
    """Return the arrays by their paths, and the paths of arrays whose folders are missing."""
    if isinstance(folder, BucketPath) or str(folder).startswith("gs:"):
        raise CheckpointError(
            f"{folder}: T5X checkpoints are only read from a local folder; copy it (gcloud storage cp -r)"
        )
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder. A T5X checkpoint is a folder checkpoint_STEP")
    if not is_t5x(folder):
        steps = steps_in(folder)[:8]
        if (folder / FILE).is_symlink():
            instead = f": {FILE} is a symbolic link, which is not followed"
        elif steps:
            instead = f"; name one of those in it: {', '.join(steps)}"
        else:
            instead = f": it has no file {FILE!r}. Checkpoints written with Orbax are not supported"
        raise CheckpointError(f"{folder} is not a T5X checkpoint{instead}")
    file = folder / FILE
    # An array with a separate folder is represented by the specification with which TensorStore opens it.
    inside, elsewhere = flax_part(file, ("optimizer", "target"), "driver")
    arrays = {
        path: TensorInFile(array.shape, functools.partial(_inside, array, file, path)) for path, array in inside.items()
    }
    elsewhere = {path for path in elsewhere if not path.endswith("/kvstore")}
    for array_folder in sorted(folder.iterdir()):
        if array_folder.name.startswith(_TARGET):
            path = array_folder.name.removeprefix(_TARGET).replace(".", "/")
            if path in arrays:
                raise CheckpointError(f"{array_folder}: {path} is in {file} too")
            arrays[path] = open_zarr(array_folder)
    if not arrays:
        raise CheckpointError(f"{folder}: {FILE} has no 'optimizer/target', nor are there folders {_TARGET}...")
    return arrays, elsewhere - arrays.keys()


def _inside(array: FlaxArray, file: Path, path: str) -> np.ndarray:
    return check_finite(array.read(file), f"{file}: {path}")
