"""Accelerators, and their documented peak rates."""

import dataclasses
import math
import os
from typing import Any

import jax

from prompt_jax.errors import ConfigError

GIB = 2**30

# Seconds from the edge of one chip to the next (Austin et al. 2025, "How to Scale Your Model", part 3).
HOP = 1e-6


@dataclasses.dataclass(frozen=True)
class Chip:
    memory: int  # bytes
    peak: float  # bfloat16 operations per second
    bandwidth: float  # memory bandwidth in bytes per second
    link: float  # bytes per second of each link in one direction
    axes: int = 0  # axes of a TPU's torus, with two links along each
    megacore: bool = False  # whether libtpu must be told to treat the chip as one device
    kinds: tuple[str, ...] = ()  # parts of JAX's `device_kind`


# TPUs: from the Google Cloud documentation, "TPU v4", "TPU v5e", "TPU v5p" and "TPU v6e". The inter-chip bandwidth is
# divided among the links and their two directions. The link bandwidth of v4 is from Jouppi et al. 2023
# (arXiv:2304.01433). GPUs: from NVIDIA's data sheets, without sparsity. A CPU's rates are nominal. Computation
# bounds it, because its caches are large.
CHIPS = {
    "v4": Chip(32 * GIB, 275e12, 1200e9, 50e9, axes=3, megacore=True, kinds=("TPU v4",)),
    "v5e": Chip(16 * GIB, 197e12, 819e9, 400e9 / 4 / 2, axes=2, kinds=("TPU v5 lite", "TPU v5e")),
    "v5p": Chip(95 * GIB, 459e12, 2765e9, 1200e9 / 6 / 2, axes=3, kinds=("TPU v5p", "TPU v5")),
    "v6e": Chip(32 * GIB, 918e12, 1638e9, 800e9 / 4 / 2, axes=2, kinds=("TPU v6 lite", "TPU v6e")),
    "h200": Chip(141 * 10**9, 989e12, 4800e9, 450e9, kinds=("H200",)),
    "h100": Chip(80 * 10**9, 989e12, 3350e9, 450e9, kinds=("H100",)),
    "a100": Chip(80 * 10**9, 312e12, 2039e9, 300e9, kinds=("A100",)),
    "cpu": Chip(0, 1e12, math.inf, 10e9, kinds=("cpu",)),
}


def known_chip(device: Any) -> Chip | None:
    """Return the chip of a device; None if it is unknown."""
    return next((chip for chip in CHIPS.values() if any(kind in device.device_kind for kind in chip.kinds)), None)


def chip_of(devices: list[Any], unknown: Chip | None = None) -> Chip:
    """Return the chip of the devices, with the memory that they have.

    Args:
      devices: devices of this process, since only they report their memory.
      unknown: what to return for an unknown chip, with the memory of the devices.

    Raises:
      ConfigError: an unknown device.
    """
    device, chip = devices[0], known_chip(devices[0]) or unknown
    if chip is None:
        raise ConfigError(
            f"mesh.auto does not know the speed of {device.device_kind!r}; known are {', '.join(CHIPS)}. Give "
            "mesh.ensemble, mesh.data and mesh.model instead"
        )
    memory = (device.memory_stats() or {}).get("bytes_limit", chip.memory)
    if not memory:  # CPU devices share the memory of the host
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // jax.local_device_count()
    return dataclasses.replace(chip, memory=memory)
