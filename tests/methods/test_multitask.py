"""Prompts of a shared part and a part for each task: their algebra, and what they begin as."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from adapters import assert_close, random_text, whole
from prompt_jax import forward
from prompt_jax.config.checks import check
from prompt_jax.config.prompt import PromptConfig
from prompt_jax.errors import ConfigError
from prompt_jax.experiment import Experiment
from prompt_jax.methods import applied, method
from prompt_jax.models.prompt import unstack_prompts

TASKS, LENGTH, WIDTH = 3, 4, 64
PARTS = ("add", "concatenate", "project")


def made(tiny, config, labels=(), seed=0):
    trainable = method(config).init(jax.random.key(seed), config, tiny, labels, tasks=TASKS)
    return trainable, applied(config)(trainable, tiny.params)[1].encoder_tokens.embeddings


def moved(trainable):
    """Every part somewhere else than it begins."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: np.asarray(leaf) + rng.normal(size=leaf.shape).astype(np.float32), trainable)


@pytest.mark.parametrize("per_task", PARTS)
def test_the_algebra_by_hand(tiny, per_task):
    config = PromptConfig(length=LENGTH, init="normal", per_task=per_task)
    trainable = moved(made(tiny, config)[0])
    shared, own = trainable["shared"]["encoder_tokens"], trainable["own"]
    found = applied(config)(trainable, tiny.params)[1].encoder_tokens.embeddings
    assert len(found) == TASKS
    for task in range(TASKS):
        if per_task == "add":
            expected = [shared[row] + own[task][row] for row in range(LENGTH)]
        elif per_task == "concatenate":
            expected = [*shared, *own[task]]
        else:
            expected = [row + row @ own["kernel"][task] / WIDTH + own["bias"][task] for row in shared]
        np.testing.assert_allclose(found[task], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("per_task", PARTS)
@pytest.mark.parametrize("mlp_width", (None, 8))
def test_tasks_begin_with_the_shared_prompt(tiny, per_task, mlp_width):
    """Which begins as one for a single task does, be it made by an MLP."""
    alone = PromptConfig(length=LENGTH, init_vocab=100, mlp_width=mlp_width)
    config = dataclasses.replace(alone, per_task=per_task, task_length=2 if per_task == "concatenate" else None)
    labels = ("negative", "positive")
    trainable, prompts = made(tiny, config, labels)
    key, _ = jax.random.split(jax.random.key(0))
    single = method(alone).init(key, alone, tiny, labels)
    jax.tree.map(np.testing.assert_array_equal, trainable["shared"], single)
    expected = applied(alone)(single, tiny.params)[1].encoder_tokens.embeddings
    for task in range(TASKS):
        np.testing.assert_array_equal(prompts[task][:LENGTH], expected)
    if per_task == "concatenate":  # embeddings of common pieces, none twice
        assert prompts.shape == (TASKS, LENGTH + 2, WIDTH)
        rows = np.asarray(prompts[:, LENGTH:]).reshape(-1, WIDTH)
        same = (np.asarray(tiny.params["embedding"])[None, :100] == rows[:, None]).all(axis=2)
        assert same.any(axis=1).all() and len(set(same.argmax(axis=1))) == len(rows)


@pytest.mark.parametrize("per_task", PARTS)
def test_a_row_has_its_tasks_prompt(tiny, per_task):
    """In a batch of several tasks, and in a file alone."""
    config = PromptConfig(length=LENGTH, init="normal", per_task=per_task)
    trainable = moved(made(tiny, config)[0])
    prompt = applied(config)(trainable, tiny.params)[1]
    ids = np.array([2, 0, 1, 2], np.int32)
    batch = whole(random_text(tiny, 4, 6)) | {"decoder_inputs": random_text(tiny, 4, 3, seed=1)}
    together = forward(tiny.params, tiny.config, batch | {"prompt_ids": ids}, prompt)
    for row, own in enumerate(ids):
        alone = jax.tree.map(lambda x, row=row: x[row : row + 1], batch)
        assert_close(together[row : row + 1], forward(tiny.params, tiny.config, alone, unstack_prompts(prompt)[own]))


@pytest.mark.parametrize(
    ("prompt", "data", "message"),
    [
        ({"per_task": "add"}, {"train": Path("a.csv")}, "prompt.per_task is of tasks with a name"),
        ({}, {"train": Path("a.csv"), "task_names": True}, "data.task_names is of tasks with a name"),
        (
            {"per_task": "add", "method": "prefix", "init": "normal"},
            {"task": "a"},
            "per_task is of prompt.method 'soft",
        ),
        ({"per_task": "add", "task_length": 2}, {"task": "a"}, "task_length is of prompt.per_task 'concatenate'"),
        ({"per_task": "concatenate", "task_length": 0}, {"task": "a"}, "prompt.task_length must be positive"),
    ],
)
def test_what_does_not_go_together(prompt, data, message):
    experiment = Experiment()
    wrong = dataclasses.replace(
        experiment,
        prompt=dataclasses.replace(experiment.prompt, **prompt),
        data=dataclasses.replace(experiment.data, **data),
    )
    with pytest.raises(ConfigError, match=message):
        check(wrong)
