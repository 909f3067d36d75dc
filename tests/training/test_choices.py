"""Tests of `mesh.auto` and `model.remat auto`."""

import dataclasses
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import jax
import pytest

from experiments import with_name, with_options
from prompt_jax.checkpoints.load import load_config, load_model
from prompt_jax.config.data import DataConfig
from prompt_jax.config.ensemble import EnsembleConfig
from prompt_jax.config.mesh import MeshConfig
from prompt_jax.config.model import ModelConfig
from prompt_jax.config.train import TrainConfig
from prompt_jax.data.stored_rows import row_lengths
from prompt_jax.distributed.chips import CHIPS, Chip
from prompt_jax.distributed.costs import USABLE, training_cost
from prompt_jax.errors import ConfigError
from prompt_jax.experiment import Experiment, to_json
from prompt_jax.methods import METHODS
from prompt_jax.training import setup
from prompt_jax.training.choices import is_step_fused, with_mesh, with_remat, workload
from prompt_jax.training.run_folder import check_same
from prompt_jax.training.setup import prepare


def ensemble(folder, method: str = "soft_prompt", **changes) -> Experiment:
    given = Experiment(
        model=ModelConfig(name=str(folder)),
        data=DataConfig(task="any", input_length=32, target_length=8),
        prompt=METHODS[method](length=5, init="uniform"),
        train=TrainConfig(batch_size=8, accumulate=2),
        ensemble=EnsembleConfig(size=4, group=2),
        mesh=MeshConfig(auto=True),
    )
    return dataclasses.replace(given, **changes)


@pytest.fixture
def eight_chips(monkeypatch):
    chip = SimpleNamespace(device_kind="TPU v5 lite", platform="tpu", memory_stats=lambda: None)
    monkeypatch.setattr(jax, "local_devices", lambda: [chip] * 8)
    monkeypatch.setattr(jax, "device_count", lambda: 8)


def test_members_come_before_rows(tiny_folder, eight_chips):
    assert with_mesh(ensemble(tiny_folder)).mesh == MeshConfig(ensemble=4, data=2)


def test_without_auto_nothing_changes(tiny_folder, eight_chips):
    given = ensemble(tiny_folder, mesh=MeshConfig(data=2))
    assert with_mesh(given) is given


def test_auto_replaces_given_sizes(tiny_folder, eight_chips):
    given = ensemble(tiny_folder, mesh=MeshConfig(model=4, auto=True))
    assert with_mesh(given).mesh == MeshConfig(ensemble=4, data=2)


@pytest.mark.parametrize(
    "kind, method, tokens, slots",
    [("t5", "soft_prompt", 5, 0), ("gpt2", "soft_prompt", 0, 5), ("t5", "prefix", 0, 5), ("gpt2", "prefix", 0, 5)],
)
def test_the_workload_of_an_experiment(kind, method, tokens, slots, tiny_folders):
    config = load_config(tiny_folders[kind])
    given = ensemble(tiny_folders[kind], method, ensemble=EnsembleConfig(length=(3, 5, 3)))
    work = workload(given, config)
    assert (work.groups, work.rows, work.parts, work.source, work.target) == ((2, 1), 4, 2, 32, 8)
    assert (work.tokens, work.slots) == (tokens, slots)
    trained = given.prompt.shapes(load_model(tiny_folders[kind]))
    assert work.trained == sum(leaf.size for leaf in jax.tree.leaves(trained))


def test_a_config_is_that_of_the_model(tiny_folder):
    assert load_config(tiny_folder).d_model == load_model(tiny_folder).config.d_model


def with_memory(memory: int) -> Chip:
    return dataclasses.replace(CHIPS["cpu"], memory=memory)


@pytest.mark.parametrize("memory, remat", [(10**9, "none"), (10**5, "full")])
def test_remat_fits(tiny_folder, memory, remat):
    config, given = load_config(tiny_folder), ensemble(tiny_folder, mesh=MeshConfig())
    assert given.model.remat == "auto"
    assert with_remat(given, config, workload(given, config), None, with_memory(memory)).model.remat == remat


@pytest.mark.parametrize("method, fused", [("soft_prompt", True), ("full", False), ("last_layers", False)])
def test_methods_that_train_relative_positions_are_not_fused(tiny_folder, method, fused):
    given = with_options(Experiment(model=ModelConfig(name=str(tiny_folder))), "model", attention="fused")
    given = dataclasses.replace(given, prompt=METHODS[method]())
    assert is_step_fused(given) == fused
    assert workload(given, load_config(tiny_folder)).fused == fused


def test_a_given_remat_stays(tiny_folder):
    config, given = load_config(tiny_folder), ensemble(tiny_folder)
    given = with_options(given, "model", remat="dots")
    assert with_remat(given, config, workload(given, config), None, with_memory(1)) is given


def test_a_run_that_began_without_recomputation_resumes(tiny_folder):
    """Earlier versions recorded `none`, their default."""
    given = ensemble(tiny_folder)
    recorded = json.loads(to_json(with_options(given, "model", remat="none")))
    check_same(recorded, given)
    with pytest.raises(ConfigError, match=r"changed: model.dtype"):
        check_same(recorded, with_options(given, "model", dtype="bfloat16"))


def test_remat_fits_the_lengths_of_the_data(monkeypatch, experiment):
    """With the memory that the step of the loaded examples needs without recomputation, and with less."""
    seen = []

    def recorded(given, config, work, mesh, chip):
        seen.append((config, work))
        return with_remat(given, config, work, mesh, chip)

    monkeypatch.setattr(setup, "with_remat", recorded)
    prepared = prepare(experiment)
    ((config, work),) = seen
    (task,) = prepared.members[0].tasks
    assert work.source == row_lengths(task.examples["train"].inputs).max() < 512
    assert work.target == row_lengths(task.examples["train"].targets).max()
    needed = training_cost(config, dataclasses.replace(work, remat="none"), MeshConfig(), CHIPS["cpu"]).memory / USABLE
    for memory, remat in ((needed + 2**20, "none"), (needed - 2**20, "dots")):
        chip = dataclasses.replace(CHIPS["cpu"], memory=int(memory))
        monkeypatch.setattr(setup, "chip_of", lambda devices, unknown, chip=chip: chip)
        assert prepare(experiment).remat == remat


@pytest.mark.slow
def test_a_run_on_four_devices(experiment, tmp_path):
    config = tmp_path / "config.json"
    given = with_options(with_options(experiment, "train", steps=2), "ensemble", size=2)
    config.write_text(to_json(with_name(given, "auto")))
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4",
        "JAX_PLATFORMS": "cpu",
    }
    command = [sys.executable, "-m", "prompt_jax.cli", "train", str(config), "--mesh.auto"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "mesh: ensemble 2 x data 2 x model 1" in done.stdout + done.stderr
