"""tools/gpu.sh: its checks with XLA's operations in place of cuDNN's kernel, its report, and a run on a CPU."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

import xla_attention
from prompt_jax.models import cudnn_attention
from tools.gpu import __main__ as gpu
from tools.gpu import checks

ROOT = Path(__file__).parents[2]


@pytest.fixture
def calls(monkeypatch):
    return xla_attention.use(monkeypatch)


def test_checks_of_attention(calls, monkeypatch):
    monkeypatch.setattr(cudnn_attention, "widest", lambda: 256)
    rows = list(checks.attention_rows(tiny=True))
    assert len(rows) == 8 and calls
    assert all(row["passed"] for row in rows), rows


def test_checks_find_a_kernel_that_ignores_the_bias(calls, monkeypatch):
    right = cudnn_attention._forward
    monkeypatch.setattr(cudnn_attention, "_forward", lambda causal, bias, *arrays: right(causal, None, *arrays))
    rows = {row["case"]: row["passed"] for row in checks.attention_rows(tiny=True)}
    assert not rows["attention: values, relative positions and padding"]
    assert not rows["attention: values, causal, window"]
    assert rows["attention: values, causal, grouped queries"]


@pytest.mark.slow
@pytest.mark.parametrize("model", ("t5", "llama"))
def test_checks_of_a_model_with_attention_in_one_kernel(calls, model):
    rows = {row["case"]: row for row in checks.model_rows(model, tiny=True)}
    assert calls
    assert len(rows) == 8
    assert all(row["passed"] for row in rows.values()), rows
    exact, fused = (rows[f"{model}: logits, {name}"]["error"] for name in ("float32", "bfloat16, fused attention"))
    assert exact == 0 and fused > 0


# --------------------------------------------------------------------------------------------------------------
# The report


def write(folder: Path, part: str, status: int, *rows: dict) -> None:
    (folder / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / f"{part}.status").write_text(f"{status}\n")


def test_report(tmp_path, capsys):
    matmul = {"case": "matmul", "flops": 1e12, "seconds": 1e-3}
    check = {"case": "logits", "error": 1e-6, "limit": 1e-4, "passed": True}
    ours = {"case": "step", "seconds": 0.1, "examples": 16, "flops": 5e13, "device_mib": 100.0}
    theirs = {"case": "step", "seconds": 0.2, "examples": 16, "device_mib": 400.0}
    write(tmp_path, "check", 0, {"machine": {"device": "H200", "jax": "0.11.2"}}, check)
    write(tmp_path, "jax-t5", 0, matmul, ours)
    write(tmp_path, "peft-t5", 0, matmul, theirs)
    write(tmp_path, "jax-llama", 0, matmul)
    write(tmp_path, "peft-llama", 0, matmul)
    assert gpu.report(tmp_path) == 0
    result = json.loads((tmp_path / "gpu.json").read_text())
    assert result["machine"] == {"device": "H200", "jax": "0.11.2"} and not result["failures"]
    step, peft = (row for row in result["rows"] if row["case"] == "step")
    assert step["matmul_share"] == pytest.approx(0.5) and step["speed"] == 2 and step["memory"] == 0.25
    assert peft["matmul_share"] == pytest.approx(0.25) and "speed" not in peft
    shown = capsys.readouterr().out
    assert "2.00 x" in shown and "50%" in shown and "| ok" in shown and "H200" in shown


def test_report_of_failures(tmp_path, capsys):
    write(tmp_path, "check", 0, {"case": "logits", "error": 1.0, "limit": 1e-4, "passed": False})
    write(tmp_path, "jax-t5", 124, {"case": "step", "seconds": 0.1, "examples": 16, "flops": 5e13})
    write(tmp_path, "peft-t5", 3)
    write(tmp_path, "jax-llama", 0)
    assert gpu.report(tmp_path) == 1
    assert capsys.readouterr().out.splitlines()[-4:] == [
        "FAILED: jax-t5 reached its time limit",
        "FAILED: peft-t5 ended with exit status 3",
        "FAILED: peft-llama was not started: no time was left",
        "WRONG: logits",
    ]


# --------------------------------------------------------------------------------------------------------------
# The script


def script(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess:
    command = [str(ROOT / "tools" / "gpu.sh"), *map(str, arguments)]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)


@pytest.fixture
def stand_in(tmp_path) -> str:
    """Return an interpreter that fails in PEFT's parts, and sleeps in the first part if SLEEP is set."""
    path = tmp_path / "python"
    path.write_text(
        "#!/bin/sh\n"
        f'[ "$3" = report ] && exec "{sys.executable}" "$@"\n'
        '[ "$3" = check ] && [ "$SLEEP" ] && sleep 60\n'
        'case "$3" in peft-*) exit 3 ;; esac\n'
        'echo "{\\"case\\": \\"step\\", \\"seconds\\": 0.1, \\"flops\\": 1}" >"$4/$3.jsonl"\n'
    )
    path.chmod(0o755)
    return str(path)


def test_script_continues_after_a_failed_part(tmp_path, stand_in):
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "notes.log").write_text("kept")
    (folder / "jax-t5.jsonl").write_text("of an earlier run")
    done = script(folder, PYTHON=stand_in)
    assert done.returncode == 1
    assert "FAILED: peft-t5 ended with exit status 3" in done.stdout and "FAILED: jax" not in done.stdout
    result = json.loads((folder / "gpu.json").read_text())
    assert [row["part"] for row in result["rows"]] == ["check", "jax-t5", "jax-llama"]
    assert (folder / "notes.log").read_text() == "kept"


def test_script_stops_at_its_time_limit(tmp_path, stand_in):
    done = script(tmp_path / "results", PYTHON=stand_in, SLEEP="1", GPU_SECONDS="1")
    assert done.returncode == 1
    assert "FAILED: check reached its time limit" in done.stdout
    assert "FAILED: jax-t5 was not started: no time was left" in done.stdout


def test_a_part_needs_a_gpu_unless_tiny(tmp_path):
    if jax.default_backend() != "cpu":
        pytest.skip("this machine has an accelerator")
    with pytest.raises(SystemExit, match="no GPU; --tiny"):
        list(gpu.measure("jax-t5", tiny=False))


def test_unknown_option():
    done = script("--small")
    assert done.returncode == 2 and "usage" in done.stderr


@pytest.mark.slow
def test_script_on_a_cpu(tmp_path):
    """Where PEFT is not installed, its parts fail, and the others are complete."""
    limits = {"GPU_SECONDS": "1500"}  # for a busy machine
    done = script("--tiny", tmp_path, PYTHON=sys.executable, **limits)
    result = json.loads((tmp_path / "gpu.json").read_text())
    has_peft = importlib.util.find_spec("peft") is not None and importlib.util.find_spec("torch") is not None
    failed = [each["part"] for each in result["failures"]]
    assert failed == ([] if has_peft else ["peft-t5", "peft-llama"]), done.stderr
    assert done.returncode == (0 if has_peft else 1)
    of = {part: [row for row in result["rows"] if row["part"] == part] for part in gpu.PARTS}
    assert [len(of[part]) for part in ("check", "jax-t5", "jax-llama")] == [22, 5, 3]
    assert all(row.get("passed", "skipped" in row) for row in of["check"])
    steps = [row for part in ("jax-t5", "jax-llama") for row in of[part] if "step" in row["case"]]
    assert len(steps) == 4 and all(row["matmul_share"] > 0 and row["seconds"] > 0 for row in steps)


@pytest.mark.interop
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(("part", "count"), (("peft-t5", 5), ("peft-llama", 3)))
def test_peft_on_a_cpu(part, count):
    pytest.importorskip("torch")
    pytest.importorskip("peft")
    machine, *rows = gpu.measure(part, tiny=True)
    assert machine["machine"]["platform"] == "cpu"
    assert len(rows) == count and all(row["seconds"] > 0 for row in rows)
