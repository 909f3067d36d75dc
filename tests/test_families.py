"""Every verb, for all families and methods, on tiny models."""

import json

import numpy as np
import pytest

from adapters import assert_close, random_text, whole
from prompt_jax import forward, load_model, load_prompt
from prompt_jax.cli import main
from prompt_jax.methods import METHODS
from prompt_jax.prompt_files.io import read_prompts

# The attention sites of each model that take a prefix, and the decoder's layers if they are not 2.
SITES = {"t5": 3, "gpt2": 1, "bart": 3, "llama": 1, "gemma3_text": 1}
LAYERS = {"llama": 3, "gemma3_text": 3}
CONFIG = """
from pathlib import Path
from prompt_jax import *

experiment = Experiment(
    name="small",
    model=ModelConfig(name={model!r}),
    data=DataConfig(train=Path({train!r}), validation=Path({validation!r}), test=Path({test!r}),
                    labels=("negative", "positive"), input_length=36, target_length=16, buckets=1),
    prompt={method}(length=3, init="normal", mlp_width={mlp}),
    optimizer=OptimizerConfig(name="adamw", learning_rate=1e-3, schedule="linear"),
    train=TrainConfig(steps=2, batch_size=8, eval_every=2, checkpoint_every=2, log_every=1, loss="sentence"),
    ensemble=EnsembleConfig(size=2),
)
"""


def run(capsys, *argv) -> str:
    status = main([str(word) for word in argv])
    printed = capsys.readouterr()
    assert status == 0, printed.err
    return printed.out


# Both skeletons and both methods are in a quick one.
QUICK = [("t5", "soft_prompt"), ("llama", "prefix")]
SLOW = [(family, method) for family in SITES for method in ("soft_prompt", "prefix") if (family, method) not in QUICK]


@pytest.fixture(
    params=[*QUICK, *(pytest.param(pair, marks=pytest.mark.slow) for pair in SLOW)], ids=lambda pair: "-".join(pair)
)
def trained(request, tiny_folders, sentiment_files, tmp_path, monkeypatch, capsys):
    """Return the family, the method, and the file of two members."""
    family, method = request.param
    monkeypatch.chdir(tmp_path)
    values = {
        "model": str(tiny_folders[family]),
        "method": METHODS[method].__name__,
        "mlp": 8 if method == "prefix" else None,
    }
    text = CONFIG.format(**values, **{split: str(path) for split, path in sentiment_files.items()})
    (tmp_path / "small.py").write_text(text)
    out = run(capsys, "train", "small.py")
    assert "vote minus average" in out
    return family, method, tmp_path / "runs" / "small" / "best.npz"


def test_every_verb(trained, sentiment_files, tmp_path, capsys):
    family, method, file = trained
    model = load_model(str(json.loads((file.parent / "config.json").read_text())["model"]["name"]))
    (first, metadata), (second, _) = read_prompts(file)
    assert metadata.method == method
    base = "--model", model.name
    assert len(first.parts) == (SITES[family] if method == "prefix" else 1)
    assert (file.parent / "report.html").stat().st_size > 10_000

    out = run(capsys, "evaluate", file, "--data", sentiment_files["test"], "--decoding.beams", 2, *base)
    assert "vote minus average" in out
    arguments = "predict", file, "a good film", "a bad film and long", "--json", *base
    answers = [json.loads(line) for line in run(capsys, *arguments).splitlines()]
    assert [answer["input"] for answer in answers] == ["a good film", "a bad film and long"]
    assert set(answers[0]["label_scores"]) == {"negative", "positive"}
    drawn = [run(capsys, *arguments, "--decoding.temperature", 2.0, "--decoding.seed", seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    printed = run(capsys, "inspect", file, *base)
    assert (
        f"keys and values at decoder_self in each of {LAYERS.get(family, 2)} layers"
        if method == "prefix"
        else "virtual tokens"
    ) in printed

    run(capsys, "export", file, "one.npz", "--member", 1)
    exported = load_prompt(tmp_path / "one.npz", model)
    text = whole(random_text(model, 2, 6)) | {"decoder_inputs": random_text(model, 2, 3, seed=1)}
    expected = forward(model.params, model.config, text, second)
    assert_close(forward(model.params, model.config, text, exported), expected)
    status = main(["export", str(file), "prefix.npz", "--member", "1", "--as", "prefix", *base])
    if SITES[family] == 1:  # causal
        assert status == 0
        as_prefix = load_prompt(tmp_path / "prefix.npz", model)
        assert list(as_prefix.parts) == ["decoder_self"] and as_prefix.decoder_self.slots == 3
        assert_close(forward(model.params, model.config, text, as_prefix), expected)
    else:
        assert status != 0 and "is no causal model" in capsys.readouterr().err


def test_a_prefix_is_no_npy(tiny_folders, tmp_path, capsys):
    from adapters import random_prefix
    from prompt_jax import save_prompt

    model = load_model(str(tiny_folders["gpt2"]))
    save_prompt(tmp_path / "p.npz", random_prefix(model, 2))
    assert main(["export", str(tmp_path / "p.npz"), str(tmp_path / "p.npy")]) != 0
    assert "a .npy holds only virtual tokens, not decoder_self" in capsys.readouterr().err
    assert not (tmp_path / "p.npy").exists()


def test_a_context_that_is_too_short_is_an_error_before_training(
    tiny_folders, sentiment_files, tmp_path, monkeypatch, capsys
):
    """Source, start token, target and prefix exceed GPT-2's 64 positions."""
    monkeypatch.chdir(tmp_path)
    values = {"model": str(tiny_folders["gpt2"]), "method": METHODS["prefix"].__name__, "mlp": None}
    text = CONFIG.format(**values, **{split: str(path) for split, path in sentiment_files.items()})
    (tmp_path / "small.py").write_text(text)
    assert main(["train", "small.py", "--prompt.length", "40"]) != 0
    message = capsys.readouterr().err
    assert "the model has 64 positions: shorten the text (data.input_length" in message
    assert main(["train", "small.py", "--decoding.beams", "2", "--decoding.min-new-tokens", "17"]) != 0
    assert "decoding.min_new_tokens is 17, and an answer has at most 16 tokens" in capsys.readouterr().err
    assert np.all([not path.name.endswith(".npz") for path in (tmp_path / "runs").rglob("*")])
