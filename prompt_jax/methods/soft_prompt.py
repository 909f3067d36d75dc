"""Prompt tuning (Lester et al. 2021): the embeddings of P virtual tokens are trained, and nothing else.

On a causal model this is the embedding-only ablation of Li and Liang 2021, section 7.2, who made the embeddings with
an MLP.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from prompt_jax.checkpoints.load import Model
from prompt_jax.config.prompt import PromptConfig
from prompt_jax.errors import ConfigError
from prompt_jax.methods import initializers, mlp
from prompt_jax.models.prompt import Prompt, VirtualTokens, used_arrays
from prompt_jax.task_format import without_sentinel

Trainable = dict[str, Any]


def init(key: PRNGKeyArray, config: PromptConfig, model: Model, labels: Sequence[str] = ()) -> Trainable:
    """First values, `{"encoder_tokens": [P, D]}` in float32; with `config.mlp_width` what `mlp.init` gives of them.

    Raises:
      ConfigError: the initialization asks for what is not there (labels, a tokenizer, a fitting file).
    """
    if config.mlp_width is None:
        return {"encoder_tokens": _tokens(key, config, model, labels)}
    table_key, layers_key = jax.random.split(key)
    table = _tokens(table_key, config, model, labels)
    return {"encoder_tokens": mlp.init(layers_key, table, config.mlp_width, config.mlp_layers, table.shape[1:])}


def apply(
    trainable: Trainable, params: Any, key: PRNGKeyArray | None = None, *, config: PromptConfig
) -> tuple[Any, Prompt]:
    """The base as it is, and the prompt. `key` is for methods with a dropout of their own."""
    del key
    tokens = trainable["encoder_tokens"]
    embeddings = mlp.apply(tokens) if isinstance(tokens, dict) else tokens
    return params, Prompt(VirtualTokens(embeddings, placement=config.placement))


def _tokens(key: PRNGKeyArray, config: PromptConfig, model: Model, labels: Sequence[str]) -> Float[Array, "P D"]:
    table, length = model.params["embedding"], config.length

    def rest(key: PRNGKeyArray, count: int) -> Float[Array, "P D"]:
        if config.init_rest == "uniform":
            return initializers.uniform(key, count, table.shape[1], *config.init_range)
        return initializers.sampled_vocabulary(key, count, table, config.init_vocab)

    match config.init:
        case "uniform":
            return initializers.uniform(key, length, table.shape[1], *config.init_range)
        case "normal":
            return initializers.normal(key, length, table.shape[1:])
        case "zero":
            return jnp.zeros((length, table.shape[1]))
        case "vocab":
            return initializers.sampled_vocabulary(key, length, table, config.init_vocab)
        case "labels":
            words = config.init_labels or [without_sentinel(label) for label in labels]
            if not words:
                raise ConfigError(
                    "prompt.init 'labels' needs a task with labels, or prompt.init_labels; 'vocab' does without"
                )
            ids = [initializers.token_ids(model, word) for word in words]
            return initializers.class_labels(key, length, table, ids, rest)
        case "text":
            return initializers.text(key, length, table, initializers.word_ids(model, config.init_text), rest)
        case "file":
            return _from_file(config, model)


def _from_file(config: PromptConfig, model: Model) -> Float[Array, "P D"]:
    parts = initializers.prompt_of_file(config, model).parts
    if list(parts) != ["encoder_tokens"]:
        raise ConfigError(f"{config.init_file} has {' and '.join(parts)}, and not virtual tokens alone")
    if (placement := parts["encoder_tokens"].placement) != config.placement:
        raise ConfigError(f"{config.init_file} has placement {placement!r}, and prompt has {config.placement!r}")
    embeddings = used_arrays(parts["encoder_tokens"])["embeddings"]
    if len(embeddings) != config.length:
        raise ConfigError(
            f"{config.init_file} has {len(embeddings)} virtual tokens, and prompt.length is {config.length}"
        )
    return jnp.asarray(embeddings)
