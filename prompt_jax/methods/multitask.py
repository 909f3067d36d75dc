"""Multitask prompts: a prompt for each of N tasks, made of one that they share and of a part of each.

As in the extensions of Lester et al.'s code, where all parts begin as random numbers from 0 to 0.5. Beside embeddings,
which are of the order of 10 in T5 and of 0.1 in GPT-2, those are next to nothing or all there is, and as a map they
leave nothing of the shared prompt. Here each task begins with that prompt itself, and with `concatenate` with further
virtual tokens after it.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from prompt_jax.checkpoints.load import Model
from prompt_jax.config.prompt import PromptConfig
from prompt_jax.methods import soft_prompt
from prompt_jax.models.prompt import Prompt, VirtualTokens

Trainable = dict[str, Any]


def init(key: PRNGKeyArray, config: PromptConfig, model: Model, labels: Sequence[str] = (), *, tasks: int) -> Trainable:
    """First values in float32: `shared`, those of a soft prompt [P, D], and `own`, a part of each of N tasks:

    - `add`: [N, P, D], zeros.
    - `concatenate`: [N, Q, D], as the shared ones begin where that is at random or at zero, or else as the virtual
      tokens do that `labels` or `text` do not reach (`config.init_rest`).
    - `project`: `kernel` [N, D, D] and `bias` [N, D], zeros: what the map adds to the shared prompt.

    Raises:
      ConfigError: as `soft_prompt.init`.
    """
    shared_key, own_key = jax.random.split(key)
    shared = soft_prompt.init(shared_key, config, model, labels)
    length, width = config.length, model.config.d_model
    own: Any
    match config.per_task:
        case "concatenate":
            initial = config.init_rest if config.init in ("labels", "text", "file") else config.init
            part = dataclasses.replace(
                config, init=initial, length=tasks * (config.task_length or length), mlp_width=None
            )
            own = soft_prompt.init(own_key, part, model)["encoder_tokens"].reshape(tasks, -1, width)
        case "project":
            own = {"kernel": jnp.zeros((tasks, width, width)), "bias": jnp.zeros((tasks, width))}
        case _:
            own = jnp.zeros((tasks, length, width))
    return {"shared": shared, "own": own}


def apply(
    trainable: Trainable, params: Any, key: PRNGKeyArray | None = None, *, config: PromptConfig
) -> tuple[Any, Prompt]:
    """The base as it is, and the stacked Prompt of the tasks, which are numbered in the mixture's order."""
    params, prompt = soft_prompt.apply(trainable["shared"], params, key, config=config)
    tokens, own = prompt.encoder_tokens, trainable["own"]
    assert tokens is not None
    shared = tokens.embeddings[None]  # [1, P, D]
    match config.per_task:
        case "add":
            made = shared + own
        case "concatenate":
            made = jnp.concatenate([jnp.broadcast_to(shared, (len(own), *shared.shape[1:])), own], axis=1)
        case _:
            # Divided by D, so that one learning rate serves: an update moves D numbers of each column of a kernel.
            mapped = jnp.einsum("pd,nde->npe", tokens.embeddings, own["kernel"]) / shared.shape[-1]
            made = shared + mapped + own["bias"][:, None]
    return params, Prompt(VirtualTokens(made, placement=config.placement))
