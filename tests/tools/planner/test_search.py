"""Tests of the search for the best way to run, on the CPU as a chip."""

import dataclasses
from pathlib import Path

import jax
import pytest

from prompt_jax.config.data import DataConfig
from prompt_jax.config.ensemble import EnsembleConfig
from prompt_jax.config.mesh import MeshConfig
from prompt_jax.config.model import ModelConfig
from prompt_jax.config.train import TrainConfig
from prompt_jax.distributed.costs import training_cost
from prompt_jax.errors import ConfigError
from prompt_jax.experiment import Experiment
from prompt_jax.methods.soft_prompt import PromptTuning
from prompt_jax.training.choices import workload
from tools.planner import __main__ as planner
from tools.planner import search
from tools.planner.chips import CHIPS, Topology
from tools.planner.estimate import Estimate, TooLarge
from tools.planner.programs import base_config

ROOT = Path(__file__).resolve().parents[3]
V5E = CHIPS["v5e"]


def experiment(name: str, members: int = 4, **model) -> Experiment:
    return Experiment(
        model=ModelConfig(name=name, **model),
        data=DataConfig(task="any", input_length=32, target_length=8),
        prompt=PromptTuning(length=5),
        train=TrainConfig(batch_size=4, eval_batch_size=6),
        ensemble=EnsembleConfig(size=members),
    )


def place(chips: int = 1, memory: int = V5E.memory) -> Topology:
    return Topology("test", dataclasses.replace(V5E, memory=memory), (chips, 1), tuple(jax.devices()[:1]) * chips)


def test_candidates_are_the_best_of_each_dtype_remat_and_parallelism():
    given = experiment("google/t5-v1_1-small", members=4, dtype="bfloat16")
    found = search.candidates(given, place(8))
    ranks = [each.cost.seconds * 1.02 ** (each.experiment.model.dtype == "int8") for each in found]
    assert ranks == sorted(ranks)
    keys = {
        (
            each.experiment.model.dtype,
            each.experiment.model.remat,
            each.experiment.mesh.model,
            each.experiment.mesh.fsdp,
        )
        for each in found
    }
    assert len(keys) == len(found) == 2 * 3 * 3  # over 2 of 6 heads, with FSDP, or neither
    # The best one has no tensor parallelism, and splits members before rows.
    assert found[0].experiment.mesh == MeshConfig(ensemble=4, data=2)
    config = base_config(given.model.name)
    for each in found:
        assert each.cost == training_cost(config, workload(each.experiment, config), each.experiment.mesh, V5E)


@pytest.mark.parametrize(
    "given, expected",
    [("float32", {"float32", "bfloat16", "int8"}), ("int8", {"int8"}), ("fp8", {"fp8"}), ("int4", {"int4"})],
)
def test_int4_is_only_a_candidate_if_it_is_given(given, expected):
    found = search.candidates(experiment("google/t5-v1_1-small", dtype=given), place(8))
    assert {each.experiment.model.dtype for each in found} == expected


def test_members_on_a_device_share_the_reads_of_the_base():
    given = experiment("google/t5-v1_1-small", members=8, dtype="bfloat16")
    assert search.candidates(given, place())[0].experiment.ensemble.group == 8


def test_with_little_memory_layers_are_recomputed():
    given = experiment("google/t5-v1_1-small", members=1, dtype="bfloat16")
    given = dataclasses.replace(given, train=TrainConfig(batch_size=64), data=DataConfig(task="any", input_length=512))
    much, little = (search.candidates(given, place(memory=gib * 2**30)) for gib in (64, 3))
    assert {each.experiment.model.remat for each in much} == {"none", "dots", "full"}
    assert {each.experiment.model.remat for each in little} == {"full"}
    with pytest.raises(ConfigError, match="nothing fits on test by the analytic estimate"):
        search.candidates(given, place(memory=2**20))


@pytest.mark.slow
def test_the_compiler_ranks_candidates(tiny_folder, monkeypatch):
    found = search.candidates(experiment(str(tiny_folder)), place())[:3]
    real, too_large = search.estimate, TooLarge("training step", 2.0, 1.0)
    monkeypatch.setattr(search, "COMPILED", 2)
    results = iter([too_large, None, None])
    monkeypatch.setattr(search, "estimate", lambda *given: next(results) or real(*given))
    ranked = search.rank(found, place())
    assert [len(steps) for _, steps in ranked] == [1, 1, 1] and ranked[-1] == (found[0], [too_large])
    first, second = (candidate.rank(steps[0].seconds) for candidate, steps in ranked[:2])
    assert first <= second and {candidate.label for candidate, _ in ranked[:2]} == {each.label for each in found[1:]}


def test_the_largest_evaluation_that_compiles(tiny_folder, monkeypatch):
    given = experiment(str(tiny_folder))
    monkeypatch.setattr(search, "evaluation_rows", lambda *_: 8)
    real, rows = search.estimate, []

    def fits_with_four(program, where):
        rows.append(8 // 2 ** len(rows))
        return real(program, where) if len(rows) == 2 else TooLarge("generation", 2.0, 1.0)

    monkeypatch.setattr(search, "estimate", fits_with_four)
    chosen, result = search.largest_evaluation(given, place())
    assert chosen.train.eval_batch_size == 4 and isinstance(result, Estimate)
    assert "--train.eval-batch-size 4" in search.options(chosen)
    monkeypatch.setattr(search, "estimate", lambda *_: TooLarge("generation", 2.0, 1.0))
    with pytest.raises(ConfigError, match="generation for a single row does not fit on test"):
        search.largest_evaluation(given, place())


@pytest.mark.parametrize("mesh", [MeshConfig(2, 4), MeshConfig(2, 4, fsdp=True), MeshConfig(model=2)])
def test_options_choose_the_candidate(mesh):
    given = experiment("demo", dtype="int8", remat="dots")
    given = dataclasses.replace(given, mesh=mesh, ensemble=EnsembleConfig(size=4, group=2))
    words = search.options(given).split()
    plain = [str(ROOT / "configs/demo.py"), "--topology", "v5e:4x4", "--ensemble.size", "4"]
    chosen = planner.parse([*plain, *words]).experiment
    assert chosen.mesh == given.mesh and chosen.ensemble == given.ensemble
    assert (chosen.model.dtype, chosen.model.remat, chosen.train.eval_batch_size) == ("int8", "dots", 6)
