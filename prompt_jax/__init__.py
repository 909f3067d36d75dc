"""Tuning frozen language models with soft prompts and prefixes, in JAX.

model  = prompt_jax.load_model("demo")
prompt = prompt_jax.load_prompt("runs/demo/best.npz", model)
logits = prompt_jax.forward(model.params, model.config, batch, prompt)
tokens = prompt_jax.generate(model.params, model.config, batch, prompt, max_new_tokens=32)

To read the code, start with `prompt_jax.models`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prompt_jax.checkpoints.load import Model, load_model
    from prompt_jax.config.data import DataConfig
    from prompt_jax.config.decoding import Decoding
    from prompt_jax.config.ensemble import EnsembleConfig
    from prompt_jax.config.mesh import MeshConfig
    from prompt_jax.config.model import ModelConfig
    from prompt_jax.config.optimizer import OptimizerConfig
    from prompt_jax.config.prompt import PromptConfig
    from prompt_jax.config.train import TrainConfig
    from prompt_jax.data.text_tasks import add_task, text_source
    from prompt_jax.experiment import Experiment
    from prompt_jax.inference.decoding import beam_search, generate
    from prompt_jax.models import forward
    from prompt_jax.models.prompt import Prefix, Prompt, VirtualTokens, stack_prompts
    from prompt_jax.prompt_files.io import PromptFormatError, PromptMetadata, load_prompt, save_ensemble, save_prompt
    from prompt_jax.prompt_files.push import push_prompt

# Imported at first use, so that `prompt-jax --help` and configuration files do not wait for JAX.
_HOME = {
    "DataConfig": "config.data",
    "Decoding": "config.decoding",
    "EnsembleConfig": "config.ensemble",
    "Experiment": "experiment",
    "MeshConfig": "config.mesh",
    "Model": "checkpoints.load",
    "ModelConfig": "config.model",
    "OptimizerConfig": "config.optimizer",
    "Prefix": "models.prompt",
    "Prompt": "models.prompt",
    "PromptConfig": "config.prompt",
    "PromptFormatError": "prompt_files.io",
    "PromptMetadata": "prompt_files.io",
    "TrainConfig": "config.train",
    "VirtualTokens": "models.prompt",
    "add_task": "data.text_tasks",
    "beam_search": "inference.decoding",
    "forward": "models",
    "generate": "inference.decoding",
    "load_model": "checkpoints.load",
    "load_prompt": "prompt_files.io",
    "push_prompt": "prompt_files.push",
    "save_ensemble": "prompt_files.io",
    "save_prompt": "prompt_files.io",
    "stack_prompts": "models.prompt",
    "text_source": "data.text_tasks",
}

__all__ = [
    "DataConfig",
    "Decoding",
    "EnsembleConfig",
    "Experiment",
    "MeshConfig",
    "Model",
    "ModelConfig",
    "OptimizerConfig",
    "Prefix",
    "Prompt",
    "PromptConfig",
    "PromptFormatError",
    "PromptMetadata",
    "TrainConfig",
    "VirtualTokens",
    "add_task",
    "beam_search",
    "forward",
    "generate",
    "load_model",
    "load_prompt",
    "push_prompt",
    "save_ensemble",
    "save_prompt",
    "stack_prompts",
    "text_source",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'prompt_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(f"prompt_jax.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
