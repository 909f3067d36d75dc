"""Multitask prompts of shared and task-specific parameters: their algebra, and their initial values."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from adapters import assert_close, random_text, whole
from prompt_jax import forward
from prompt_jax.config.data import DataConfig
from prompt_jax.errors import ConfigError
from prompt_jax.experiment import Experiment, check
from prompt_jax.methods.multitask import MultitaskPromptTuning
from prompt_jax.methods.soft_prompt import PromptTuning
from prompt_jax.models.prompt import unstack_prompts

TASKS, LENGTH, WIDTH = 3, 4, 64
PARTS = ("add", "concatenate", "project")


def made(tiny, config, labels=(), seed=0):
    trainable = config.initialize(jax.random.key(seed), tiny, labels, tasks=TASKS)
    return trainable, config.apply(trainable).encoder_tokens.embeddings


def moved(trainable):
    """Return all parameters plus noise."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: np.asarray(leaf) + rng.normal(size=leaf.shape).astype(np.float32), trainable)


@pytest.mark.parametrize("task_part", PARTS)
def test_the_algebra_by_hand(tiny, task_part):
    config = MultitaskPromptTuning(length=LENGTH, init="normal", task_part=task_part)
    trainable = moved(made(tiny, config)[0])
    shared, own = trainable["shared"]["encoder_tokens"], trainable["own"]
    actual = config.apply(trainable).encoder_tokens.embeddings
    assert len(actual) == TASKS
    for task in range(TASKS):
        if task_part == "add":
            expected = [shared[row] + own[task][row] for row in range(LENGTH)]
        elif task_part == "concatenate":
            expected = [*shared, *own[task]]
        else:
            expected = [row + row @ own["kernel"][task] / WIDTH + own["bias"][task] for row in shared]
        np.testing.assert_allclose(actual[task], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("task_part", PARTS)
@pytest.mark.parametrize("mlp_width", (None, 8))
def test_tasks_begin_with_the_shared_prompt(tiny, task_part, mlp_width):
    """The shared prompt starts like a prompt for a single task, with and without an MLP."""
    alone = PromptTuning(length=LENGTH, init_vocab=100, mlp_width=mlp_width)
    length = 2 if task_part == "concatenate" else None
    config = MultitaskPromptTuning(**dataclasses.asdict(alone), task_part=task_part, task_length=length)
    labels = ("negative", "positive")
    trainable, prompts = made(tiny, config, labels)
    key, _ = jax.random.split(jax.random.key(0))
    single = alone.initialize(key, tiny, labels)
    jax.tree.map(np.testing.assert_array_equal, trainable["shared"], single)
    expected = alone.apply(single).encoder_tokens.embeddings
    for task in range(TASKS):
        np.testing.assert_array_equal(prompts[task][:LENGTH], expected)
    if task_part == "concatenate":  # embeddings of common pieces, none twice
        assert prompts.shape == (TASKS, LENGTH + 2, WIDTH)
        rows = np.asarray(prompts[:, LENGTH:]).reshape(-1, WIDTH)
        same = (np.asarray(tiny.params["embedding"])[None, :100] == rows[:, None]).all(axis=2)
        assert same.any(axis=1).all() and len(set(same.argmax(axis=1))) == len(rows)


@pytest.mark.parametrize("task_part", PARTS)
def test_a_row_has_its_tasks_prompt(tiny, task_part):
    """A row has its task's prompt in a batch of several tasks, and with that prompt alone."""
    config = MultitaskPromptTuning(length=LENGTH, init="normal", task_part=task_part)
    trainable = moved(made(tiny, config)[0])
    prompt = config.apply(trainable)
    ids = np.array([2, 0, 1, 2], np.int32)
    batch = whole(random_text(tiny, 4, 6)) | {"decoder_inputs": random_text(tiny, 4, 3, seed=1)}
    mixed = forward(tiny.params, tiny.config, batch | {"prompt_ids": ids}, prompt)
    for row, own in enumerate(ids):
        alone = jax.tree.map(lambda x, row=row: x[row : row + 1], batch)
        assert_close(mixed[row : row + 1], forward(tiny.params, tiny.config, alone, unstack_prompts(prompt)[own]))


@pytest.mark.parametrize(
    ("prompt", "data", "message"),
    [
        (MultitaskPromptTuning(), DataConfig(train=Path("a.csv")), "prompt.method 'multitask' needs data.task"),
        (PromptTuning(), DataConfig(train=Path("a.csv"), task_names=True), "data.task_names needs data.task"),
        (MultitaskPromptTuning(task_length=2), DataConfig(task="a"), "prompt.task_length needs prompt.task_part 'conc"),
        (MultitaskPromptTuning(task_length=0), DataConfig(task="a"), "prompt.task_length must be positive"),
    ],
)
def test_contradictory_options(prompt, data, message):
    with pytest.raises(ConfigError, match=message):
        check(Experiment(prompt=prompt, data=data))
