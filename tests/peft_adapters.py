"""Adapters of PEFT: models without weights, and the parts of adapter files."""

import json
import shutil
from pathlib import Path

import numpy as np

from prompt_jax import Prompt, PromptMetadata
from prompt_jax.checkpoints.load import Model
from prompt_jax.models import bart, gpt2, t5
from prompt_jax.prompt_files.io import ModelId
from prompt_jax.prompt_files.peft_tensors import CONFIG
from prompt_jax.task_format import TaskFormat


def of_shapes(config) -> Model:
    """Return a model without weights, except an embedding table of the right width."""
    return Model("google/some-base", "ab" * 20, {"embedding": np.zeros((1, config.d_model))}, config, None, "sha256:00")


def t5_of(layers: int, d_model: int = 8) -> Model:
    return of_shapes(
        t5.T5Config(vocab_size=8, d_model=d_model, d_kv=4, d_ff=8, num_heads=3, encoder_layers=2, decoder_layers=layers)
    )


def gpt2_of(layers: int) -> Model:
    return of_shapes(gpt2.GPT2Config(vocab_size=8, positions=8, d_model=12, d_ff=8, num_heads=3, layers=layers))


def bart_of(layers: int) -> Model:
    return of_shapes(bart.BartConfig(8, 8, 12, 2, 2, 8, layers, 3, 8))


def tied(prompt: Prompt) -> Prompt:
    """Copy the prefix of the first half of the layers to the second half, if the number of layers is even."""
    part = prompt.decoder_self
    half = len(part.keys) // 2
    if len(part.keys) % 2:
        return prompt
    keys, values = (np.concatenate([array[:half]] * 2) for array in (part.keys, part.values))
    return Prompt(decoder_self=part.replace(keys=keys, values=values))


def config_of(folder: Path) -> dict:
    return json.loads((folder / CONFIG).read_text())


def assert_same(actual: Prompt, expected: Prompt) -> None:
    assert actual.parts.keys() == expected.parts.keys()
    for mine, other in zip(actual.parts.values(), expected.parts.values(), strict=True):
        assert (mine.placement, mine.mask) == (other.placement, None)
        for name in mine.arrays:
            assert np.asarray(getattr(mine, name)).tobytes() == np.asarray(getattr(other, name)).tobytes()


def changed(folder: Path, to: Path, *, without: tuple[str, ...] = (), **values) -> Path:
    """Return a copy of an adapter with another configuration."""
    shutil.copytree(folder, to)
    config = {name: value for name, value in config_of(to).items() if name not in without} | values
    (to / CONFIG).write_text(json.dumps(config))
    return to


def written(header: dict | str | bytes, data: bytes = b"") -> bytes:
    """Return a safetensors file of this header."""
    text = header if isinstance(header, bytes) else (header if isinstance(header, str) else json.dumps(header)).encode()
    return len(text).to_bytes(8, "little") + text + data


def tensor(shape=(5, 64), dtype="F32", end=1280, start=0, name="prompt_embeddings") -> dict:
    return {name: {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}}


METADATA = PromptMetadata(
    base=ModelId("google/some-base", None, "sha256:00"),
    method="soft_prompt",
    task="sentiment",
    format=TaskFormat("review: {text}\n---", ("negative", "positive"), ("accuracy",), 128, 8),
    step=200,
    scores={"accuracy": 0.875},
)


FAMILIES = ("t5_v11", "gpt2", "bart")
