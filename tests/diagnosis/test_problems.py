"""Known incompatibilities, each with versions that have it and versions that do not."""

import platform
from dataclasses import replace

import pytest
from packaging.requirements import Requirement

from prompt_jax.diagnosis import problems
from prompt_jax.diagnosis.caches import Cache
from prompt_jax.diagnosis.hub import HubAccess
from prompt_jax.diagnosis.machine import Probe

GOOD = {"python": "3.12.4", "jax": "0.12.0.1", "jaxlib": "0.12.0.1", "flax": "0.12.12", "transformers": "5.23.0"}
CPU = {"platform": "cpu", "kind": "cpu", "memory": None}


def reasons(found) -> str:
    return "\n".join(f"{problem.severity}: {problem.reason} -> {problem.remedy}" for problem in found)


def test_good_versions():
    assert list(problems.incompatibilities(GOOD)) == []
    locked = GOOD | {"python": "3.11.7", "jax": "0.10.2", "jaxlib": "0.10.2", "flax": "0.12.8", "peft": "0.21.2"}
    assert list(problems.incompatibilities(locked)) == []


@pytest.mark.parametrize(
    ("versions", "expected"),
    [
        ({"flax": "0.12.8"}, "flax.nnx before 0.12.9"),
        ({"flax": "0.12.9"}, "flax.nnx 0.12.9 does not work with jax 0.11.2"),
        ({"transformers": "5.24.0", "peft": "0.21.2"}, "PEFT up to 0.21.2 generates wrong tokens"),
        ({"jax-cuda12-plugin": "0.12.0.1", "jax-cuda13-plugin": "0.12.0.1"}, "only one is used"),
        ({"jax-cuda13-plugin": "0.11.0"}, "jax-cuda13-plugin 0.11.0 does not fit jaxlib 0.12.0.1; JAX ignores it"),
        ({"python": "3.14.0"}, "do not exist for Python 3.14"),
    ],
)
def test_incompatibilities(versions, expected):
    (problem,) = problems.incompatibilities(GOOD | versions)
    assert expected in problem.reason and problem.severity == "warning" and problem.remedy


def test_a_plugin_of_a_local_build():
    """JAX compares the numbers at the start of the versions."""
    assert list(problems.incompatibilities(GOOD | {"jax-cuda13-plugin": "0.12.0.1.dev3+cuda"})) == []


def test_the_tables_have_valid_versions():
    texts = [text for row in problems.INCOMPATIBLE for text in row.versions]
    texts += [row.version for row in problems.REMOVED_FLAGS]
    assert all(Requirement(text).name for text in texts)


def test_removed_flags():
    flags = "--xla_cpu_use_fusion_emitters=false --xla_force_host_platform_device_count=2"
    assert "error: XLA_FLAGS has --xla_cpu_use_fusion_emitters" in reasons(problems.flag_problems(flags, GOOD))
    assert list(problems.flag_problems(flags, GOOD | {"jaxlib": "0.11.0"})) == []
    assert list(problems.flag_problems("", GOOD)) == []


def test_packages():
    found = list(problems.package_problems([("prompt-jax", "optax"), ("zz", "yy>=2 (1 is installed)")]))
    assert reasons(found) == (
        "error: prompt-jax needs optax -> pip install .\n"
        "warning: zz needs yy>=2 (1 is installed) -> pip install -U zz yy"
    )


def test_devices():
    def found(probe, present=(), **environment) -> str:
        return reasons(problems.device_problems(probe, set(present), environment))

    good = Probe([CPU], {}, None)
    assert found(good) == "" and found(Probe([CPU | {"platform": "gpu"}], {}, None), {"gpu"}) == ""
    unused = found(good, {"gpu"})
    assert unused == "warning: this machine has an NVIDIA GPU, but JAX does not use it -> pip install '.[cuda]'"
    assert "unset LD_LIBRARY_PATH" in found(good, {"gpu"}, LD_LIBRARY_PATH="/usr/local/cuda/lib64")
    assert "since JAX_PLATFORMS is cpu -> unset JAX_PLATFORMS" in found(good, {"gpu"}, JAX_PLATFORMS="cpu")
    assert "this machine has a TPU" in found(good, {"tpu"}) and "'.[tpu]'" in found(good, {"tpu"})
    failed = Probe([], {}, "RuntimeError: no backend 'x'\nmore")
    assert found(failed, {"gpu"}).startswith("error: JAX finds no device (RuntimeError: no backend 'x') -> run: python")
    assert "of JAX_PLATFORMS=x (" in found(failed, JAX_PLATFORMS="x")
    broken = replace(good, imports={"optax": "ImportError: a\nb"})
    assert found(broken) == "error: optax cannot be imported (ImportError: a) -> pip install -U ."


def test_unknown_flags():
    """Those of the table are not reported twice."""
    both = "status 1: ... Unknown flags in XLA_FLAGS: --xla_cpu_use_fusion_emitters=false --xla_no=1"
    (problem,) = problems.device_problems(Probe([], {}, both), set(), {})
    assert problem.severity == "error" and problem.reason == "XLA_FLAGS has --xla_no=1, which jaxlib does not know"


def test_places():
    hub, cache = HubAccess("https://h", False, reachable=True), Cache("models", "/x", "HF_HOME", 0, True, True, 1)
    assert list(problems.place_problems(hub, [cache])) == []
    bad = problems.place_problems(replace(hub, reachable=False, reason="no"), [replace(cache, writable=False)])
    assert reasons(bad) == (
        "warning: https://h cannot be reached (no); models in the cache and in folders work -> "
        "check the network and the proxy, or set HF_HUB_OFFLINE=1\n"
        "warning: the folder /x (models) is not writable -> set HF_HOME to another folder"
    )
    assert list(problems.place_problems(replace(hub, offline=True, reachable=None), [])) == []


def test_windows(monkeypatch):
    assert list(problems.system_problems()) == []
    monkeypatch.setattr(platform, "system", lambda: "Windows")
    assert reasons(problems.system_problems()).startswith("error: runs are locked with fcntl")
