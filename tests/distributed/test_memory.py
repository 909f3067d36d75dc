"""Memory of the host and of devices, compared with what Linux reports."""

import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from prompt_jax.distributed.memory import peak_device_memory, peak_host_memory, total_memory


def in_proc(file: str, name: str) -> int:
    """Return a number of KiB in a file of /proc, in bytes."""
    lines = Path("/proc", file).read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_memory_of_the_host():
    assert total_memory() == pytest.approx(in_proc("meminfo", "MemTotal"), rel=0.01)
    assert peak_host_memory() == pytest.approx(in_proc("self/status", "VmHWM"), rel=0.1)
    assert peak_device_memory() is None, "a CPU does not report it"


@pytest.mark.parametrize(
    ("statistics", "total", "peak"),
    [
        ([{"bytes_limit": 16, "peak_bytes_in_use": 3}, {"bytes_limit": 8, "peak_bytes_in_use": 5}], 24, 5),
        ([{"bytes_limit": 16}, {"peak_bytes_in_use": 5}], None, 5),
        ([None, {}], None, None),
    ],
)
def test_memory_of_devices(monkeypatch, statistics, total, peak):
    """The total is that of the host unless all devices report theirs."""
    host = total_memory()
    devices = [SimpleNamespace(memory_stats=lambda each=each: each) for each in statistics]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    assert total_memory() == (total or host) and peak_device_memory() == peak
