"""Errors of saving prompts and checkpoints during training."""

import errno
import resource

import numpy as np
import pytest

from experiments import with_name, with_options
from prompt_jax.errors import SaveError
from prompt_jax.experiment import Experiment
from prompt_jax.prompt_files.io import read_prompts
from prompt_jax.training import loop, saving
from prompt_jax.training.loop import train


def test_a_best_prompt_that_cannot_be_written_ends_the_run(experiment, monkeypatch):
    def save(path, *_):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(saving, "save_prompt", save)
    with pytest.raises(SaveError, match=f"{experiment.folder / 'best.npz'}: No space left on device"):
        train(experiment)


@pytest.mark.slow
def test_a_full_disk(experiment, monkeypatch):
    """From some step on no file may exceed 5,000 bytes, as prompts and checkpoints do. The run stops. It resumes from
    the last complete checkpoint."""
    experiment = with_options(experiment, "train", steps=6, checkpoint_every=2)
    whole = with_name(experiment, "whole")
    loop.train(whole)
    before, real = resource.getrlimit(resource.RLIMIT_FSIZE), loop._step

    def step(run, *arguments):
        if run.progress.step == 3:
            run.checkpoints.wait()
            resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))
        return real(run, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_step", step)
        try:
            with pytest.raises((SaveError, OSError), match="could not be written|File too large"):
                loop.train(experiment)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    steps = {path.name for path in (experiment.folder / "checkpoints").iterdir() if path.name.isdigit()}
    assert steps == {"2"}
    loop.train(experiment)
    np.testing.assert_array_equal(prompts(experiment), prompts(whole))


def prompts(experiment: Experiment) -> list[np.ndarray]:
    return [np.asarray(prompt.encoder_tokens.embeddings) for prompt, _ in read_prompts(experiment.folder / "last.npz")]
