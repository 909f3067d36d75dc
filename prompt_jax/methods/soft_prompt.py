"""Prompt tuning (Lester et al. 2021): train the embeddings of P virtual tokens.

On a causal model with an MLP this is the embedding-only ablation of Li and Liang 2021, section 7.2.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from prompt_jax.config.constraints import INTERVAL, NOT_BLANK, NOT_NEGATIVE, POSITIVE
from prompt_jax.config.optimizer import PAPER_RATE
from prompt_jax.config.prompt import Initialization, PromptPlacement
from prompt_jax.errors import ConfigError
from prompt_jax.methods.method import MLP_RATE, Method, Trainable, check_init, check_option
from prompt_jax.task_format import without_sentinel

if TYPE_CHECKING:
    from jaxtyping import Array, PRNGKeyArray

    from prompt_jax.checkpoints.load import Model
    from prompt_jax.models.prompt import Prompt


@dataclasses.dataclass(frozen=True)
class PromptTuning(Method):
    """Prompt tuning: train virtual tokens in the input (Lester et al. 2021)."""

    name: ClassVar[str] = "soft_prompt"

    length: Annotated[int, POSITIVE] = 100
    """Number of virtual tokens."""
    placement: PromptPlacement = "before"
    """Put the virtual tokens before the input, as in the paper, or after it."""
    init: Initialization = "labels"
    """Initialization: `uniform` or `normal` noise, `zero`, `vocab` (embeddings sampled from the most frequent tokens),
    `labels` (class labels), `text` (one virtual token per token), `file` (another prompt, as in SPoT, Vu et al. 2022).
    With an MLP this initializes its input table."""
    init_range: Annotated[tuple[float, float], INTERVAL] = (-0.5, 0.5)
    """Range of `uniform`. The default is the paper's; its code draws from 0 to 0.5."""
    init_vocab: Annotated[int, POSITIVE] = 5000
    """Number of most frequent tokens that `vocab` samples from."""
    init_labels: Annotated[tuple[str, ...], NOT_BLANK] = ()
    """Words that `labels` uses instead of the task's labels, one virtual token per word."""
    init_text: str = ""
    """Text for `text`. It is tokenized with a leading space, as in the middle of a sentence."""
    init_file: Path | None = None
    """Prompt for `file`: `.npz`, T5X's `.npy`, or a PEFT folder, of the same length and base model."""
    init_member: Annotated[int, NOT_NEGATIVE] | None = None
    """Number of the prompt in `init_file`, if the file holds an ensemble."""
    mlp_width: Annotated[int, POSITIVE] | None = None
    """Width of an MLP that makes the virtual tokens from an input table during training. It is not stored. None trains
    the virtual tokens directly."""

    @property
    def trains_virtual_tokens(self) -> bool:
        return self.mlp_width is None

    @property
    def default_rate(self) -> float:
        return PAPER_RATE if self.mlp_width is None else MLP_RATE

    def check(self) -> None:
        check_init(self)
        check_option(self.init_labels, self.init == "labels", "init_labels", "prompt.init 'labels'")

    def initialize(
        self, key: "PRNGKeyArray", model: "Model", labels: Sequence[str] = (), *, tasks: int = 1
    ) -> Trainable:
        """Return `{"encoder_tokens": [P, D]}`, or with `mlp_width` `{"encoder_tokens": <mlp.init's result>}`."""
        import jax

        from prompt_jax.methods import mlp

        if self.mlp_width is None:
            return {"encoder_tokens": self._tokens(key, model, labels)}
        table_key, layers_key = jax.random.split(key)
        table = self._tokens(table_key, model, labels)
        return {"encoder_tokens": mlp.init(layers_key, table, self.mlp_width, table.shape[1:])}

    def apply(self, trainable: Trainable, key: "PRNGKeyArray | None" = None) -> "Prompt":
        from prompt_jax.methods import mlp
        from prompt_jax.models.prompt import Prompt, VirtualTokens

        tokens = trainable["encoder_tokens"]
        embeddings = mlp.apply(tokens) if isinstance(tokens, dict) else tokens
        return Prompt(VirtualTokens(embeddings, placement=self.placement))

    def _tokens(self, key: "PRNGKeyArray", model: "Model", labels: Sequence[str]) -> "Array":
        """Return the initial virtual tokens [P, D]."""
        import jax.numpy as jnp

        from prompt_jax.methods import initializers
        from prompt_jax.models import embedding_table

        table, length = embedding_table(model.params, model.config), self.length
        match self.init:
            case "uniform":
                return initializers.uniform(key, length, table.shape[1], *self.init_range)
            case "normal":
                return initializers.normal(key, length, table.shape[1:])
            case "zero":
                return jnp.zeros((length, table.shape[1]))
            case "vocab":
                return initializers.sampled_vocabulary(key, length, table, self.init_vocab)
            case "labels":
                words = self.init_labels or [without_sentinel(label) for label in labels]
                if not words:
                    raise ConfigError(
                        "prompt.init 'labels' needs a task with labels, or prompt.init_labels; 'vocab' does without"
                    )
                ids = [initializers.token_ids(model, word) for word in words]
                return initializers.class_labels(key, length, table, ids, self.init_vocab)
            case "text":
                tokens = initializers.word_ids(model, self.init_text)
                return initializers.text(key, length, table, tokens, self.init_vocab)
            case "file":
                return self._tokens_of_file(model)

    def _tokens_of_file(self, model: "Model") -> "Array":
        import jax.numpy as jnp

        from prompt_jax.methods.initializers import prompt_of_file
        from prompt_jax.models.prompt import used_arrays

        assert self.init_file is not None  # `check`
        parts = prompt_of_file(self.init_file, self.init_member, model).parts
        if list(parts) != ["encoder_tokens"]:
            raise ConfigError(f"{self.init_file} has {' and '.join(parts)}; expected virtual tokens only")
        if (placement := parts["encoder_tokens"].placement) != self.placement:
            raise ConfigError(
                f"{self.init_file} has placement {placement!r}, but prompt.placement is {self.placement!r}"
            )
        embeddings = used_arrays(parts["encoder_tokens"])["embeddings"]
        if len(embeddings) != self.length:
            raise ConfigError(
                f"{self.init_file} has {len(embeddings)} virtual tokens, but prompt.length is {self.length}"
            )
        return jnp.asarray(embeddings)
