"""Fine-tuning of the top layers (Li and Liang 2021, FT-Top2): train float32 copies of the decoder's last layers.

These are the transformer blocks only. Li and Liang's code also trains the final norm and the embedding that is tied to
the output.
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar

from prompt_jax.config.constraints import POSITIVE
from prompt_jax.errors import ConfigError
from prompt_jax.methods.full import check_not_quantized, copied_leaves
from prompt_jax.methods.method import Method, Trainable

if TYPE_CHECKING:
    from jaxtyping import PRNGKeyArray

    from prompt_jax.checkpoints.load import Model
    from prompt_jax.models.delta import Delta


@dataclasses.dataclass(frozen=True)
class LastLayersTuning(Method):
    """Partial fine-tuning: train the decoder's last layers, a baseline (Li and Liang 2021)."""

    name: ClassVar[str] = "last_layers"
    replaces_base: ClassVar[bool] = True

    layers: Annotated[int, POSITIVE] = 2
    """Number of layers to train."""

    @property
    def default_rate(self) -> float:
        return 5e-5  # Li and Liang's rate for fine-tuning

    def initialize(
        self, key: "PRNGKeyArray", model: "Model", labels: Sequence[str] = (), *, tasks: int = 1
    ) -> Trainable:
        """Return a copy of the last layers' weights, nested as a Delta's leaves."""
        from prompt_jax.models.delta import LAST_LAYERS
        from prompt_jax.models.layers import depth, split_layers

        check_not_quantized(model, self.name)
        causal = "layers" in model.params
        stacks = (model.params if causal else model.params["decoder"])["layers"]
        if self.layers > (count := sum(map(depth, stacks))):
            raise ConfigError(f"prompt.layers is {self.layers}, and {model.name} has {count}")
        trainable = {LAST_LAYERS: copied_leaves(split_layers(stacks, self.layers)[1])}
        return trainable if causal else {"decoder": trainable}

    def apply(self, trainable: Trainable, key: "PRNGKeyArray | None" = None) -> "Delta":
        from prompt_jax.models.delta import Delta

        return Delta(trainable)
