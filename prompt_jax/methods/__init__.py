"""Ways of making a Prompt from what is trained, one file a method, and prompt files.

A method has `init(key, config, model, labels)`, which gives the trainable variables, and
`apply(trainable, params, key, *, config)`, which gives the base's parameters and the Prompt; `config` is a
`prompt_jax.config.PromptConfig`. Where each task has a prompt, `init` is also told how many `tasks` there are, and the
Prompt is a stacked one.
"""

import functools
from collections.abc import Callable
from types import ModuleType

from prompt_jax.config.prompt import PromptConfig


def method(config: PromptConfig) -> ModuleType:
    """The module of a configuration's method."""
    from prompt_jax.methods import adapter, last_layers, multitask, prefix, soft_prompt

    return {
        "soft_prompt": multitask if config.per_task else soft_prompt,
        "prefix": prefix,
        "adapter": adapter,
        "full": last_layers,
        "last_layers": last_layers,
    }[config.method]


def applied(config: PromptConfig) -> Callable:
    """The method's `apply(trainable, params, key=None)`."""
    return functools.partial(method(config).apply, config=config)
