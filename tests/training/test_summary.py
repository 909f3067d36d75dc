"""The results of a run: scores agree with the predictions, and a preempted evaluation writes nothing."""

import dataclasses
import json
import os
import signal

import jax
import numpy as np
import pytest

from prompt_jax import load_prompt
from prompt_jax.distributed.processes import Preempted
from prompt_jax.training import summary
from prompt_jax.training.environment import PACKAGES
from prompt_jax.training.loop import train
from prompt_jax.training.summary import finish


def test_scores_are_those_of_the_predictions(whole):
    written = json.loads((whole.folder / "summary.json").read_text())
    lines = [json.loads(line) for line in (whole.folder / "predictions.jsonl").read_text().splitlines()]
    (test,) = written["tests"]
    assert test["examples"] == len(lines) == 10 and test["trained_on"] and test["ensemble"] is None
    targets = [line["target"] for line in lines]
    for scores, answers in ((test["before"], "before"), (test["scores"][0], "prediction")):
        right = [line[answers] == target for line, target in zip(lines, targets, strict=True)]
        assert scores["accuracy"] == pytest.approx(np.mean(right))
    ranked = [max(line["label_scores"], key=line["label_scores"].get) for line in lines]
    assert test["scores"][0]["rank/accuracy"] == pytest.approx(np.mean(np.array(ranked) == np.array(targets)))


def test_the_summary_describes_the_run(whole, tiny):
    written = json.loads((whole.folder / "summary.json").read_text())
    tokens = load_prompt(whole.folder / "best.npz").encoder_tokens.embeddings
    assert written["trained_parameters"] == written["stored_parameters"] == tokens.size
    assert written["model"]["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(tiny.params))
    assert written["model"]["fingerprint"] == tiny.fingerprint
    assert written["examples"] == {"files": {"train": 40, "validation": 12, "test": 10}}
    assert set(written["versions"]) == {"python", *PACKAGES} and written["versions"]["jax"] == jax.__version__
    (member,) = written["members"]
    assert member["status"] == "finished" and member["steps"] == written["steps"] == whole.train.steps
    assert member["best"]["score"] == member["validation"][member["best"]["metric"]]


@pytest.mark.slow
def test_a_preempted_evaluation_writes_nothing(experiment, monkeypatch):
    short = dataclasses.replace(experiment, train=dataclasses.replace(experiment.train, steps=1))
    setup, progress = train(short)
    before, real = {path.name for path in short.folder.iterdir()}, summary.evaluate_members

    def evaluate_members(*arguments, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments, **options)

    with monkeypatch.context() as patch, pytest.raises(Preempted, match="run the same command again to repeat it"):
        patch.setattr(summary, "evaluate_members", evaluate_members)
        finish(short, setup, progress)
    assert {path.name for path in short.folder.iterdir()} == before
    assert "wrote" in finish(short, setup, progress) and (short.folder / "summary.json").exists()
