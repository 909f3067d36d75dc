"""A small experiment."""

from pathlib import Path

import pytest

from prompt_jax.config import DataConfig, Experiment, ModelConfig, PromptConfig, TrainConfig


@pytest.fixture
def experiment(tiny_folder: Path, sentiment_files: dict[str, Path], tmp_path: Path) -> Experiment:
    """Of 6 steps on the tiny model."""
    return Experiment(
        name="run",
        runs=tmp_path / "runs",
        model=ModelConfig(name=str(tiny_folder)),
        data=DataConfig(**sentiment_files, labels=("negative", "positive"), target_length=12, buckets=1),
        prompt=PromptConfig(length=4, init="vocab", init_vocab=150),
        train=TrainConfig(
            steps=6, batch_size=8, eval_every=3, checkpoint_every=2, eval_batch_size=8, log_every=1, dropout_rate=0.1
        ),
    )
