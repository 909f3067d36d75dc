"""Whole runs of a tiny model: their files, and that they can be interrupted anywhere."""

import dataclasses
import gc
import json
import shutil
import warnings

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from experiments import with_name, with_options
from prompt_jax import experiment as experiments
from prompt_jax.errors import ConfigError, DataError
from prompt_jax.experiment import Experiment
from prompt_jax.inference.evaluation import Evaluation
from prompt_jax.prompt_files.io import read_prompt
from prompt_jax.report.metrics_log import read_log
from prompt_jax.report.run_files import read_summary
from prompt_jax.training import evaluate, loop
from prompt_jax.training.loop import train
from prompt_jax.training.metrics import Diverged
from prompt_jax.training.summary import finish


@pytest.fixture
def experiment(experiment: Experiment) -> Experiment:
    return with_options(with_options(experiment, "data", buckets=2), "train", steps=9)


def tokens(experiment: Experiment, file: str = "last.npz") -> np.ndarray:
    return np.load(experiment.folder / file)["encoder_tokens"]


@pytest.fixture
def finished(experiment: Experiment) -> Experiment:
    """Return the finished run, never interrupted."""
    whole = with_name(experiment, "whole")
    train(whole)
    return whole


class Interrupted(Exception):
    pass


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Make the next run fail before this step, counted from its first."""
    real, calls = loop.prepare, [0]

    def prepare(*args):
        setup = real(*args)

        def failing(*step_args):
            calls[0] += 1
            if calls[0] == step:
                raise Interrupted
            return setup.step(*step_args)

        return dataclasses.replace(setup, step=failing)

    monkeypatch.setattr(loop, "prepare", prepare)


def test_files_of_a_run(finished: Experiment):
    assert experiments.load_experiment(finished.folder / "config.json") == finished
    prompt, metadata = read_prompt(finished.folder / "last.npz")
    assert metadata.step == 9 and metadata.task == "files" and metadata.format.labels == ("negative", "positive")
    assert metadata.format.target_length == 12 and metadata.base.name == finished.model.name
    _, best = read_prompt(finished.folder / "best.npz")
    lines = read_log(finished.folder)
    scores = {line["step"]: line["validation/accuracy"] for line in lines if "validation/accuracy" in line}
    assert sorted(scores) == [0, 3, 6, 9]
    assert best.scores["accuracy"] == max(scores.values()) and scores[best.step] == best.scores["accuracy"]
    assert [line["step"] for line in lines if "train/loss" in line] == list(range(1, 10))
    assert any((finished.folder / "tensorboard").iterdir())
    assert {step.name for step in (finished.folder / "checkpoints").iterdir()} == {"8", "9"}


def test_checkpoints_do_not_contain_the_base(finished: Experiment, tiny):
    size = sum(file.stat().st_size for file in (finished.folder / "checkpoints" / "9").rglob("*") if file.is_file())
    assert size < 0.1 * sum(leaf.nbytes for leaf in jax.tree.leaves(tiny.params))


def test_another_base_under_the_same_name_is_noticed(experiment, tiny_folder, tmp_path):
    """The weights in the folder change before the run is resumed."""
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    moved = with_options(experiment, "model", name=str(folder))
    train(with_options(moved, "train", steps=2))
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"lm_head.weight": tensors["lm_head.weight"] + 1}, folder / "model.safetensors")
    with pytest.raises(RuntimeError, match="the base is not what the run in"):
        train(moved)


def test_other_data_under_the_same_name_are_noticed(experiment, sentiment_files):
    train(with_options(experiment, "train", steps=2))
    lines = sentiment_files["train"].read_text().splitlines()
    sentiment_files["train"].write_text("\n".join(reversed(lines)))
    with pytest.raises(RuntimeError, match="the training data is not what the run in"):
        train(experiment)


@pytest.mark.parametrize("step", (1, 2, 3, 4, 8))
def test_a_resumed_run_is_bit_identical(experiment, finished, monkeypatch, step):
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupt_at(patch, step)
        train(experiment)
    train(experiment)
    np.testing.assert_array_equal(tokens(experiment), tokens(finished))
    np.testing.assert_array_equal(tokens(experiment, "best.npz"), tokens(finished, "best.npz"))

    def log(run):
        return [{k: v for k, v in line.items() if k != "seconds"} for line in read_log(run.folder)]

    assert log(experiment) == log(finished)


def test_a_finished_run_is_not_run_again(finished: Experiment, monkeypatch):
    interrupt_at(monkeypatch, 1)
    train(finished)


def test_a_run_can_train_more_steps(experiment, finished):
    train(with_options(experiment, "train", steps=5))
    train(experiment)
    np.testing.assert_array_equal(tokens(experiment), tokens(finished))
    linear = with_options(with_name(experiment, "linear"), "optimizer", schedule="linear")
    train(with_options(linear, "train", steps=5))
    with pytest.raises(ConfigError, match="train.steps"):
        train(linear)


@pytest.fixture
def damage():
    """When orbax fails to read a checkpoint, it leaves coroutines that warn when they are collected."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gc.collect()


def leaves_coroutines(test):
    """Ignore these warnings, also before the test ends."""
    for ignored in ("ignore:coroutine 'Store:RuntimeWarning", "ignore::pytest.PytestUnraisableExceptionWarning"):
        test = pytest.mark.filterwarnings(ignored)(test)
    return pytest.mark.usefixtures("damage")(test)


@leaves_coroutines
@pytest.mark.parametrize("kind", ("truncated", "missing"))
def test_a_damaged_checkpoint_is_skipped(experiment, finished, kind):
    train(with_options(experiment, "train", steps=8))
    newest = experiment.folder / "checkpoints" / "8"
    for file in sorted((newest / "state").rglob("*")):
        if file.is_file() and file.parent.name == "d":
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]) if kind == "truncated" else file.unlink()
    with pytest.warns(UserWarning, match=r"checkpoint 8 is damaged; step 6 is used"):
        train(experiment)
    np.testing.assert_array_equal(tokens(experiment), tokens(finished))
    assert (experiment.folder / "checkpoints" / "damaged-8").is_dir()


@leaves_coroutines
def test_no_readable_checkpoint_is_an_error(experiment):
    train(with_options(experiment, "train", steps=2))
    for file in (experiment.folder / "checkpoints").rglob("*"):
        if file.is_file() and "state" in file.parts:
            file.write_bytes(b"")
    with pytest.raises(RuntimeError, match="none of the checkpoints in"):
        train(experiment)


def test_nan_stops_and_keeps_the_last_good_prompt(experiment):
    wild = with_options(experiment, "optimizer", name="adamw", learning_rate=3e38, weight_decay=0.0)
    with pytest.raises(Diverged, match=r"step \d+: .* has the best prompt until then"):
        train(wild)
    assert np.isfinite(tokens(wild, "best.npz")).all()


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
        results = [[Evaluation(scores | others, [], None, np.zeros(0))] for scores in actual]
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


def test_another_configuration_needs_another_name(experiment):
    train(with_options(experiment, "train", steps=2))
    other = with_options(experiment, "prompt", length=5)
    with pytest.raises(ConfigError, match=r"another configuration \(changed: prompt.length\)"):
        train(other)
    assert tokens(experiment).shape[0] == 4
    wrong = with_options(other, "data", target="sentiment")
    with pytest.raises(DataError, match="sentiment"):
        train(wrong, overwrite=True)
    assert tokens(experiment).shape[0] == 4, "nothing is deleted for a run that cannot begin"
    train(with_options(other, "train", steps=2), overwrite=True)
    assert tokens(other).shape[0] == 5


def test_a_folder_without_a_run_is_left_alone(experiment):
    experiment.folder.mkdir(parents=True)
    (experiment.folder / "thesis.tex").write_text("all of it")
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match="holds no run"):
            train(experiment, overwrite=overwrite)
    assert (experiment.folder / "thesis.tex").exists()
    (experiment.folder / "config.json").write_text('{"model_type": "t5"}')
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match="is not the record of a run"):
            train(experiment, overwrite=overwrite)
    assert (experiment.folder / "thesis.tex").exists()


def test_the_loop_makes_no_implicit_transfers(experiment, monkeypatch):
    real = loop.fit

    def guarded(*args):
        with jax.transfer_guard("disallow"):
            real(*args)

    monkeypatch.setattr(loop, "fit", guarded)
    train(experiment)


def test_each_bucket_is_compiled_once(experiment, monkeypatch, training_steps):
    training_steps.clear()
    setups = []
    real = loop.prepare
    monkeypatch.setattr(loop, "prepare", lambda *args: setups.append(real(*args)) or setups[-1])
    train(experiment)
    assert setups[0].step._cache_size() <= experiment.data.buckets


def test_at_most_two_steps_are_in_flight(experiment, monkeypatch):
    """Step n is dispatched before the metrics of step n-1 are fetched, and never two ahead."""
    events: list[str] = []
    real_prepare, real_get = loop.prepare, jax.device_get

    def prepare(*args):
        setup = real_prepare(*args)
        return dataclasses.replace(setup, step=lambda *a: events.append("step") or setup.step(*a))

    def device_get(tree):
        if isinstance(tree, dict) and "grad_norm" in tree:
            events.append("fetch")
        return real_get(tree)

    monkeypatch.setattr(loop, "prepare", prepare)
    monkeypatch.setattr(jax, "device_get", device_get)
    train(with_options(experiment, "train", steps=4, eval_every=4, checkpoint_every=4))
    assert events == ["step", "step", "fetch", "step", "fetch", "step", "fetch", "fetch"]


def test_fewer_examples_than_a_batch(experiment):
    with pytest.raises(DataError, match="40 examples, fewer than the 64"):
        train(with_options(experiment, "train", batch_size=64))
