"""The members of a run: their data, initial values and metadata."""

import dataclasses
import sys

import numpy as np
import pytest

from member_runs import ensemble
from prompt_jax import Prompt, PromptMetadata, VirtualTokens, save_ensemble
from prompt_jax import experiment as experiments
from prompt_jax.config.ensemble import EnsembleConfig
from prompt_jax.methods.soft_prompt import PromptTuning
from prompt_jax.prompt_files.io import ModelId, read_prompts
from prompt_jax.training import loop
from prompt_jax.training.loop import train
from prompt_jax.training.setup import Setup, prepare


@pytest.mark.slow
def test_files_of_an_ensemble(experiment):
    run = ensemble(experiment, learning_rate=(0.3, 0.1), length=(4, 6))
    _, progress = train(run)
    best = read_prompts(run.folder / "best.npz")
    assert [len(prompt.encoder_tokens.embeddings) for prompt, _ in best] == [4, 6]
    for number, ((_, metadata), member) in enumerate(zip(best, progress.members, strict=True)):
        assert metadata.step == member.best_step and metadata.scores == member.best_scores
        assert metadata.settings["train.seed"] == number and metadata.settings["prompt.length"] == (4, 6)[number]
    assert [metadata.step for _, metadata in read_prompts(run.folder / "last.npz")] == [6, 6]
    assert {path.name for path in (run.folder / "tensorboard").iterdir()} == {"member_0", "member_1"}
    assert experiments.load_experiment(run.folder / "config.json") == run


def test_members_share_data_and_batches(experiment, monkeypatch):
    loaded = []
    module = sys.modules["prompt_jax.training.tasks"]
    real = module.load_splits
    monkeypatch.setattr(module, "load_splits", lambda *args: loaded.append(1) or real(*args))
    setup = loop.prepare(ensemble(experiment, seed=(0,), learning_rate=(0.1, 0.2, 0.3)))
    assert len(loaded) == 1 and len(setup.batches.position["streams"]) == 1
    assert len(loop.prepare(ensemble(experiment, size=3)).batches.position["streams"]) == 3


def metadata(setup: Setup, number: int) -> PromptMetadata:
    return setup.prompts[number].metadata(setup.model, 1, {})


def test_members_start_from_those_of_a_file(experiment, tiny, tmp_path):
    """Each member starts from another prompt of the file, or all from one; the same as when trained alone."""
    tokens = np.random.default_rng(0).normal(size=(3, 4, 64)).astype(np.float32)
    said = PromptMetadata(base=ModelId(tiny.name, None, tiny.fingerprint))
    save_ensemble(tmp_path / "source" / "e.npz", [Prompt(VirtualTokens(own)) for own in tokens], [said] * 3)
    start = PromptTuning(length=4, init="file", init_file=tmp_path / "source" / "e.npz")
    transfer = dataclasses.replace(experiment, prompt=start, ensemble=EnsembleConfig(init_member=(2, 0, 1)))
    setup = prepare(transfer)
    for number, source in enumerate((2, 0, 1)):
        alone = prepare(experiments.members(transfer)[number])
        for start in (setup.trainable(setup.states)[number], *alone.trainable(alone.states)):
            np.testing.assert_array_equal(start["prompt"]["encoder_tokens"], tokens[source])
        written = metadata(setup, number)
        assert written.initialization == f"file source/e.npz, member {source}"
        assert written.settings["prompt.init_member"] == source
    one = dataclasses.replace(transfer, ensemble=EnsembleConfig(size=2, init_member=(1,)))
    setup = prepare(one)
    for start in setup.trainable(setup.states):
        np.testing.assert_array_equal(start["prompt"]["encoder_tokens"], tokens[1])
    assert metadata(prepare(experiment), 0).initialization == "vocab"
