"""A fake Hub, models with a tokenizer, and an adapter that PEFT wrote."""

import shutil
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

import hub_server
import prompt_jax
from hub_prompts import log_in, point_at
from prompt_jax.checkpoints.load import Model


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Return the fake server, with the account `me` logged in, and an empty cache."""
    with hub_server.serving() as served:
        point_at(served.address, monkeypatch)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the fake server has only Git LFS
        monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
        log_in(monkeypatch, hub_server.TOKEN)
        printed = not are_progress_bars_disabled()
        disable_progress_bars()
        huggingface_hub.close_session()
        try:
            yield served
        finally:
            huggingface_hub.close_session()
            if printed:
                enable_progress_bars()


@pytest.fixture(scope="module")
def models(tiny_folders) -> dict[str, Model]:
    return {name: prompt_jax.load_model(str(folder)) for name, folder in tiny_folders.items()}


@pytest.fixture
def adapter(fixtures, tmp_path) -> Path:
    """Return a copy of GPT-2's soft prompt [5, 64]."""
    shutil.copytree(fixtures / "gpt2" / "prompt", tmp_path / "a")
    return tmp_path / "a"
