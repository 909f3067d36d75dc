"""The machine: memory, cores, and the devices that JAX finds."""

import dataclasses
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

# Runs in another process, because wrong XLA_FLAGS end it, and a device that is in use may make it wait.
_PROBE = """
import importlib, json
result = {"imports": {}, "devices": [], "error": None}
for name in ("jax", "flax.struct", "optax", "orbax.checkpoint", "transformers", "huggingface_hub"):
    try:
        importlib.import_module(name)
    except Exception as error:
        result["imports"][name] = f"{type(error).__name__}: {error}"
if "jax" not in result["imports"]:
    import jax
    try:
        for device in jax.local_devices():
            try:
                memory = (device.memory_stats() or {}).get("bytes_limit")
            except Exception:
                memory = None
            result["devices"].append({"platform": device.platform, "kind": device.device_kind, "memory": memory})
    except Exception as error:
        result["error"] = f"{type(error).__name__}: {error}"
print("\\nPROBE " + json.dumps(result))
"""
_GOOGLE = "0x1ae0"  # vendor of PCI devices
TIMEOUT = 60.0  # seconds, for the devices


@dataclasses.dataclass(frozen=True)
class Host:
    """This machine, or the part of it that a container may use. Memory is in bytes; None if it is not known."""

    system: str
    cores: float
    memory: int | None
    available: int | None


@dataclasses.dataclass(frozen=True)
class Probe:
    """The devices that JAX finds in a new process.

    Attributes:
      devices: for each device its `platform`, `kind`, and `memory` in bytes or None.
      imports: the packages that cannot be imported, with the error.
      error: why there are no devices, or None.
    """

    devices: list[dict[str, Any]]
    imports: dict[str, str]
    error: str | None


def host(root: Path = Path("/")) -> Host:
    """Return memory and cores. `root` is the folder with /proc and /sys."""
    cores: float = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _first_line(root / "sys/fs/cgroup/cpu.max").partition(" ")
    if quota.isdigit() and period.isdigit():
        cores = min(cores, int(quota) / int(period))
    meminfo = dict(line.split(":", 1) for line in _lines(root / "proc/meminfo") if ":" in line)
    sizes = {name: 1024 * int(value.split()[0]) for name, value in meminfo.items() if value.split()}
    memory, available = sizes.get("MemTotal"), sizes.get("MemAvailable")
    if memory is None and "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = _first_line(root / "sys/fs/cgroup/memory.max")
    if limit.isdigit() and memory is not None and int(limit) < memory:
        memory, used = int(limit), _first_line(root / "sys/fs/cgroup/memory.current")
        if available is not None and used.isdigit():
            available = max(0, min(available, memory - int(used)))
    return Host(f"{platform.system()} {platform.release()} {platform.machine()}", cores, memory, available)


def accelerators(root: Path = Path("/")) -> set[str]:
    """Return `gpu` and `tpu` if the system has an NVIDIA GPU and a TPU, whether JAX uses them or not."""
    present = set()
    if any(path.name[6:].isdigit() for path in root.glob("dev/nvidia*")):
        present.add("gpu")
    if (root / "dev/accel0").exists() or (root / "dev/vfio/0").exists():
        vendors = {_first_line(path) for path in root.glob("sys/bus/pci/devices/*/vendor")}
        present |= {"tpu"} if _GOOGLE in vendors else set()
    return present


class DeviceProbe:
    """Asks JAX for its devices in another process, which runs until `result`."""

    def __init__(self) -> None:
        environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", **os.environ}  # another run may use the GPU
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _PROBE],  # no modules of the working directory
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )

    def result(self, timeout: float | None = None) -> Probe:
        """Wait for the result, for TIMEOUT seconds by default."""
        timeout = TIMEOUT if timeout is None else timeout
        try:
            out, err = self._process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
            reason = "another process may use the devices, or they may wait for other hosts"
            return Probe([], {}, f"no answer in {timeout:g} s; {reason}")
        for line in out.splitlines():
            if line.startswith("PROBE "):
                return Probe(**json.loads(line.removeprefix("PROBE ")))
        last = (err.strip().splitlines() or ["no message"])[-1]
        return Probe([], {}, f"the process ended with status {self._process.returncode}: {last}")


def _first_line(path: Path) -> str:
    return next(iter(_lines(path)), "").strip()


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
