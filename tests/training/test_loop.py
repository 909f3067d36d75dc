"""Whole runs of a tiny model: their files, and that they can be interrupted anywhere."""

import dataclasses

import jax
import numpy as np
import pytest

from experiments import with_name, with_options
from fetches import implicit_fetches
from interruptions import before_step, interrupted_at
from prompt_jax import experiment as experiments
from prompt_jax.errors import ConfigError, DataError
from prompt_jax.experiment import Experiment
from prompt_jax.prompt_files.io import read_prompt
from prompt_jax.report.metrics_log import read_log
from prompt_jax.training import loop
from prompt_jax.training.loop import train


@pytest.fixture
def experiment(experiment: Experiment) -> Experiment:
    return with_options(with_options(experiment, "data", buckets=2), "train", steps=9)


def tokens(experiment: Experiment, file: str = "last.npz") -> np.ndarray:
    return np.load(experiment.folder / file)["encoder_tokens"]


def test_files_of_a_run(whole: Experiment):
    assert experiments.load_experiment(whole.folder / "config.json") == whole
    prompt, metadata = read_prompt(whole.folder / "last.npz")
    assert metadata.step == 9 and metadata.task == "files" and metadata.format.labels == ("negative", "positive")
    assert metadata.format.target_length == 12 and metadata.base.name == whole.model.name
    _, best = read_prompt(whole.folder / "best.npz")
    lines = read_log(whole.folder)
    scores = {line["step"]: line["validation/accuracy"] for line in lines if "validation/accuracy" in line}
    assert sorted(scores) == [0, 3, 6, 9]
    assert best.scores["accuracy"] == max(scores.values()) and scores[best.step] == best.scores["accuracy"]
    assert [line["step"] for line in lines if "train/loss" in line] == list(range(1, 10))
    assert any((whole.folder / "tensorboard").iterdir())
    assert {step.name for step in (whole.folder / "checkpoints").iterdir()} == {"8", "9"}


@pytest.mark.parametrize("step", (1, 2, 3, 4, 8))
def test_a_resumed_run_is_bit_identical(experiment, whole, step):
    with interrupted_at(step):
        train(experiment)
    train(experiment)
    np.testing.assert_array_equal(tokens(experiment), tokens(whole))
    np.testing.assert_array_equal(tokens(experiment, "best.npz"), tokens(whole, "best.npz"))

    def log(run):
        return [{k: v for k, v in line.items() if k != "seconds"} for line in read_log(run.folder)]

    assert log(experiment) == log(whole)


def test_a_finished_run_is_not_run_again(experiment):
    short = with_options(experiment, "train", steps=2)
    train(short)
    with before_step(1), before_step(2), before_step(3):
        train(short)


@pytest.mark.slow
def test_a_run_can_train_more_steps(experiment, whole):
    train(with_options(experiment, "train", steps=5))
    train(experiment)
    np.testing.assert_array_equal(tokens(experiment), tokens(whole))
    linear = with_options(with_name(experiment, "linear"), "optimizer", schedule="linear")
    train(with_options(linear, "train", steps=5))
    with pytest.raises(ConfigError, match="train.steps"):
        train(linear)


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


def implicit_transfers(experiment: Experiment) -> list[str]:
    """Train, and return the lines of the loop that copy arrays between host and device without asking for it.

    Those to the device are errors.
    """
    real, places = loop.fit, []

    def guarded(*args):
        with implicit_fetches() as fetched, jax.transfer_guard("disallow"):
            real(*args)
        places.extend(fetched)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "fit", guarded)
        train(experiment)
    return places


def test_the_loop_makes_no_implicit_transfers(experiment):
    assert implicit_transfers(experiment) == []


@pytest.mark.parametrize(
    "fetch",
    [
        lambda run, metrics: float(metrics["loss"][0]),
        lambda run, metrics: f"{metrics['loss'][0]:.3f}",
        lambda run, metrics: metrics["loss"][0].item(),
        lambda run, metrics: np.asarray(metrics["loss"]),
        lambda run, metrics: np.stack([metrics["loss"], metrics["accuracy"]]),
        lambda run, metrics: np.array(run.states[0].step),
        lambda run, metrics: run.states[0].step.tolist(),
    ],
    ids=["float", "format", "item", "asarray", "stack", "array", "tolist"],
)
def test_a_loop_with_an_implicit_fetch_is_noticed(experiment, fetch):
    """So the test above can fail."""

    def step(run, batches):
        (metrics,) = real(run, batches)
        with jax.transfer_guard("allow"):  # indexing copies the index to the device
            fetch(run, metrics)
        return [metrics]

    real = loop._step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_step", step)
        places = implicit_transfers(with_options(experiment, "train", steps=2))
    assert len(places) >= 2 and len(set(places)) == 1, "in both steps, in one line"


def test_a_loop_with_an_implicit_copy_to_the_device_is_noticed(experiment):
    real = loop._step
    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="Disallowed host-to-device transfer"):
        patch.setattr(loop, "_step", lambda run, batches: real(run, batches) and [jax.numpy.ones(1) + np.ones(1)])
        implicit_transfers(with_options(experiment, "train", steps=2))


def test_each_bucket_is_compiled_once(experiment, monkeypatch, training_steps):
    training_steps.clear()
    setups = []
    real = loop.prepare
    monkeypatch.setattr(loop, "prepare", lambda *args: setups.append(real(*args)) or setups[-1])
    train(with_options(experiment, "train", z_loss=3e-4))  # unlike other tests, which may share a step
    assert 1 <= setups[0].step._cache_size() <= experiment.data.buckets


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
