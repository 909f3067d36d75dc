"""Preemption: SIGTERM during training and during an evaluation."""

import os
import signal

import numpy as np
import pytest

from experiments import with_name, with_options
from prompt_jax.distributed.processes import Preempted
from prompt_jax.experiment import Experiment
from prompt_jax.prompt_files.io import read_prompts
from prompt_jax.report.metrics_log import read_log
from prompt_jax.training import evaluate, loop


@pytest.fixture
def experiment(experiment: Experiment) -> Experiment:
    return with_options(experiment, "train", steps=4, eval_every=4)


def losses(experiment: Experiment) -> np.ndarray:
    return np.array([line["train/loss"] for line in read_log(experiment.folder) if "train/loss" in line])


def prompts(experiment: Experiment) -> list[np.ndarray]:
    return [np.asarray(prompt.encoder_tokens.embeddings) for prompt, _ in read_prompts(experiment.folder / "last.npz")]


def test_preemption(experiment, monkeypatch):
    """After SIGTERM a run of one process saves and ends, and resumes bit-exactly."""
    experiment = with_options(experiment, "train", checkpoint_every=1000)
    whole = with_name(experiment, "whole")
    loop.train(whole)
    before, real = signal.getsignal(signal.SIGTERM), loop._step

    def step(run, *arguments):
        if run.progress.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(run, *arguments)

    with monkeypatch.context() as patch, pytest.raises(Preempted, match="saved at step 2") as left:
        patch.setattr(loop, "_step", step)
        loop.train(experiment)
    assert left.value.exit_status == 75 and signal.getsignal(signal.SIGTERM) is before
    loop.train(experiment)
    np.testing.assert_array_equal(prompts(experiment), prompts(whole))
    np.testing.assert_array_equal(losses(experiment), losses(whole))


@pytest.mark.parametrize(
    "evaluation, said", [(0, "nothing is saved yet"), (1, "saved at step 2"), (2, "saved at step 4")]
)
def test_preemption_during_an_evaluation(experiment, monkeypatch, evaluation, said):
    """The resumed run repeats it. Scores, the best prompt and all that follows are unchanged."""
    experiment = with_options(experiment, "train", eval_every=2, checkpoint_every=1000)
    whole = with_name(experiment, "whole")
    loop.train(whole)
    count, real = 0, evaluate.evaluate_members

    def evaluate_members(*arguments, **options):
        nonlocal count
        if count == evaluation:
            os.kill(os.getpid(), signal.SIGTERM)
        count += 1
        return real(*arguments, **options)

    with monkeypatch.context() as patch, pytest.raises(Preempted, match=said):
        patch.setattr(evaluate, "evaluate_members", evaluate_members)
        loop.train(experiment)
    _, progress = loop.train(experiment)
    assert count == evaluation + 1 and not progress.evaluation_due
    np.testing.assert_array_equal(prompts(experiment), prompts(whole))
    logs = [[line | {"seconds": None} for line in read_log(run.folder)] for run in (experiment, whole)]
    assert logs[0] == logs[1]
