"""TPUs: what a chip can do, which chips a topology has, and how they are joined.

The chips' numbers are those of the Google Cloud TPU documentation, "TPU v4", "TPU v5e", "TPU v5p" and "TPU v6e", each
of a chip: memory, peak bfloat16 operations, memory bandwidth, and the bandwidth between chips, of which a link has its
share in each of two directions. For v4 the last is that of Jouppi et al. 2023 (arXiv:2304.01433).
"""

import dataclasses
import math
import re
from typing import Any

import numpy as np

GIB = 2**30

# From the edge of one chip to the next (Austin et al. 2025, "How to Scale Your Model", part 3).
HOP = 1e-6  # seconds


class TopologyError(ValueError):
    """A topology that there is not; the message says which there are."""


@dataclasses.dataclass(frozen=True)
class Chip:
    memory: int  # bytes
    peak: float  # bfloat16 operations a second
    bandwidth: float  # bytes a second, of its memory
    link: float  # bytes a second, of each of its links in one direction
    axes: int  # of the torus: it has two links along each
    megacore: bool = False  # has to be asked to be one device


CHIPS = {
    "v4": Chip(32 * GIB, 275e12, 1200e9, 50e9, axes=3, megacore=True),
    "v5e": Chip(16 * GIB, 197e12, 819e9, 400e9 / 4 / 2, axes=2),
    "v5p": Chip(95 * GIB, 459e12, 2765e9, 1200e9 / 6 / 2, axes=3),
    "v6e": Chip(32 * GIB, 918e12, 1638e9, 800e9 / 4 / 2, axes=2),
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice: its chips, as JAX's devices of a machine that is not there."""

    name: str
    chip: Chip
    sizes: tuple[int, ...]
    devices: tuple[Any, ...]

    @property
    def hosts(self) -> int:
        return len({device.process_index for device in self.devices})

    def wraps(self, axis: int) -> bool:
        """Whether the last chip of an axis is joined to the first.

        In the 2D slices of v5e and v6e where the axis is the whole pod's, of 16; in 3D where all sizes are multiples
        of 4.
        """
        if self.chip.axes == 2:
            return self.sizes[axis] == 16
        return all(size % 4 == 0 for size in self.sizes)

    def collective_seconds(self, kind: str, size: float, group: tuple[int, ...], order: list[Any]) -> float:
        """How long a collective takes at the least, with nothing else on its links.

        Along each axis that its group spans, rings: what passes each chip goes over its link to the next one, over
        both where the ring is closed, and over the links of all these axes at once.

        Args:
          kind: its name in HLO.
          size: bytes, as `planner.work.Collective` has them.
          group: numbers of its devices; all of them is ().
          order: the devices that the program was compiled for.
        """
        members = [order[number] for number in group] if group else order
        places = np.array([device.coords for device in members])
        links, hops = 0, 0
        for axis, whole in enumerate(self.sizes):
            there = len(np.unique(places[:, axis]))
            closed = there == whole and self.wraps(axis)
            links += (there > 1) * (2 if closed else 1)
            hops += there // 2 if closed else there - 1
        share = (len(members) - 1) / len(members)
        # All to all: a quarter, since a part goes on average over a quarter of a ring, and not around it.
        passes = {"all-reduce": 2 * share, "all-to-all": share / 4, "collective-permute": 1.0}.get(kind, share)
        return size * passes / (max(links, 1) * self.chip.link) + max(hops, 1) * HOP


def topology(name: str) -> Topology:
    """The slice of a name such as `v5e:16x16` or `v4:2x2x4`; needs libtpu, and no TPU.

    Raises:
      TopologyError: there is no such chip, or libtpu knows no such slice.
    """
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)+)", name)
    chip = CHIPS.get(match[1]) if match else None
    if match is None or chip is None or match[2].count("x") != chip.axes - 1:
        forms = ", ".join(f"{kind}:{'x'.join('4' * chip.axes)}" for kind, chip in CHIPS.items())
        raise TopologyError(f"{name} is no topology; expected a chip and its slice's sizes, such as {forms}")
    sizes = tuple(map(int, match[2].split("x")))

    from jax.experimental import topologies

    options: dict[str, Any] = {"chip_config_name": "megacore"} if chip.megacore else {}
    if math.prod(sizes) == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    try:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices
    except Exception as error:  # whatever libtpu raises
        raise TopologyError(f"libtpu knows no slice {name}: {str(error).splitlines()[0]}") from error
    if len(devices) != math.prod(sizes):
        raise TopologyError(f"{name} has {math.prod(sizes)} chips, and libtpu describes {len(devices)} devices")
    return Topology(name, chip, sizes, tuple(devices))
