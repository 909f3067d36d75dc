"""Checkpoints of a run: damaged ones, and those of another base or other data."""

import gc
import shutil
import warnings

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from experiments import with_options
from prompt_jax.experiment import Experiment
from prompt_jax.training.loop import train


@pytest.fixture
def experiment(experiment: Experiment) -> Experiment:
    return with_options(with_options(experiment, "data", buckets=2), "train", steps=9)


def tokens(experiment: Experiment, file: str = "last.npz") -> np.ndarray:
    return np.load(experiment.folder / file)["encoder_tokens"]


def test_checkpoints_do_not_contain_the_base(whole: Experiment, tiny):
    size = sum(file.stat().st_size for file in (whole.folder / "checkpoints" / "9").rglob("*") if file.is_file())
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
def test_a_damaged_checkpoint_is_skipped(experiment, whole, kind):
    train(with_options(experiment, "train", steps=8))
    newest = experiment.folder / "checkpoints" / "8"
    for file in sorted((newest / "state").rglob("*")):
        if file.is_file() and file.parent.name == "d":
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]) if kind == "truncated" else file.unlink()
    with pytest.warns(UserWarning, match=r"checkpoint 8 is damaged; step 6 is used"):
        train(experiment)
    np.testing.assert_array_equal(tokens(experiment), tokens(whole))
    assert (experiment.folder / "checkpoints" / "damaged-8").is_dir()


@leaves_coroutines
def test_no_readable_checkpoint_is_an_error(experiment):
    train(with_options(experiment, "train", steps=2))
    for file in (experiment.folder / "checkpoints").rglob("*"):
        if file.is_file() and "state" in file.parts:
            file.write_bytes(b"")
    with pytest.raises(RuntimeError, match="none of the checkpoints in"):
        train(experiment)
