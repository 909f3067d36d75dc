"""`prompt-jax train`, and what it leaves in the run's folder."""

import json
import re

import pytest

from printed_tables import table
from prompt_jax import load_prompt
from prompt_jax.inference import answers


def test_train_with_overrides(config, tmp_path, run):
    status, out, err = run("train", config, "--name", "other", "--prompt.length", "6")
    assert status == 0, err
    folder = tmp_path / "runs" / "other"
    written = json.loads((folder / "config.json").read_text())
    assert written["prompt"]["length"] == 6 and written["name"] == "other"
    assert load_prompt(folder / "best.npz").encoder_tokens.embeddings.shape == (6, 64)
    assert re.search(r"accuracy +\d\.\d{4} +\d\.\d{4}", out) and "rank/accuracy" in out
    for step in (2, 4):
        assert re.search(rf"step {step}/4  loss \d+\.\d+ .* examples/s  \d:\d\d left", err)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["examples"] == {"files": {"train": 40, "validation": 12, "test": 10}}
    (test,) = summary["tests"]
    assert test["trained_on"] and test["ensemble"] is None and summary["trained_parameters"] == 6 * 64
    assert summary["stored_parameters"] == 6 * 64 and "384 of them trained" in err and "384 stored (0.00 MiB)" in err
    lines = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == 10 and set(lines[0]["label_scores"]) == {"negative", "positive"}
    assert (folder / "report.html").stat().st_size > 10_000
    status, again, _ = run("train", folder / "config.json")
    assert status == 0 and again == out, "a finished run is scored again from its own record"


@pytest.mark.slow
def test_train_an_ensemble(config, tmp_path, run):
    lists = ("--ensemble.length", "6", "4", "--ensemble.learning-rate", "0.3", "0.1")
    status, out, err = run("train", config, "--train.steps", "2", *lists)
    assert status == 0, err
    assert "member 1: seed 1, learning_rate 0.1, length 4" in err
    rows = [re.split(r" {2,}", line.strip()) for line in out.splitlines()]
    table = {row[0]: row[1:] for row in rows}
    names = [f"member {i} (seed {i}, learning_rate {rate}, length {n})" for i, rate, n in ((0, 0.3, 6), (1, 0.1, 4))]
    values = [[float(table[name][i]) for name in names] for i in range(3)]
    assert [float(value) for value in table["average"]] == pytest.approx([sum(pair) / 2 for pair in values], abs=1e-4)
    assert {"base", "vote", "oracle: a member is right"} <= set(table) and any(row.startswith("best") for row in table)
    folder = next((tmp_path / "runs").iterdir())
    summary = json.loads((folder / "summary.json").read_text())
    assert [member["length"] for member in summary["members"]] == [6, 4] and summary["trained_parameters"] == 10 * 64
    lines = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == 10 and all(len(line["members"]) == 2 for line in lines)
    assert "Similarity of the members" in (folder / "report.html").read_text()


@pytest.mark.slow
def test_an_ensemble_without_answers(config, sentiment_files, tmp_path, monkeypatch, run):
    """With log-likelihood only, there are scores of the base and the members, but no vote; so with --shot-seeds."""
    monkeypatch.setattr(answers, "generate_scored", None)
    options = ("--data.labels", "--data.metrics", "log_likelihood", "--train.steps", "2", "--ensemble.size", "2")
    status, out, err = run("train", config, *options)
    assert status == 0, err
    printed = table(out, "files, test, 10 examples")
    assert list(printed) == ["", "base", "member 0 (seed 0)", "member 1 (seed 1)"] and printed[""] == ["log_likelihood"]
    folder = tmp_path / "runs" / "small"
    (test,) = json.loads((folder / "summary.json").read_text())["tests"]
    values = [test["before"], *test["scores"]]
    assert [f"{own['log_likelihood']:.4f}" for own in values] == [cells[0] for name, cells in printed.items() if name]
    assert test["ensemble"] is None and (folder / "predictions.jsonl").read_text() == ""
    page = (folder / "report.html").read_text()
    assert "log-likelihood, nats per token" in page and "average of 2 members" in page

    files = ("--data", sentiment_files["test"], "--shots-from", sentiment_files["train"], "--template", "{text}")
    asked = ("--metrics", "log_likelihood", "--shots", "1", "--shot-seeds", "0", "1", "--limit", "4")
    model = json.loads((folder / "config.json").read_text())["model"]["name"]
    status, out, err = run("evaluate", "--model", model, *files, *asked)
    assert status == 0, err
    assert list(table(out, f"{model} alone")) == ["", "1 examples shown, seed 0", "1 examples shown, seed 1"]


@pytest.mark.slow
def test_a_diverged_run_has_its_own_status(config, run):
    argv = ("--optimizer.name", "adamw", "--optimizer.learning-rate", "3e38")
    status, _, err = run("train", config, *argv)
    assert status == 3 and "has the best prompt until then" in err
