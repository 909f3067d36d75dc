"""The interface of methods: a new method is one file and one line in the table."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

import prompt_jax
from adapters import random_text, whole
from deltas import METHODS, logits, trained
from prompt_jax import experiment as experiments
from prompt_jax import methods
from prompt_jax.cli import main, parse
from prompt_jax.config.data import DataConfig
from prompt_jax.errors import ConfigError
from prompt_jax.experiment import Experiment, check
from prompt_jax.methods.adapter import AdapterTuning
from prompt_jax.methods.last_layers import LastLayersTuning
from prompt_jax.methods.soft_prompt import PromptTuning
from prompt_jax.models import family
from prompt_jax.models.delta import merged_params
from prompt_jax.prompt_files.io import read_prompts
from toy_method import OffsetTuning


@pytest.fixture
def offset(monkeypatch):
    monkeypatch.setitem(methods.METHODS, OffsetTuning.name, OffsetTuning)


def test_the_configuration(offset, experiment, tmp_path):
    run = dataclasses.replace(experiment, prompt=OffsetTuning(length=2, scale=0.5))
    assert experiments.from_json(experiments.to_json(run)) == run
    (tmp_path / "config.json").write_text(experiments.to_json(experiment))
    words = [str(tmp_path / "config.json"), "--prompt.method", "offset", "--prompt.scale", "2"]
    assert parse("train", words).experiment.prompt == OffsetTuning(length=4, scale=2.0)
    with pytest.raises(ConfigError, match="prompt.length must be positive, not 0"):
        experiments.check(dataclasses.replace(experiment, prompt=OffsetTuning(length=0)))


@pytest.mark.slow
def test_every_verb(offset, experiment, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.json").write_text(experiments.to_json(experiment))
    words = ["train", "config.json", "--prompt.method", "offset", "--prompt.length", "3", "--ensemble.size", "2"]
    assert main(words) == 0, capsys.readouterr().err
    best = experiment.folder / "best.npz"
    assert [(len(p.encoder_tokens.embeddings), m.method) for p, m in read_prompts(best)] == [(3, "offset")] * 2
    test = str(experiment.data.test)
    model = ["--model", experiment.model.name]
    for verb in (
        ["evaluate", str(best), "--data", test, *model],
        ["predict", str(best), "a good film", *model],
        ["export", str(best), "p.npy", "--member", "1"],
        ["inspect", str(best), *model],
    ):
        assert main(verb) == 0, capsys.readouterr().err
    assert "soft prompts" in (experiment.folder / "report.html").read_text()


@pytest.mark.parametrize("name", METHODS)
def test_training_begins_at_the_base(model, name):
    """Initial adapters are almost the identity. Copies of layers equal these layers."""
    np.testing.assert_allclose(logits(model, trained(model, name, 0.0)), logits(model), atol=1e-3)
    assert np.abs(logits(model, trained(model, name)) - logits(model)).max() > 0.05


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name == "lin" else name for name in METHODS]
)
def test_generation_is_the_argmax_of_forward(model, name):
    prompt = trained(model, name, 0.3)
    text, start = random_text(model, 3, 6), np.full((3, 1), model.config.start_id, np.int32)
    batch = whole(text)
    read = whole(np.concatenate([text, start], axis=1)) if family(model.config).causal else batch
    params = merged_params(model.params, prompt)
    tokens = np.asarray(prompt_jax.generate(params, model.config, read, max_new_tokens=5))
    fed = np.concatenate([start, tokens[:, :-1]], axis=1)
    best = np.argmax(logits(model, prompt, batch | {"decoder_inputs": fed}), axis=-1)
    going = np.cumprod(fed[:, 1:] != model.config.eos_id, axis=1, dtype=bool)
    np.testing.assert_array_equal(best[:, 0], tokens[:, 0])
    np.testing.assert_array_equal(best[:, 1:][going], tokens[:, 1:][going])
    assert (tokens != np.asarray(prompt_jax.generate(model.params, model.config, read, max_new_tokens=5))).any()


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (AdapterTuning(share=-1.0), "prompt.share must be between 0 and 1, not -1.0"),
        (AdapterTuning(share=0.03, width=7), "prompt.share is 0.03 and prompt.width is 7: .* give one of them"),
        (AdapterTuning(width=0), "prompt.width must be positive, not 0"),
        (LastLayersTuning(layers=0), "prompt.layers must be positive, not 0"),
    ],
)
def test_impossible_options_are_refused(prompt, message):
    with pytest.raises(ConfigError, match=message):
        check(Experiment(data=DataConfig(task="t"), prompt=prompt))


@pytest.mark.parametrize("name", METHODS)
def test_shapes_are_known_without_memory(model, name):
    config = METHODS[name]
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), config.shapes(model))
    made = config.initialize(jax.random.key(0), model)
    assert shapes == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), made)


def test_shapes_do_not_depend_on_the_initialization(model):
    """`file` would read the file."""
    config = PromptTuning(length=3, init="file", init_file=Path("nowhere.npz"))
    assert config.shapes(model)["encoder_tokens"].shape == (3, model.config.d_model)
    assert config.stored_length == 3 and METHODS["full"].stored_length == 0
