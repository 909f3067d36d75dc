"""Prompts on a fake Hub: what is pushed, and how errors are checked."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from huggingface_hub import constants, hf_api

from adapters import random_prefix, random_tokens
from prompt_jax import Prompt, PromptMetadata, save_ensemble, save_prompt
from prompt_jax.checkpoints.load import Model
from prompt_jax.prompt_files.hub import HubError
from prompt_jax.prompt_files.io import ModelId
from prompt_jax.prompt_files.peft_tensors import CONFIG, TENSORS
from prompt_jax.task_format import TaskFormat

FORMAT = TaskFormat("review: {text}", labels=("negative", "positive"), input_length=32, target_length=4)
ADAPTER = {CONFIG, TENSORS}


def point_at(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(hf_api.api, "endpoint", address)  # whose methods PEFT calls
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def log_in(monkeypatch: pytest.MonkeyPatch, token: str | None) -> None:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)


def said(model: Model, **values: Any) -> PromptMetadata:
    base = ModelId(model.name, None, model.fingerprint)
    return PromptMetadata(base, "soft_prompt", task="sst2", format=FORMAT, scores={"accuracy": 0.5}, **values)


def written(path: Path, model: Model, *prompts: Prompt) -> Path:
    """Return a file of one prompt, or of an ensemble of several."""
    if len(prompts) == 1:
        save_prompt(path, prompts[0], said(model, step=7))
    else:
        save_ensemble(path, prompts, [said(model, step=i, settings={"train.seed": i}) for i in range(len(prompts))])
    return path


def assert_same(actual: Prompt, expected: Prompt) -> None:
    assert actual.parts.keys() == expected.parts.keys()
    for name, part in actual.parts.items():
        assert part.placement == expected.parts[name].placement
        for array in part.arrays:
            there, here = (np.asarray(getattr(one, array)) for one in (part, expected.parts[name]))
            assert (there.dtype, there.shape, there.tobytes()) == (np.float32, here.shape, here.tobytes())


def archive(tmp_path: Path, model: Model, seed: int = 0) -> bytes:
    return written(tmp_path / f"of_{seed}.npz", model, random_tokens(model, 3, seed)).read_bytes()


def fails(call, *expected: str, error: type[Exception] = HubError) -> None:
    """Assert that an error is raised whose message contains these texts and no token."""
    with pytest.raises(error) as info:
        call()
    for text in expected:
        assert text in str(info.value)
    assert "Secret" not in str(info.value)


def prompts_of(name: str, model: Model) -> list[Prompt]:
    match name:
        case "tokens":
            return [random_tokens(model, 3)]
        case "prefixes":
            return [random_prefix(model, 2)]
        case "ensemble":
            return [random_tokens(model, length, seed=length) for length in (3, 1, 2)]
    raise ValueError(name)


def parsed(card: str) -> tuple[dict[str, Any], str, list[str]]:
    """Return a card's YAML, its text without code, and its Python code."""
    _, head, body = re.split(r"^---$\n", card, maxsplit=2, flags=re.MULTILINE)
    code = re.findall(r"^```python$\n(.*?)^```$", body, re.MULTILINE | re.DOTALL)
    text = re.sub(r"^```.*?^```$", "", body, flags=re.MULTILINE | re.DOTALL)
    for block in code:
        compile(block, "card", "exec")
    return yaml.safe_load(head), text, code
