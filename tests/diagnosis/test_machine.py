"""Memory, cores and devices."""

import os

import pytest

from prompt_jax.diagnosis import machine


def write(root, **files):
    for name, text in files.items():
        path = root.joinpath(*name.split("__"))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


MEMINFO = "MemTotal:       8000 kB\nMemFree:  1 kB\nMemAvailable:   6000 kB\n"


def test_host(tmp_path):
    write(tmp_path, proc__meminfo=MEMINFO)
    host = machine.host(tmp_path)
    assert (host.memory, host.available, host.cores) == (8_192_000, 6_144_000, len(os.sched_getaffinity(0)))


def test_a_container(tmp_path):
    write(tmp_path, proc__meminfo=MEMINFO, sys__fs__cgroup__placeholder="")
    cgroup = tmp_path / "sys" / "fs" / "cgroup"
    for name, text in (("memory.max", "4096000\n"), ("memory.current", "96000\n"), ("cpu.max", "50000 100000\n")):
        (cgroup / name).write_text(text)
    host = machine.host(tmp_path)
    assert (host.memory, host.available, host.cores) == (4_096_000, 4_000_000, 0.5)
    (cgroup / "memory.max").write_text("max\n")
    (cgroup / "cpu.max").write_text("max 100000\n")
    assert machine.host(tmp_path).memory == 8_192_000 and machine.host(tmp_path).cores >= 1


def test_this_machine():
    host = machine.host()
    assert host.memory is not None and 0 < host.available <= host.memory and host.cores > 0


def test_accelerators(tmp_path):
    assert machine.accelerators(tmp_path) == set()
    write(tmp_path, dev__nvidiactl="", dev__vfio__0="", sys__bus__pci__devices__a__vendor="0x8086\n")
    assert machine.accelerators(tmp_path) == set(), "a driver without a GPU, and another device"
    write(tmp_path, dev__nvidia1="", sys__bus__pci__devices__b__vendor="0x1ae0\n")
    assert machine.accelerators(tmp_path) == {"gpu", "tpu"}


def test_devices(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=3")
    probe = machine.DeviceProbe().result()
    assert probe == machine.Probe([{"platform": "cpu", "kind": "cpu", "memory": None}] * 3, {}, None)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("XLA_FLAGS", "--xla_no_such_flag=1", "Unknown flag in XLA_FLAGS: --xla_no_such_flag=1"),
        ("JAX_PLATFORMS", "nonsense", "nonsense"),
    ],
)
def test_no_devices(monkeypatch, name, value, error):
    monkeypatch.setenv(name, value)
    probe = machine.DeviceProbe().result()
    assert probe.devices == [] and error in probe.error


def test_a_package_that_cannot_be_imported(tmp_path, monkeypatch):
    (tmp_path / "optax.py").write_text("raise ImportError('no')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    probe = machine.DeviceProbe().result()
    assert probe.imports == {"optax": "ImportError: no"} and probe.devices


def test_modules_of_the_working_directory_are_not_imported(tmp_path, monkeypatch):
    (tmp_path / "json.py").write_text("raise ImportError")
    monkeypatch.chdir(tmp_path)
    assert machine.DeviceProbe().result().error is None


def test_a_device_that_does_not_answer(monkeypatch):
    monkeypatch.setattr(machine, "_PROBE", "import time; time.sleep(60)")
    assert machine.DeviceProbe().result(timeout=0.1).error.startswith("no answer in 0.1 s; another process")
