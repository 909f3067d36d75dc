"""Evaluation during training: the best prompt, and early stopping."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from experiments import with_name, with_options
from member_runs import assert_same_movement, assert_same_training, ensemble, starts, tokens
from prompt_jax import experiment as experiments
from prompt_jax.errors import ConfigError
from prompt_jax.inference import answers
from prompt_jax.inference.evaluation import Evaluation
from prompt_jax.prompt_files.io import read_prompts
from prompt_jax.report.metrics_log import read_log
from prompt_jax.report.run_files import read_summary
from prompt_jax.training import evaluate, loop
from prompt_jax.training.loop import train
from prompt_jax.training.summary import finish


def test_early_stopping(experiment, capfd):
    """With a tiny learning rate the score cannot improve."""
    still = with_options(with_options(experiment, "train", patience=2, steps=30), "optimizer", learning_rate=1e-30)
    train(still)
    assert read_log(still.folder)[-1]["step"] == 6
    assert "no better accuracy in 2 evaluations; stopped at step 6" in capfd.readouterr().err
    before = (still.folder / "last.npz").read_bytes()
    train(still)  # nothing is left to train
    assert (still.folder / "last.npz").read_bytes() == before


def test_the_best_is_by_the_first_metric_or_by_the_mean(experiment, monkeypatch):
    """So are early stopping, files and the report."""
    run = with_options(with_options(experiment, "data", metrics=("f1", "accuracy")), "train", patience=1, steps=6)
    actual = [{"f1": 0.2, "accuracy": 0.2}, {"f1": 0.9, "accuracy": 0.2}, {"f1": 0.5, "accuracy": 0.8}]
    others = {"invalid": 0.9, "ter": 0.9, "nist": 7.0}  # not part of the mean
    for by, metric, score, step, status in (
        ("first", "f1", 0.9, 3, "stopped early"),
        ("mean", "mean", 0.65, 6, "training"),
    ):
        run = with_options(with_name(run, by), "train", best_by=by)
        results = [[Evaluation(scores | others, [], None, np.zeros(0), loss=1.0)] for scores in actual]
        with monkeypatch.context() as patch:
            patch.setattr(evaluate, "evaluate_members", lambda *_, results=results, **__: results.pop(0))
            setup, progress = train(run)
        (member,) = progress.members
        assert (member.metric, member.best_step, member.status) == (metric, step, status)
        assert member.score == pytest.approx(score)
        assert f"step {step}, validation {metric} {score:.4f}" in finish(run, setup, progress)
        (written,) = read_summary(run.folder).members
        assert written.best.metric == next(iter(written.validation)) == metric
        assert f"Validation {metric.replace('f', 'F')}" in (run.folder / "report.html").read_text()
    with pytest.raises(ConfigError, match=r"changed: train.best_by"):
        train(with_options(run, "train", best_by="first"))


def test_the_mean_of_one_metric_is_that_metric(experiment):
    """A run of an earlier version, without the option, resumes with the first metric."""
    run = with_options(experiment, "train", steps=3)
    first, mean = (with_options(with_name(run, by), "train", best_by=by) for by in ("first", "mean"))
    assert train(first)[1].members == train(mean)[1].members
    assert (first.folder / "best.npz").read_bytes() == (mean.folder / "best.npz").read_bytes()
    written = json.loads((first.folder / "config.json").read_text())
    del written["train"]["best_by"]
    written["train"]["save_errors"] = "continue"  # an option of earlier versions
    (first.folder / "config.json").write_text(json.dumps(written))
    train(first)


@pytest.mark.slow
def test_a_member_with_nan_validation_logits_has_diverged(experiment, tiny_folders, capfd, monkeypatch):
    """GPT-2's norm of a vector near overflow is NaN. The other members are still evaluated."""
    monkeypatch.setattr("prompt_jax.training.step.LARGEST_PARAMETER", np.inf)  # else the step before would end it
    gpt2 = with_options(with_options(experiment, "model", name=str(tiny_folders["gpt2"])), "train", eval_every=1)
    rates = (0.01, 3e38, 0.01)
    wild = with_options(ensemble(gpt2, learning_rate=rates), "optimizer", name="adamw", weight_decay=0.0)
    _, progress = train(wild)
    assert [member.status for member in progress.members] == ["training", "diverged", "training"]
    said = capfd.readouterr().err
    assert (
        "step 1: member 1: training diverged and was stopped: the logits on the validation split are not finite" in said
    )
    assert all(np.isfinite(each).all() for each in tokens(wild, "best.npz"))
    assert progress.members[1].best_step == 0
    for number in (0, 2):
        steps = [line["step"] for line in read_log(wild.folder) if line["member"] == number and "seconds" in line]
        assert steps == list(range(7))
        alone = with_name(experiments.members(wild)[number], f"alone{number}")
        train(alone)
        assert_same_training(alone, wild, number)


def test_a_base_with_nan_ends_the_run_at_its_start(experiment, tiny_folder, tmp_path):
    """Every prompt would diverge, and a lower learning rate would not help."""
    shutil.copytree(tiny_folder, tmp_path / "base")
    tensors = load_file(tmp_path / "base" / "model.safetensors")
    tensors["encoder.block.0.layer.1.DenseReluDense.wo.weight"][3, 4] = np.nan
    save_file(tensors, tmp_path / "base" / "model.safetensors")
    with pytest.raises(answers.LogitsError, match=r"are NaN or infinite, in encoder/layers/0/mlp/down \(1 value\)"):
        train(with_options(ensemble(experiment, size=2), "model", name=str(tmp_path / "base")))


def test_the_last_one_may_diverge_after_the_others_have_stopped(experiment, monkeypatch):
    """It diverges at an evaluation, so no member is left to evaluate."""
    run = ensemble(with_options(experiment, "train", patience=1, eval_every=1, steps=9), learning_rate=(1e-30, 0.1))
    real = evaluate.evaluate_members

    def scores(model, prompts, *args, **options):  # the second member always improves
        results = real(model, prompts, *args, **options)
        calls.append(1)
        last = dataclasses.replace(results[-1], scores={"accuracy": len(calls) / 100})
        return [*results[:-1], last]

    def prepare(*args):
        setup = real_prepare(*args)

        def step(state, *rest):
            state, metrics = setup.step(state, *rest)
            broken = np.array([False, len(calls) >= 3])  # in the step after the third evaluation
            return state, metrics | {"diverged": metrics["diverged"] | broken}

        return dataclasses.replace(setup, step=step)

    calls, real_prepare = [], loop.prepare
    monkeypatch.setattr(evaluate, "evaluate_members", scores)
    monkeypatch.setattr(loop, "prepare", prepare)
    _, progress = train(run)
    assert [member.status for member in progress.members] == ["stopped early", "diverged"]
    assert progress.members[1].best_step == 2 and progress.step == 3
    best = [metadata.step for _, metadata in read_prompts(run.folder / "best.npz")]
    assert best == [member.best_step for member in progress.members]


def test_early_stopping_is_per_member(experiment, capfd):
    """One member cannot move and stops. The other continues."""
    options = with_options(experiment, "train", patience=2, steps=12)
    slow = ensemble(options, seed=(0,), learning_rate=(1e-30, 0.3), weight_decay=(0.01,))
    _, progress = train(slow)
    stopped, other = progress.members
    assert stopped.status == "stopped early" and stopped.steps == 6
    assert "member 0: no better accuracy in 2 evaluations; stopped at step 6" in capfd.readouterr().err
    alone = with_name(experiments.members(slow)[1], "alone")
    _, expected = train(alone)
    assert other.best_losses == pytest.approx(expected.members[0].best_losses, rel=1e-4)
    same_loss = dataclasses.replace(other, best_losses=expected.members[0].best_losses)
    assert dataclasses.asdict(same_loss) == dataclasses.asdict(expected.members[0])
    first = starts(slow)
    assert_same_movement(tokens(slow)[1], tokens(alone)[0], first[1])
    decayed = first[0] * 0.99**6  # weight decay alone, while it is training
    np.testing.assert_allclose(tokens(slow)[0], decayed, rtol=1e-5)
