"""Model folders with weights in every format."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import serialization, traverse_util
from safetensors.numpy import load_file, save_file

import t5x_checkpoints
from t5x_checkpoints import SMALL

Tensors = dict[str, np.ndarray]


def flax_tree(tensors: Tensors) -> dict[str, Any]:
    """Return tensors in Transformers 4's Flax layout: linear layers are kernels [in, out], tables are embeddings."""
    flat = {}
    for name, tensor in tensors.items():
        path = tuple(name.split(".")[:-1])
        if path[-1] in ("shared", "embed_tokens", "relative_attention_bias"):
            flat[(*path, "embedding")] = tensor
        elif "layer_norm" in path[-1]:
            flat[(*path, "weight")] = tensor
        else:
            flat[(*path, "kernel")] = np.ascontiguousarray(tensor.T)
    return traverse_util.unflatten_dict(flat)


def write_safetensors(file: Path, tensors: Tensors) -> list[str]:
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, file)
    return list(tensors)


def write_flax(file: Path, tensors: Tensors) -> list[str]:
    tree = flax_tree(tensors)
    file.write_bytes(serialization.msgpack_serialize(tree))
    return list(traverse_util.flatten_dict(tree, sep="/"))


def write_torch(file: Path, tensors: Tensors) -> list[str]:
    import torch

    torch.save({name: torch.from_numpy(np.array(tensor)) for name, tensor in tensors.items()}, file)
    return list(tensors)


WRITERS = {
    "model.safetensors": write_safetensors,
    "flax_model.msgpack": write_flax,
    "pytorch_model.bin": write_torch,
}


def write_shards(folder: Path, file: str, tensors: Tensors, shards: int = 3) -> None:
    """Write weights in shards of every third tensor, with their index."""
    stem, suffix = file.split(".")
    weight_map = {}
    for index in range(shards):
        names = sorted(tensors)[index::shards]
        shard = f"{stem}-{index + 1:05d}-of-{shards:05d}.{suffix}"
        weight_map |= dict.fromkeys(WRITERS[file](folder / shard, {name: tensors[name] for name in names}), shard)
    (folder / f"{file}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.fixture
def deep(fixtures: Path) -> Path:
    """Return a model with different depths and untied output weights."""
    return fixtures / "t5_deep" / "base"


@pytest.fixture
def deep_tensors(deep: Path) -> Tensors:
    return load_file(deep / "model.safetensors")


@pytest.fixture
def model_folder(tmp_path: Path, deep: Path) -> Callable[..., Path]:
    """Return a function that writes a model folder in a format ("sharded NAME" for shards), with changes to `deep`."""

    def make(tensors: Tensors, form: str = "model.safetensors", **changes: Any) -> Path:
        folder = tmp_path / "model"
        folder.mkdir()
        config = json.loads((deep / "config.json").read_text()) | changes
        (folder / "config.json").write_text(json.dumps(config))
        sharded, file = form.startswith("sharded "), form.removeprefix("sharded ")
        if sharded:
            write_shards(folder, file, tensors)
        else:
            WRITERS[file](folder / file, tensors)
        return folder

    return make


@pytest.fixture
def copied(tiny_folders, tmp_path):
    """Return a function that copies a family's folder and changes its weights, config or files."""

    def make(family: str, tensors=None, without=(), **config):
        copy = tmp_path / "copy"
        shutil.copytree(tiny_folders[family], copy)
        raw = json.loads((copy / "config.json").read_text()) | config
        (copy / "config.json").write_text(json.dumps(raw))
        for name in without:
            (copy / name).unlink()
        if tensors is not None:
            save_file({name: np.ascontiguousarray(t) for name, t in tensors.items()}, copy / "model.safetensors")
        return copy

    return make


@pytest.fixture
def changed(tiny_folders, tmp_path_factory):
    """Copy a family's folder and replace the content of a file."""

    def make(family: str, file: str, content: bytes) -> Path:
        folder = tmp_path_factory.mktemp(family) / "model"
        shutil.copytree(tiny_folders[family], folder, copy_function=os.link)
        (folder / file).unlink()
        (folder / file).write_bytes(content)
        return folder

    return make


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    return t5x_checkpoints.write(tmp_path / "checkpoint_1", SMALL, chunks=3)
