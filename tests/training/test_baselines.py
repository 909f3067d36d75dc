"""Methods that change the base: training, resuming, evaluation and export work as for prompts."""

import dataclasses

import jax
import numpy as np
import pytest

import prompt_jax
from adapters import assert_close, random_text
from adapters import whole as whole_batch
from experiments import with_name, with_options
from interruptions import interrupted_at
from prompt_jax.cli import main
from prompt_jax.config.ensemble import EnsembleConfig
from prompt_jax.config.optimizer import OptimizerConfig
from prompt_jax.errors import ConfigError
from prompt_jax.experiment import Experiment
from prompt_jax.methods.adapter import AdapterTuning
from prompt_jax.methods.full import FullTuning
from prompt_jax.methods.last_layers import LastLayersTuning
from prompt_jax.models.delta import flat, params_and_prompt
from prompt_jax.prompt_files.io import read_prompts
from prompt_jax.report.metrics_log import read_log
from prompt_jax.training.loop import train

METHODS = {
    "houlsby": AdapterTuning(width=4),
    "lin": AdapterTuning(kind="lin", share=0.05),
    "last_layers": LastLayersTuning(layers=1),
    "full": FullTuning(),
}


@pytest.fixture(params=METHODS)
def method(request, experiment: Experiment) -> Experiment:
    """Return an ensemble of two."""
    return dataclasses.replace(
        with_options(experiment, "train", steps=4, eval_every=2, dropout_rate=0.0),
        prompt=METHODS[request.param],
        optimizer=OptimizerConfig(name="adamw", learning_rate=1e-3),
        ensemble=EnsembleConfig(size=2),
    )


def leaves(experiment: Experiment, file: str = "last.npz") -> list[dict[str, np.ndarray]]:
    return [flat(prompt.leaves) for prompt, _ in read_prompts(experiment.folder / file)]


@pytest.mark.slow
def test_a_whole_run(method, sentiment_files, capsys):
    whole = with_name(method, "whole")
    setup, progress = train(whole)
    share = capsys.readouterr().err.split(" of them trained (")[1].split("%")[0]
    trained = sum(leaf.size for leaf in jax.tree.leaves(setup.states[0].trainable))
    total = sum(leaf.size for leaf in jax.tree.leaves(setup.model.params))
    expected = trained / (total + trained * (whole.prompt.name == "adapter"))
    assert setup.stored_parameters == sum(leaf.size for own in leaves(whole) for leaf in own.values()) == trained
    assert float(share) == pytest.approx(100 * expected, abs=1e-3)
    first, second = leaves(whole)
    start = [flat(variables["prompt"]) for variables in setup.trainable(setup.states)]
    assert first.keys() == start[0].keys() == second.keys()
    moved = [name for name, leaf in first.items() if (leaf != start[0][name]).any()]
    assert len(moved) > len(first) / 2 and any((first[name] != second[name]).any() for name in first)
    losses = [line["train/loss"] for line in read_log(whole.folder) if "train/loss" in line]
    assert losses[-1] < losses[0]

    # An interrupted run resumes bit-exactly.
    with interrupted_at(4):
        train(method)
    train(method)
    for resumed, straight in zip(leaves(method), leaves(whole), strict=True):
        jax.tree.map(np.testing.assert_array_equal, resumed, straight)

    # A member trained alone gets the same parameters.
    alone = dataclasses.replace(with_name(method, "alone"), ensemble=EnsembleConfig())
    train(alone)
    for name, leaf in leaves(alone)[0].items():
        np.testing.assert_allclose(leaf, first[name], rtol=1e-4, atol=1e-5)

    # All commands accept its file.
    file, base = str(whole.folder / "best.npz"), ["--model", method.model.name]
    capsys.readouterr()
    assert main(["evaluate", file, "--data", str(sentiment_files["test"]), *base]) == 0
    assert "majority vote" in capsys.readouterr().out
    member = str(whole.folder / "member.npz")
    assert main(["export", file, member, "--member", "1"]) == 0
    assert main(["predict", member, "a good film", *base]) == 0
    assert main(["inspect", member, *base]) == 0
    assert "arrays of the base" in capsys.readouterr().out
    assert main(["diff", member, member]) == 0 and "identical" in capsys.readouterr().out
    other = str(whole.folder / "other.npz")
    assert main(["export", file, other, "--member", "0"]) == 0
    assert main(["diff", member, other]) == 1
    assert "base/" in capsys.readouterr().out
    assert main(["inspect", file, *base, "--html", str(whole.folder / "page.html")]) == 0
    page = (whole.folder / "page.html").read_text()
    assert "It changes the base itself" in page and ">None<" not in page
    capsys.readouterr()
    assert main(["inspect", member, *base, "--data", str(sentiment_files["test"])]) == 1
    assert "expected virtual tokens or a prefix to leave out" in capsys.readouterr().err
    # Exported as a model, except adapters.
    folder = str(whole.folder / "model")
    status = main(["export", member, folder, "--format", "model", *base])
    if whole.prompt.name == "adapter":
        assert status == 1 and "adapters cannot be merged" in capsys.readouterr().err
    else:
        assert status == 0
        tuned, start = (prompt_jax.load_model(name) for name in (folder, method.model.name))
        batch = whole_batch(random_text(start, 2, 6)) | {"decoder_inputs": random_text(start, 2, 4, seed=1)}
        params, _ = params_and_prompt(start.params, prompt_jax.load_prompt(member, start))
        logits = prompt_jax.forward(params, start.config, batch)
        assert_close(prompt_jax.forward(tuned.params, tuned.config, batch), logits)
    capsys.readouterr()
    assert main(["export", member, str(whole.folder / "member.npy")]) == 1
    assert "use npz" in capsys.readouterr().err


def test_the_last_layers_of_a_model_without_so_many(experiment):
    with pytest.raises(ConfigError, match="prompt.layers is 7, and .* has 2"):
        train(dataclasses.replace(experiment, prompt=LastLayersTuning(layers=7)))
