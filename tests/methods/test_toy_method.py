"""A new method is one file and one line in the table. Everything else works with it."""

import dataclasses

import pytest

from prompt_jax import experiment as experiments
from prompt_jax import methods
from prompt_jax.cli import main, parse
from prompt_jax.errors import ConfigError
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
