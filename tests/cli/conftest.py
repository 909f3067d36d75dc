"""Prompts of the tiny model, and a way to call the command line."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prompt_jax import Prompt, PromptMetadata, VirtualTokens, save_ensemble, save_prompt
from prompt_jax.cli import main
from prompt_jax.prompt_files.io import ModelId
from prompt_jax.task_format import TaskFormat


@pytest.fixture
def said(tiny) -> PromptMetadata:
    """Return the metadata of the prompt files."""
    return PromptMetadata(
        base=ModelId(tiny.name, tiny.revision, tiny.fingerprint),
        method="soft_prompt",
        task="files",
        format=TaskFormat("{text}", ("negative", "positive"), target_length=12),
        step=3,
        scores={"accuracy": 0.5},
    )


@pytest.fixture
def prompt_file(said, tmp_path) -> Path:
    """Return a file with a prompt of three tokens."""
    tokens = np.random.default_rng(0).normal(size=(3, 64)).astype(np.float32)
    save_prompt(tmp_path / "p.npz", Prompt(VirtualTokens(tokens)), said)
    return tmp_path / "p.npz"


@pytest.fixture
def ensemble_file(said, tmp_path) -> Path:
    """Return a file with an ensemble of two such prompts."""
    random = np.random.default_rng(1)
    prompts = [Prompt(VirtualTokens(random.normal(size=(3, 64)).astype(np.float32) * 5)) for _ in range(2)]
    named = [dataclasses.replace(said, settings={"train.seed": seed}) for seed in (7, 8)]
    save_ensemble(tmp_path / "e.npz", prompts, named)
    return tmp_path / "e.npz"


@pytest.fixture
def run(capsys) -> Callable[..., tuple[int, str, str]]:
    """Return a function that runs a command and returns exit status, standard output and standard error."""

    def call(*argv: Any) -> tuple[int, str, str]:
        try:
            status = main([str(word) for word in argv])
        except SystemExit as leaving:  # from tyro, for wrong options
            status = leaving.code
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return call


CONFIG = """
from pathlib import Path
from prompt_jax import DataConfig, Experiment, ModelConfig, PromptTuning, TrainConfig

experiment = Experiment(
    name="small",
    model=ModelConfig(name={model!r}),
    data=DataConfig(train=Path({train!r}), validation=Path({validation!r}), test=Path({test!r}),
                    labels=("negative", "positive"), target_length=12, buckets=1),
    prompt=PromptTuning(length=4, init="vocab", init_vocab=150),
    train=TrainConfig(steps=4, batch_size=8, eval_every=2, checkpoint_every=2, log_every=2, eval_batch_size=8,
                      dropout_rate=0.1),
)
"""


@pytest.fixture
def config(tiny_folder, sentiment_files, tmp_path, monkeypatch) -> Path:
    """Return a configuration of a small run in the working directory."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "small.py"
    path.write_text(CONFIG.format(model=str(tiny_folder), **{k: str(v) for k, v in sentiment_files.items()}))
    return path
