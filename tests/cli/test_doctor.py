"""`prompt-jax doctor`."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from prompt_jax.cli import doctor
from prompt_jax.diagnosis import machine, packages


@pytest.fixture(autouse=True)
def environment(tmp_path, monkeypatch):
    """Leave only variables that are known to be right."""
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(machine, "accelerators", lambda: set())


def test_a_good_installation(run, monkeypatch):
    monkeypatch.setattr(packages, "conflicts", lambda needed: [])
    monkeypatch.delenv("XLA_FLAGS")  # the tests' are long
    status, out, err = run("doctor")
    assert status == 0 and err == "", out
    for line in (
        f"prompt-jax  {packages.installed_version('prompt-jax')}, with Python {sys.version.split()[0]} on ",
        f"packages    jax {packages.installed_version('jax')}, jaxlib ",
        "devices     1 x cpu\n",
        " cores, ",
        "extras      demo    ",
        "caches      models of the Hub  ",
        "not asked, since HF_HUB_OFFLINE is set, there is a token",
        "JAX_PLATFORMS=cpu\n",
        "No problem found.",
    ):
        assert line in out
    assert "hf_secret" not in out and max(map(len, out.splitlines())) < 200


@pytest.fixture
def probed(monkeypatch):
    """Find one CPU without starting a process."""
    probe = machine.Probe([{"platform": "cpu", "kind": "cpu", "memory": None}], {}, None)
    monkeypatch.setattr(machine, "DeviceProbe", lambda: SimpleNamespace(result=lambda: probe))


def test_json(run, probed):
    status, out, _ = run("doctor", "--json")
    findings = json.loads(out)
    assert set(findings) == {
        *("versions", "host", "devices", "extras", "caches", "hub", "environment", "problems"),
    }
    assert findings["hub"]["token"] is True and "hf_secret" not in out
    assert findings["extras"]["demo"]["install"] == "pip install '.[demo]'"
    assert status == any(problem["severity"] == "error" for problem in findings["problems"])


def test_a_problem_that_prevents_work(run, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_no_such_flag=1")
    status, out, _ = run("doctor")
    assert status == 1 and "devices     none" in out
    assert "error: XLA_FLAGS has --xla_no_such_flag=1, which jaxlib does not know\n  remedy: remove it" in out


def test_a_warning(run, probed, monkeypatch):
    monkeypatch.setattr(packages, "conflicts", lambda needed: [("zz", "yy>=2 (1 is installed)")])
    status, out, _ = run("doctor")
    assert status == 0 and "warning: zz needs yy>=2 (1 is installed)" in out and "No problem" not in out


def test_tensorflow_is_not_imported():
    code = "import sys; from prompt_jax.cli import doctor; doctor.diagnose(); print('tensorflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ)
    assert done.stdout.splitlines()[-1:] == ["False"], done.stderr


def test_no_variable_holds_a_secret():
    assert not any("TOKEN" in name or "KEY" in name or "PASS" in name for name in doctor.VARIABLES)


def test_devices_of_several_kinds():
    gpu = {"platform": "gpu", "kind": "NVIDIA H200", "memory": 150_000_000_000}
    lines = list(doctor._device_lines([gpu, gpu, {"platform": "cpu", "kind": "cpu", "memory": None}]))
    assert lines == ["2 x gpu (NVIDIA H200), 150.0 GB each", "1 x cpu"]
