"""A model's config.json, and tensors of its files that are copies or unused.

Transformers' `AutoConfig` reads the file. `transformers` is imported only when a checkpoint is read.
"""

import functools
import re
import reprlib
from pathlib import Path
from typing import Any

import numpy as np

from prompt_jax.checkpoints.files import TensorInFile, Tensors, read_json
from prompt_jax.checkpoints.t5x import is_t5x
from prompt_jax.checkpoints.tokenizer import transformers_errors
from prompt_jax.errors import CheckpointError
from prompt_jax.models import FAMILIES, Config
from prompt_jax.models.hugging_face import ConfigValues

# Fields of classifiers. AutoConfig would create a name for each label, even for a huge number of labels.
_OF_CLASSIFIERS = ("num_labels", "id2label", "label2id")
# model_type -> the configuration's class and the family.
MODEL_TYPES = {
    model_type: (kind, family)
    for kind, family in FAMILIES.items()
    for model_type in (family.hugging_face.model_type, *family.hugging_face.also_read)
}
_UNSUPPORTED = {name: reason for each in FAMILIES.values() for name, reason in each.hugging_face.unsupported.items()}


def read_config(folder: Path) -> dict[str, Any]:
    """Return the content of a folder's config.json.

    Raises:
      CheckpointError: the file is missing, it cannot be read, or the model type is not supported.
    """
    file = folder / "config.json"
    if not file.exists() and not file.is_symlink():
        advice = f"; for a T5X checkpoint give t5x:{folder}" if is_t5x(folder) else ""
        raise CheckpointError(f"{folder} has no config.json, which every model folder on the Hub has{advice}")
    raw = read_json(file)
    model_type = raw.get("model_type") if isinstance(raw, dict) else None
    if not isinstance(model_type, str) or model_type not in MODEL_TYPES:
        reason = _UNSUPPORTED.get(str(model_type))
        named = reprlib.repr(model_type) + (f", {reason}" if reason else "")
        raise CheckpointError(f"{file} has model_type {named}; supported are {', '.join(MODEL_TYPES)}")
    return raw


def auto_config(raw: dict[str, Any], source: str) -> Any:
    """Return the content of a config.json as Transformers' configuration, with its defaults.

    Raises:
      CheckpointError: a value has the wrong type; the message names `source`.
    """
    with transformers_errors(f"{source} cannot be used"):
        from transformers import AutoConfig

        scaling = raw.get("rope_scaling")
        if isinstance(scaling, dict) and scaling.get("type") == "su":  # as in Phi 3 of May 2024
            raw = raw | {"rope_scaling": scaling | {"type": "longrope"}}
        return AutoConfig.for_model(**{name: value for name, value in raw.items() if name not in _OF_CLASSIFIERS})


def text_config(hf: Any) -> Any:
    """Return the configuration of the language model in that of a model with images, such as Gemma 3."""
    return getattr(hf, "text_config", hf)


def model_config(raw: dict[str, Any], tensors: Tensors, source: str) -> Config:
    """Return this project's configuration of a model, and bring its tensors into the family's form.

    Args:
      raw: the content of config.json.
      tensors: the tensors of the checkpoint. They are modified in place: copies and unused tensors are removed, and
        tensors get the names of the family's table.
      source: named in errors.

    Raises:
      CheckpointError: a value is invalid or not supported.
    """
    kind, family = MODEL_TYPES[raw["model_type"]]
    layout = family.hugging_face
    for pattern, replacement in layout.renamed:
        for name in [name for name in tensors if re.match(pattern, name)]:
            tensors.setdefault(re.sub(pattern, replacement, name, count=1), tensors.pop(name))
    for name in [name for name in tensors if layout.unused and re.fullmatch(layout.unused, name)]:
        del tensors[name]
    for name, copies in layout.copies.items():
        _drop_copies(tensors, name, *copies)
    hf = text_config(auto_config(raw, source))
    # Transformers 5 reports a tied output for every T5, whatever the file says.
    untied = False in (raw.get("tie_word_embeddings"), getattr(hf, "tie_word_embeddings", None))
    tied = layout.output is not None and _is_tied(tensors, *layout.output, untied)
    config = layout.config(kind, ConfigValues(hf, source), tied_output=tied, causal=family.causal)
    for name, shape in layout.optional(config).items():
        tensors.setdefault(name, TensorInFile(shape, functools.partial(np.zeros, shape, np.float32)))
    return config


# --------------------------------------------------------------------------------------------------------------
# Copies of tensors


def _is_tied(tensors: Tensors, output: str, embedding: str, expected: bool) -> bool:
    """Return whether the output is tied to the embedding table, and drop output weights that equal it.

    `expected`: whether config.json announces output weights. If it does, missing ones are an error.
    """
    if output not in tensors:
        return not expected
    if _equal(tensors, output, embedding):
        del tensors[output]
        return True
    return False


def _drop_copies(tensors: Tensors, original: str, *copies: str) -> None:
    """Remove copies of a tensor. A copy that differs is kept, and later reported as surplus."""
    if original not in tensors and (names := [name for name in copies if name in tensors]):
        tensors[original] = tensors.pop(names[0])
    for name in copies:
        if _equal(tensors, name, original):
            del tensors[name]


def _equal(tensors: Tensors, name: str, original: str) -> bool:
    if name not in tensors or original not in tensors or tensors[name].shape != tensors[original].shape:
        return False
    return bool(np.array_equal(tensors[name].read(), tensors[original].read()))
