"""Options of the device mesh."""

import dataclasses
from typing import Annotated

from prompt_jax.config.constraints import MESH_SIZE


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """The devices of a run, ensemble x data x model of them. One of the sizes may be -1: what the others leave."""

    ensemble: Annotated[int, MESH_SIZE] = 1
    """Groups of devices that members are spread over; no group needs anything of another."""
    data: Annotated[int, MESH_SIZE] = 1
    """Groups, within these, that the rows of a batch are spread over."""
    model: Annotated[int, MESH_SIZE] = 1
    """Devices, within these, that the base's heads and feed-forward width are spread over (tensor parallelism)."""
