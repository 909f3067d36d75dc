"""Prompts with all metadata, and archives of any content."""

import io
import json
import zipfile

import numpy as np

from prompt_jax import Prompt, PromptMetadata, VirtualTokens
from prompt_jax.prompt_files.io import ModelId
from prompt_jax.task_format import TaskFormat

METADATA = PromptMetadata(
    base=ModelId("demo", None, "sha256:00"),
    method="soft_prompt",
    initialization="vocab",
    task="sentiment_movie",
    format=TaskFormat("{text}", ("negative", "positive"), ("accuracy",), 128, 8),
    step=200,
    scores={"accuracy": 0.875},
)


def prompt_of(embeddings, **fields) -> Prompt:
    return Prompt(VirtualTokens(np.asarray(embeddings, np.float32), **fields))


def embeddings_of(prompt: Prompt) -> np.ndarray:
    return np.asarray(prompt.encoder_tokens.embeddings)


def archive(path, **members) -> None:
    """Write a zip archive of the given bytes or arrays."""
    with zipfile.ZipFile(path, "w") as file:
        for name, value in members.items():
            if not isinstance(value, bytes):
                buffer = io.BytesIO()
                np.save(buffer, value, allow_pickle=value.dtype.hasobject)
                value = buffer.getvalue()
            file.writestr(f"{name}.npy", value)


GOOD = np.ones((2, 3), np.float32)


def header(shape, descr="<f4") -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": descr, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def text(**values) -> np.ndarray:
    return np.array(json.dumps({"format_version": 1, **values}))
