"""Tuning frozen language models with soft prompts and prefixes, in JAX.

model  = prompt_jax.load_model("demo")
prompt = prompt_jax.load_prompt("runs/demo/best.npz", model)
logits = prompt_jax.forward(model.params, model.config, batch, prompt)
tokens = prompt_jax.generate(model.params, model.config, batch, prompt, max_new_tokens=32)
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prompt_jax.config import Decoding
    from prompt_jax.decoding import beam_search, generate
    from prompt_jax.models import forward
    from prompt_jax.models.hub import Model, load_model
    from prompt_jax.models.prompt import Prefix, Prompt, VirtualTokens, stack_prompts
    from prompt_jax.prompts.files import PromptFormatError, PromptMetadata, load_prompt, save_ensemble, save_prompt
    from prompt_jax.prompts.push import push_prompt

# Imported at first use, so that `prompt-jax --help` and the reading of configurations do not wait for JAX.
_HOME = {
    "Decoding": "config",
    "Model": "models.hub",
    "Prefix": "models.prompt",
    "Prompt": "models.prompt",
    "PromptFormatError": "prompts.files",
    "PromptMetadata": "prompts.files",
    "VirtualTokens": "models.prompt",
    "beam_search": "decoding",
    "forward": "models",
    "generate": "decoding",
    "load_model": "models.hub",
    "load_prompt": "prompts.files",
    "push_prompt": "prompts.push",
    "save_ensemble": "prompts.files",
    "save_prompt": "prompts.files",
    "stack_prompts": "models.prompt",
}

__all__ = [
    "Decoding",
    "Model",
    "Prefix",
    "Prompt",
    "PromptFormatError",
    "PromptMetadata",
    "VirtualTokens",
    "beam_search",
    "forward",
    "generate",
    "load_model",
    "load_prompt",
    "push_prompt",
    "save_ensemble",
    "save_prompt",
    "stack_prompts",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'prompt_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(f"prompt_jax.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
