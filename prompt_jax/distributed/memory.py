"""Memory of the host and of this process's devices, in bytes."""

import os
import resource
import sys

import jax


def total_memory() -> int:
    """Return the memory that this process can put arrays in: its devices', or the host's if the devices are CPUs."""
    limits = [stats.get("bytes_limit") for stats in _device_statistics()]
    if limits and all(limits):
        return sum(int(limit) for limit in limits if limit)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def device_memory() -> int | None:
    """Return the memory of one of this process's devices; None if they do not report it."""
    return min((stats["bytes_limit"] for stats in _device_statistics() if "bytes_limit" in stats), default=None)


def peak_host_memory() -> int:
    """Return the largest resident size of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def peak_device_memory() -> int | None:
    """Return the largest memory in use so far on one of this process's devices; None if they do not report it."""
    peaks = [stats["peak_bytes_in_use"] for stats in _device_statistics() if "peak_bytes_in_use" in stats]
    return max(peaks, default=None)


def _device_statistics() -> list[dict[str, int]]:
    return [device.memory_stats() or {} for device in jax.local_devices()]
