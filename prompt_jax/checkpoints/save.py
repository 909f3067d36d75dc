"""Saving a base model in Hugging Face's layout: `config.json`, `model.safetensors`, and its tokenizer."""

import functools
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save

from prompt_jax.checkpoints.generation_config import FILE as GENERATION_FILE
from prompt_jax.checkpoints.generation_config import generation_config
from prompt_jax.checkpoints.load import Model
from prompt_jax.checkpoints.tokenizer import Tokenizer
from prompt_jax.checkpoints.weights import stored_shape
from prompt_jax.errors import CheckpointError
from prompt_jax.models import family
from prompt_jax.models.delta import flat
from prompt_jax.models.parameter import Parameter
from prompt_jax.models.quantized import Quantized
from prompt_jax.storage.files import atomic_write, write_text


def save_model(folder: Path, model: Model) -> None:
    """Save a model so that `load_model` and Transformers read it. The weights keep their dtype in memory.

    Each file is written atomically. `config.json` is written last, because a folder without it is not a model.

    Raises:
      CheckpointError: the folder is not empty, Hugging Face has no layout for the model, or some of its generation
        settings are not supported.
    """
    if folder.exists() and any(folder.iterdir()):
        raise CheckpointError(f"{folder} is not empty; save a model into a new or empty folder")
    if lost := ", ".join(model.config.generation.not_applied):
        raise CheckpointError(
            f"{model.name} has generation settings that would be lost: {lost}; remove them from its {GENERATION_FILE}"
        )
    model_family = family(model.config)
    config, leaves = model_family.hugging_face.config_json(model.config), flat(model.params)
    if any(isinstance(leaf, Quantized) for leaf in leaves.values()):
        raise CheckpointError(
            f"{model.name} was quantized on loading, and there is no file layout for it; load it in float32"
        )
    tensors: dict[str, tuple[int, list[np.ndarray]]] = {}
    for parameter in model_family.parameters(model.config):
        for name, tensor in _tensors(parameter, np.asarray(jax.device_get(leaves[parameter.path]))):
            outputs = 0 if parameter.transposed else -1
            tensors.setdefault(name, (outputs, []))[1].append(tensor)
    whole = {name: np.ascontiguousarray(np.concatenate(parts, axis)) for name, (axis, parts) in tensors.items()}
    data = save(whole, {"format": "pt"})
    atomic_write(folder / "model.safetensors", lambda file: file.write(data))
    if model.tokenizer is not None:
        _write_tokenizer(folder, model.tokenizer)
    special = {name: getattr(model.config, name) for name in ("pad_id", "eos_id", "start_id")}
    generation = generation_config(model.config.generation, **special)
    write_text(folder / GENERATION_FILE, json.dumps(generation, indent=2) + "\n")
    write_text(folder / "config.json", json.dumps(config, indent=2) + "\n")


def _write_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """Write the loaded tokenizer in Transformers' format, even if it was loaded from other files."""
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer.transformers.save_pretrained(scratch)
        for file in sorted(Path(scratch).iterdir()):
            atomic_write(folder / file.name, functools.partial(_copy, file))


def _copy(source: Path, opened: Any) -> None:
    opened.write(source.read_bytes())


def _tensors(parameter: Parameter, leaf: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Yield Hugging Face's tensors of a leaf, one per layer, or the parameter's part of them."""
    shape = stored_shape(parameter)
    if parameter.part is not None:
        size = parameter.part[1] - parameter.part[0]
        shape = (size, *shape[1:]) if parameter.transposed else (*shape[:-1], size)
    for layer in range(parameter.layers or 1):
        tensor = leaf if parameter.layers is None else leaf[layer]
        tensor = tensor.reshape(shape[::-1]).T if parameter.transposed else tensor.reshape(shape)
        yield parameter.name.format(layer=layer), tensor
