"""A method that needs no change elsewhere: one trained vector, added to fixed virtual tokens."""

import dataclasses
from typing import Annotated, Any, ClassVar

from prompt_jax.config.constraints import POSITIVE
from prompt_jax.methods import Method


@dataclasses.dataclass(frozen=True)
class OffsetTuning(Method):
    """Offset tuning: train one vector that is added to the embeddings of the most frequent tokens."""

    name: ClassVar[str] = "offset"

    length: Annotated[int, POSITIVE] = 3
    """Number of virtual tokens."""
    scale: float = 1.0
    """Factor of the vector."""

    def initialize(self, key: Any, model: Any, labels: Any = (), *, tasks: int = 1) -> Any:
        import jax.numpy as jnp

        table = jnp.asarray(model.params["embedding"][: self.length], jnp.float32)
        return {"tokens": table, "offset": jnp.zeros(table.shape[1])}

    def apply(self, trainable: Any, key: Any = None) -> Any:
        import jax

        from prompt_jax import Prompt, VirtualTokens

        fixed = jax.lax.stop_gradient(trainable["tokens"])
        return Prompt(VirtualTokens(fixed + self.scale * trainable["offset"][None]))
