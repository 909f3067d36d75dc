"""Tests of the planner with libtpu (`pip install '.[tpu]'`). Each plan is a new process; no TPU is needed."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.interop,
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: pip install '.[tpu]'"
    ),
]

ROOT = Path(__file__).resolve().parents[3]

SMALL = """\
from prompt_jax import DataConfig, Experiment, ModelConfig, PromptTuning, TrainConfig

experiment = Experiment(
    model=ModelConfig(name="google/t5-v1_1-small", dtype="bfloat16"),
    data=DataConfig(task="any", input_length=128, target_length=8),
    prompt=PromptTuning(length=20),
    train=TrainConfig(batch_size=32, eval_batch_size=16),
)
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "small.py"
    path.write_text(SMALL)
    return path


def run(*arguments: str | Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "tools.planner", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def planned(*arguments: str | Path) -> list[dict[str, Any]]:
    done = run(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["programs"]


def test_an_ensemble_on_a_replicated_base_has_no_collectives(config):
    train, generation = planned(config, "--topology", "v5e:4x4", "--ensemble.size", "32", "--mesh.ensemble", "16")
    assert train["program"] == "training step, 32 x 20" and train["collectives"] == {}
    assert train["bound"] in ("compute", "memory") and train["interconnect"] == 0
    # Generation has one: after each token it checks whether all rows have ended.
    ((kind, (count, size)),) = generation["collectives"].items()
    assert (kind, count) == ("all-reduce", 7) and size <= 4 * 7


def test_counted_operations_are_those_of_the_model(config):
    """Every chip computes exactly its share, plus recomputation."""
    mesh = ("--topology", "v5e:4x4", "--mesh.data", "8", "--mesh.model", "2")
    kept, again = (planned(config, *mesh, "--model.remat", remat)[0] for remat in ("none", "full"))

    def model(row: dict[str, Any]) -> float:
        return row["utilization"] * row["seconds"] * 197e12

    assert kept["flops"] == pytest.approx(model(kept), rel=0.02)
    assert model(again) == pytest.approx(model(kept)) and 1.2 < again["flops"] / kept["flops"] < 1.5
    assert again["temporaries"] < kept["temporaries"]
    # Two chips hold half of the base each and sum over heads, feed-forward width and vocabulary; prompts sum over all.
    base = 77e6 * 2 / 2
    assert base < kept["arguments"] < 1.05 * base
    assert kept["bound"] == "interconnect" and kept["collectives"]["all-reduce"][0] > 60


def test_a_batch_in_parts_has_the_same_operations(config):
    """If XLA sharded over axes of one device, it would duplicate the loop over parts."""
    options = ("--topology", "v5e:2x2", "--ensemble.size", "4", "--mesh.ensemble", "4", "--model.remat", "full")
    whole, parts = (planned(config, *options, "--train.accumulate", number)[0] for number in "12")
    assert parts["flops"] == pytest.approx(whole["flops"], rel=0.01)


def test_an_int8_base_takes_half(config):
    chips = ("--topology", "v5e:2x2", "--mesh.data", "2", "--mesh.model", "2")
    whole, _ = planned(config, *chips)
    half, _ = planned(config, *chips, "--model.dtype", "int8")
    words = 2 * 32128 * 512 * 2 / 2  # half of embedding and output, which are not quantized
    assert half["arguments"] - words == pytest.approx((whole["arguments"] - words) / 2, rel=0.05)


def test_a_program_that_does_not_fit_is_a_row_of_the_table(config):
    done = run(config, "--topology", "v5e:1x1", "--train.batch-size", "16384", "--train.eval-batch-size", "8")
    assert done.returncode == 0, done.stderr
    train, generation = (line for line in done.stdout.splitlines() if line.startswith(("| training", "| generation")))
    assert " GiB, available are 15.8 |" in train and "too large: " in train
    assert "too large" not in generation and "memory" in generation
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("topology, chips", [("v4:2x2x1", 4), ("v5p:2x2x1", 4)])
def test_a_chip_is_a_device(config, topology, chips):
    done = run(config, "--topology", topology, "--mesh.data", "-1")
    assert done.returncode == 0, done.stderr
    assert f"topology: {topology}, {chips} chips of " in done.stdout


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--topology", "v5e:3x3"), "libtpu knows no slice v5e:3x3: "),
        (
            ("--topology", "v5e:4x4"),
            "make 1 devices, but the 4 hosts have 16, and a mesh over several hosts must",
        ),
        (("--topology", "v5e:4x4", "--mesh.model", "16"), "mesh.model is 16, and .* has 6 heads"),
        (("--topology", "v5e:4x4", "--mesh.data", "16", "--train.batch-size", "24"), "train.batch_size is 24"),
        (("--topology", "v5e:2x2", "--model.name", "no/such"), "model.name 'no/such' is neither a folder"),
    ],
)
def test_errors_are_one_line(config, arguments, message):
    done = run(config, *arguments)
    assert (done.returncode, done.stdout) == (1, "") and "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert re.match(f"planner: .*{message}", last)
