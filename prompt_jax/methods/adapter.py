"""Adapters: train small networks between the layers of the frozen base.

There are two per block, after each sublayer (Houlsby et al. 2019), or one per block with a norm (Lin et al. 2020). Li
and Liang (2021) compare prefixes with the latter.
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from prompt_jax.config.constraints import POSITIVE, PROPER_SHARE
from prompt_jax.errors import ConfigError
from prompt_jax.methods.method import Method, Trainable

if TYPE_CHECKING:
    from jaxtyping import PRNGKeyArray

    from prompt_jax.checkpoints.load import Model
    from prompt_jax.models.delta import Delta

# The scale of initial weights. Adapters start as almost the identity (Houlsby et al. 2019, section 3.6).
SCALE = 1e-3


@dataclasses.dataclass(frozen=True)
class AdapterTuning(Method):
    """Adapters: train small networks between the layers, a baseline (Houlsby et al. 2019, Lin et al. 2020)."""

    name: ClassVar[str] = "adapter"

    kind: Literal["houlsby", "lin"] = "houlsby"
    """Adapters after each sublayer (Houlsby et al. 2019), or one with a norm after each layer (Lin et al. 2020)."""
    width: Annotated[int, POSITIVE] | None = None
    """Width of the bottleneck, 64 by default."""
    share: Annotated[float, PROPER_SHARE] | None = None
    """Number of adapter parameters as a share of the base's, instead of `width`."""

    @property
    def default_rate(self) -> float:
        return 1e-4  # the rate of LoRA in PEFT's benchmark. Li and Liang (2021) have 5e-5 and 8e-5

    def check(self) -> None:
        if self.share is not None and self.width is not None:
            raise ConfigError(
                f"prompt.share is {self.share} and prompt.width is {self.width}: both set the size, so give one of them"
            )

    def initialize(
        self, key: "PRNGKeyArray", model: "Model", labels: Sequence[str] = (), *, tasks: int = 1
    ) -> Trainable:
        """Return `down` [L, D, M], `up` [L, M, D], their biases and for `lin` a norm, nested as a Delta's leaves."""
        import jax
        import jax.numpy as jnp

        places = _places(model.params, self.kind)
        d_model, bottleneck = model.config.d_model, self._bottleneck(model, places)
        trainable: dict[str, Any] = {}
        for (path, layers), place_key in zip(places, jax.random.split(key, len(places)), strict=True):
            down, up = jax.random.split(place_key)
            adapter: dict[str, Any] = {
                "down": SCALE * jax.random.normal(down, (layers, d_model, bottleneck)),
                "down_bias": jnp.zeros((layers, bottleneck)),
                "up": SCALE * jax.random.normal(up, (layers, bottleneck, d_model)),
                "up_bias": jnp.zeros((layers, d_model)),
            }
            if self.kind == "lin":
                adapter["norm"] = {"scale": jnp.ones((layers, d_model)), "bias": jnp.zeros((layers, d_model))}
            node = trainable
            for name in path:
                node = node.setdefault(name, {})
            node["adapter"] = adapter
        return trainable

    def apply(self, trainable: Trainable, key: "PRNGKeyArray | None" = None) -> "Delta":
        from prompt_jax.models.delta import Delta

        return Delta(trainable)

    def _bottleneck(self, model: "Model", places: list[tuple[tuple[str, ...], int]]) -> int:
        import jax

        if self.share is None:
            return self.width or 64
        base = sum(leaf.size for leaf in jax.tree.leaves(model.params))
        count, d_model = sum(layers for _, layers in places), model.config.d_model
        fixed = count * d_model * (3 if self.kind == "lin" else 1)
        bottleneck = round((self.share * base - fixed) / (count * (2 * d_model + 1)))
        if bottleneck < 1:
            least = (fixed + count * (2 * d_model + 1)) / base
            raise ConfigError(
                f"prompt.share is {self.share}, but adapters of width 1 have a share of {least:.2g} of {model.name}"
            )
        return bottleneck


def _places(params: Any, kind: str) -> list[tuple[tuple[str, ...], int]]:
    """Return the path of each adapter in the parameters, and its number of layers."""
    from prompt_jax.models.layers import depth

    places: list[tuple[tuple[str, ...], int]] = []
    for side in [name for name in ("encoder", "decoder") if name in params] or [""]:
        (stack,) = (params[side] if side else params)["layers"]
        layer = (side, "layers", "0") if side else ("layers", "0")
        sublayers = [name for name in ("self", "cross", "mlp") if name in stack]
        paths = [layer] if kind == "lin" else [(*layer, name) for name in sublayers]
        places += [(path, depth(stack)) for path in paths]
    return places
