"""`configs/lm_adaptation.py` on a tiny T5: adapt it, export it, and train a prompt for it."""

import dataclasses
import json
from pathlib import Path

import jax
import pytest

import prompt_jax
from adapters import assert_close, random_text, whole
from experiments import with_options
from prompt_jax.cli import main
from prompt_jax.config.ensemble import EnsembleConfig
from prompt_jax.config.optimizer import OptimizerConfig
from prompt_jax.experiment import Experiment, load_experiment, to_json
from prompt_jax.methods.soft_prompt import PromptTuning
from prompt_jax.report.metrics_log import read_log

ROOT = Path(__file__).parents[2]
TASKS = ROOT / "tasks" / "text.py"
PARTS = ("a good film", "dull and long", "the plot is bad", "great fun", "and the jokes are old", "with a great heart")
SMALL = {"steps": 12, "batch_size": 4, "accumulate": 2, "eval_every": 6, "checkpoint_every": 6, "log_every": 6}


@pytest.fixture
def adapted(tiny_folder, tmp_path, monkeypatch):
    """Run the configuration with a tiny model and few steps, and return the run's folder."""
    texts = tmp_path / "data" / "text"
    texts.mkdir(parents=True)
    for split, count in (("train", 24), ("validation", 5)):
        documents = [" ".join(PARTS[(i + j * j) % len(PARTS)] for j in range(5)) for i in range(count)]
        (texts / f"{split}.txt").write_text("\n\n".join(documents))
    monkeypatch.setenv("PROMPT_JAX_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    experiment = load_experiment(ROOT / "configs" / "lm_adaptation.py")
    experiment = with_options(experiment, "model", name=str(tiny_folder), dtype="float32")
    experiment = with_options(experiment, "train", **SMALL)
    return with_options(experiment, "data", input_length=48, target_length=48, buckets=1)


@pytest.mark.slow
def test_lm_adaptation_end_to_end(adapted, tiny, tiny_folder, tmp_path, monkeypatch, capsys):
    assert main(["train", written(adapted, tmp_path), "--tasks", str(TASKS)]) == 0
    run = tmp_path / "runs" / "lm_adaptation"
    scores = {line["step"]: line for line in read_log(run) if "validation/log_likelihood" in line}
    assert list(scores) == [0, 6, 12]
    first, _, last = (line["validation/log_likelihood"] for line in scores.values())
    assert last > first + 0.5
    summary = json.loads((run / "summary.json").read_text())
    size = sum(leaf.size for leaf in jax.tree.leaves(tiny.params))
    assert summary["stored_parameters"] == summary["trained_parameters"] == size and summary["tests"] == []
    assert summary["members"][0]["best"]["metric"] == "log_likelihood"
    page = (run / "report.html").read_text()
    assert "The whole model, tuned for" in page and "Validation log-likelihood, nats per token" in page

    # The exported base has the logits of the base with the trained weights, and the same scores.
    arguments = ["--model", str(tiny_folder), "--format", "model"]
    assert main(["export", str(run / "best.npz"), "adapted", *arguments]) == 0
    model, delta = prompt_jax.load_model("adapted"), prompt_jax.load_prompt(run / "best.npz", tiny)
    batch = whole(random_text(tiny, 2, 6)) | {"decoder_inputs": random_text(tiny, 2, 4, seed=1)}
    logits = prompt_jax.forward(prompt_jax.merged_params(tiny.params, delta), tiny.config, batch)
    assert_close(prompt_jax.forward(model.params, model.config, batch), logits)
    capsys.readouterr()
    soft = {"prompt": PromptTuning(length=3, init="vocab", init_vocab=150), "optimizer": OptimizerConfig()}
    tuned = dataclasses.replace(adapted, name="prompt", **soft, ensemble=EnsembleConfig(size=2))
    tuned = with_options(
        with_options(tuned, "model", name="adapted"), "train", steps=2, eval_every=2, checkpoint_every=2
    )
    assert main(["train", written(tuned, tmp_path), "--tasks", str(TASKS)]) == 0
    before = [line["validation/log_likelihood"] for line in read_log(tmp_path / "runs" / "prompt") if line["step"] == 0]
    assert len(before) == 2 and min(before) > first + 0.2, "prompts of the adapted model start from what it has learned"

    # Without answers, members are scored separately and do not vote.
    file = str(tmp_path / "runs" / "prompt" / "best.npz")
    asked = ["evaluate", file, "--task", "prefix_lm", "--tasks", str(TASKS), "--split", "validation", "--limit", "4"]
    monkeypatch.setattr(prompt_jax.inference.answers, "generate_scored", None)
    capsys.readouterr()
    asked += ["--model", "adapted"]
    assert main([*asked, "--out", "out"]) == 0
    printed = capsys.readouterr().out
    assert "member 1 (seed 1)" in printed and "log_likelihood" in printed and "vote" not in printed
    scores = json.loads(Path("out/scores.json").read_text())
    assert scores["ensemble"] is None and len(scores["members"]) == 2
    assert Path("out/predictions.jsonl").read_text() == ""
    assert main([*asked, "--early-stop"]) == 1
    assert "prefix_lm is scored by log_likelihood alone" in capsys.readouterr().err


def written(experiment: Experiment, folder: Path) -> str:
    """Return the experiment as a file."""
    path = folder / f"{experiment.name}.json"
    path.write_text(to_json(experiment))
    return str(path)
