"""Topologies that connect TPU chips."""

import dataclasses
import math
import re
from typing import Any

import numpy as np

from prompt_jax.distributed.chips import CHIPS, HOP, Chip


class TopologyError(ValueError):
    """An unknown topology. The message says which are known."""


@dataclasses.dataclass(frozen=True)
class Topology:
    """A TPU slice, whose chips are JAX devices that can be compiled for but not run on."""

    name: str
    chip: Chip
    sizes: tuple[int, ...]
    devices: tuple[Any, ...]

    @property
    def hosts(self) -> int:
        return len({device.process_index for device in self.devices})

    def wraps(self, axis: int) -> bool:
        """Return whether the last chip along an axis has a link to the first.

        It does in 2D slices (v5e, v6e) if the axis spans the pod's 16 chips, and in 3D slices if all sizes are
        multiples of 4.
        """
        if self.chip.axes == 2:
            return self.sizes[axis] == 16
        return all(size % 4 == 0 for size in self.sizes)

    def collective_seconds(self, kind: str, size: float, group: tuple[int, ...], order: list[Any]) -> float:
        """Return a lower bound for the seconds of a collective, with nothing else on its links.

        The bound assumes rings along all axes of the group at once. Each chip sends over its link to the next chip of a
        ring, or over both links if the ring is closed.

        Args:
          kind: name of the collective in HLO.
          size: bytes, as in `planner.work.Collective`.
          group: numbers of the group's devices; () means all.
          order: the devices that the program was compiled for.
        """
        members = [order[number] for number in group] if group else order
        coordinates = np.array([device.coords for device in members])
        links, hops = 0, 0
        for axis, whole in enumerate(self.sizes):
            size_in_group = len(np.unique(coordinates[:, axis]))
            closed = size_in_group == whole and self.wraps(axis)
            links += (size_in_group > 1) * (2 if closed else 1)
            hops += size_in_group // 2 if closed else size_in_group - 1
        share = (len(members) - 1) / len(members)
        # All-to-all: a quarter, because data travels a quarter of a ring on average instead of all of it.
        passes = {"all-reduce": 2 * share, "all-to-all": share / 4, "collective-permute": 1.0}.get(kind, share)
        return size * passes / (max(links, 1) * self.chip.link) + max(hops, 1) * HOP


def topology(name: str) -> Topology:
    """Return the slice named like `v5e:16x16` or `v4:2x2x4`. Needs libtpu, but no TPU.

    Raises:
      TopologyError: the chip is unknown, or libtpu knows no such slice.
    """
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)+)", name)
    chip = CHIPS.get(match[1]) if match else None
    if match is None or chip is None or match[2].count("x") != chip.axes - 1:
        forms = ", ".join(f"{kind}:{'x'.join('4' * chip.axes)}" for kind, chip in CHIPS.items() if chip.axes)
        raise TopologyError(f"{name} is not a topology; expected a chip and the sizes of a slice, such as {forms}")
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
