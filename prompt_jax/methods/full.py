"""Model tuning (Lester et al. 2021): train a float32 copy of every weight of the base."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from prompt_jax.errors import ConfigError
from prompt_jax.methods.method import Method, Trainable

if TYPE_CHECKING:
    from jaxtyping import PRNGKeyArray

    from prompt_jax.checkpoints.load import Model
    from prompt_jax.models.delta import Delta


@dataclasses.dataclass(frozen=True)
class FullTuning(Method):
    """Full fine-tuning: train all weights of the base, a baseline."""

    name: ClassVar[str] = "full"
    replaces_base: ClassVar[bool] = True

    @property
    def default_rate(self) -> float:
        return 5e-5  # Li and Liang's rate for fine-tuning

    def initialize(
        self, key: "PRNGKeyArray", model: "Model", labels: Sequence[str] = (), *, tasks: int = 1
    ) -> Trainable:
        """Return a copy of the base's weights, nested as a Delta's leaves."""
        check_not_quantized(model, self.name)
        return copied_leaves(model.params)

    def apply(self, trainable: Trainable, key: "PRNGKeyArray | None" = None) -> "Delta":
        from prompt_jax.models.delta import Delta

        return Delta(trainable)


def check_not_quantized(model: "Model", method: str) -> None:
    """Raise ConfigError for a quantized base, whose weights cannot be trained."""
    import jax

    from prompt_jax.models.quantized import Quantized

    leaves = jax.tree.leaves(model.params, is_leaf=lambda node: isinstance(node, Quantized))
    if any(isinstance(leaf, Quantized) for leaf in leaves):
        raise ConfigError(
            f"prompt.method {method!r} trains weights of the base, and they are quantized; set model.dtype to float32 "
            "or bfloat16"
        )


def copied_leaves(node: Trainable) -> Trainable:
    """Return float32 copies of weights, nested as a Delta's leaves: the stacks of layers become a dict by number."""
    import jax.numpy as jnp

    if isinstance(node, dict):
        return {name: copied_leaves(child) for name, child in node.items()}
    if isinstance(node, tuple):
        return {str(number): copied_leaves(child) for number, child in enumerate(node)}
    return jnp.array(node, jnp.float32)
