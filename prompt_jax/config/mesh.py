"""Options of the device mesh."""

import dataclasses
from typing import Annotated

from prompt_jax.config.constraints import MESH_SIZE


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """The device mesh, of ensemble x data x model devices. One size may be -1 for all remaining devices."""

    ensemble: Annotated[int, MESH_SIZE] = 1
    """Number of device groups that ensemble members are distributed over. The groups do not communicate."""
    data: Annotated[int, MESH_SIZE] = 1
    """Number of device groups that the rows of a batch are distributed over (data parallelism)."""
    model: Annotated[int, MESH_SIZE] = 1
    """Number of devices that the base's heads and feed-forward width are sharded over (tensor parallelism)."""
    fsdp: bool = False
    """Shard the base over `data` too, and collect each layer's weights when they are needed (fully sharded data
    parallelism). A frozen base has no gradients, so nothing else is communicated. It needs `model` 1."""
    auto: bool = False
    """Replace the sizes and `fsdp` by those of the mesh that fits and has the shortest estimated step."""

    @property
    def sizes(self) -> dict[str, int]:
        """The size of each axis."""
        return {"ensemble": self.ensemble, "data": self.data, "model": self.model}
