"""P-tuning (Liu et al. 2021, "GPT Understands, Too"): an encoder produces the virtual tokens in training.

The encoder is a bidirectional LSTM or an MLP over an input table. Layers and initialization are those of PEFT's
PromptEncoder. Only its output is stored, so the result is a soft prompt.
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from prompt_jax.config.constraints import BELOW_ONE, POSITIVE
from prompt_jax.config.prompt import PromptPlacement
from prompt_jax.errors import ConfigError
from prompt_jax.methods.method import Method, Trainable

if TYPE_CHECKING:
    from jaxtyping import Array, PRNGKeyArray

    from prompt_jax.checkpoints.load import Model
    from prompt_jax.models.prompt import Prompt


@dataclasses.dataclass(frozen=True)
class PTuning(Method):
    """P-tuning: train an encoder that produces the virtual tokens (Liu et al. 2021)."""

    name: ClassVar[str] = "p_tuning"

    length: Annotated[int, POSITIVE] = 20
    """Number of virtual tokens."""
    placement: PromptPlacement = "before"
    """Put the virtual tokens before the input or after it."""
    encoder: Literal["lstm", "mlp"] = "lstm"
    """A bidirectional LSTM with an MLP on top, as in the paper, or an MLP only."""
    width: Annotated[int, POSITIVE] | None = None
    """Hidden width of the encoder. None means the width of the base's embeddings."""
    layers: Annotated[int, POSITIVE] = 2
    """Number of LSTM layers. Ignored by the MLP."""
    dropout: Annotated[float, BELOW_ONE] = 0.0
    """Dropout rate between the LSTM's layers during training."""

    @property
    def default_rate(self) -> float:
        return 1e-4  # the rate of PEFT's benchmark

    def check(self) -> None:
        if self.dropout > 0 and (self.encoder == "mlp" or self.layers == 1):
            raise ConfigError(
                f"prompt.dropout is {self.dropout}, but it acts between LSTM layers: set prompt.encoder 'lstm' and "
                "prompt.layers above 1, or leave it out"
            )

    def initialize(
        self, key: "PRNGKeyArray", model: "Model", labels: Sequence[str] = (), *, tasks: int = 1
    ) -> Trainable:
        """Return `table` [P, D], `head` (linear layers), and for an LSTM `lstm` (two directions per layer)."""
        import jax

        d_model = model.params["embedding"].shape[1]
        width = self.width or d_model
        table_key, lstm_key, head_key = jax.random.split(key, 3)
        trainable: dict[str, Any] = {"table": jax.random.normal(table_key, (self.length, d_model))}
        if self.encoder == "mlp":
            return {**trainable, "head": _linear_layers(head_key, (d_model, width, width, d_model))}
        inputs = [d_model] + [2 * width] * (self.layers - 1)
        direction_keys = jax.random.split(lstm_key, (self.layers, 2))
        trainable["lstm"] = [
            {name: _lstm(k, size, width) for name, k in zip(("forward", "backward"), keys, strict=True)}
            for size, keys in zip(inputs, direction_keys, strict=True)
        ]
        return {**trainable, "head": _linear_layers(head_key, (2 * width, 2 * width, d_model))}

    def apply(self, trainable: Trainable, key: "PRNGKeyArray | None" = None) -> "Prompt":
        import jax
        import jax.numpy as jnp

        from prompt_jax.models.attention import dropout
        from prompt_jax.models.prompt import Prompt, VirtualTokens

        x = trainable["table"]
        for number, layer in enumerate(trainable.get("lstm", ())):
            if number and key is not None:
                x = dropout(x, self.dropout, jax.random.fold_in(key, number))
            x = jnp.concatenate(
                [_run_lstm(layer["forward"], x), _run_lstm(layer["backward"], x, reverse=True)], axis=-1
            )
        for number, linear in enumerate(trainable["head"]):
            x = jax.nn.relu(x) if number else x
            x = x @ linear["weights"] + linear["bias"][None]
        return Prompt(VirtualTokens(x, placement=self.placement))


def _uniform(key: "PRNGKeyArray", shape: tuple[int, ...], size: int) -> "Array":
    """Return values within 1 / sqrt(size), PyTorch's default initialization."""
    import jax

    return jax.random.uniform(key, shape, minval=-(size**-0.5), maxval=size**-0.5)


def _linear_layers(key: "PRNGKeyArray", widths: Sequence[int]) -> list[dict[str, "Array"]]:
    import jax

    layers = []
    for layer_key, n, m in zip(jax.random.split(key, len(widths) - 1), widths[:-1], widths[1:], strict=True):
        w_key, b_key = jax.random.split(layer_key)
        layers.append({"weights": _uniform(w_key, (n, m), n), "bias": _uniform(b_key, (m,), n)})
    return layers


def _lstm(key: "PRNGKeyArray", inputs: int, width: int) -> dict[str, "Array"]:
    """Return the weights of one direction of an LSTM layer. The gates are in PyTorch's order: i, f, g, o."""
    import jax

    x_key, h_key, b_key = jax.random.split(key, 3)
    return {
        "input": _uniform(x_key, (inputs, 4 * width), width),
        "hidden": _uniform(h_key, (width, 4 * width), width),
        "bias": _uniform(b_key, (2, 4 * width), width),
    }


def _run_lstm(weights: dict[str, "Array"], x: "Array", reverse: bool = False) -> "Array":
    """Return the hidden states [P, M] of one direction over the inputs [P, N]."""
    import jax
    import jax.numpy as jnp

    gates = x @ weights["input"] + weights["bias"].sum(axis=0)[None]
    zeros = jnp.zeros(weights["hidden"].shape[0])

    def step(carry: tuple["Array", "Array"], gates: "Array") -> tuple[tuple["Array", "Array"], "Array"]:
        hidden, cell = carry
        i, f, g, o = jnp.split(gates + hidden @ weights["hidden"], 4)
        cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
        hidden = jax.nn.sigmoid(o) * jnp.tanh(cell)
        return (hidden, cell), hidden

    return jax.lax.scan(step, (zeros, zeros), gates, reverse=reverse)[1]
