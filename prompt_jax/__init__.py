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
    from prompt_jax.config.train import TrainConfig
    from prompt_jax.data.registry import add_mixture, add_task
    from prompt_jax.data.text_tasks import text_source, tfds_source
    from prompt_jax.experiment import Experiment
    from prompt_jax.inference.decoding import beam_search, generate
    from prompt_jax.methods.adapter import AdapterTuning
    from prompt_jax.methods.full import FullTuning
    from prompt_jax.methods.last_layers import LastLayersTuning
    from prompt_jax.methods.multitask import MultitaskPromptTuning
    from prompt_jax.methods.p_tuning import PTuning
    from prompt_jax.methods.prefix import PrefixTuning
    from prompt_jax.methods.soft_prompt import PromptTuning
    from prompt_jax.models import forward
    from prompt_jax.models.delta import Delta, merged_params
    from prompt_jax.models.prompt import Prefix, Prompt, VirtualTokens, concatenate_prompts, stack_prompts
    from prompt_jax.prompt_files.io import PromptFormatError, PromptMetadata, load_prompt, save_ensemble, save_prompt
    from prompt_jax.prompt_files.push import push_prompt
    from prompt_jax.training.run_experiment import run_experiment
    from prompt_jax.training.tracker import TrackedRun, Tracker

# Imported at first use, so that `prompt-jax --help` and configuration files do not wait for JAX.
_HOME = {
    "AdapterTuning": "methods.adapter",
    "DataConfig": "config.data",
    "Decoding": "config.decoding",
    "Delta": "models.delta",
    "EnsembleConfig": "config.ensemble",
    "Experiment": "experiment",
    "FullTuning": "methods.full",
    "LastLayersTuning": "methods.last_layers",
    "MeshConfig": "config.mesh",
    "Model": "checkpoints.load",
    "ModelConfig": "config.model",
    "MultitaskPromptTuning": "methods.multitask",
    "OptimizerConfig": "config.optimizer",
    "PTuning": "methods.p_tuning",
    "Prefix": "models.prompt",
    "PrefixTuning": "methods.prefix",
    "Prompt": "models.prompt",
    "PromptFormatError": "prompt_files.io",
    "PromptMetadata": "prompt_files.io",
    "PromptTuning": "methods.soft_prompt",
    "TrackedRun": "training.tracker",
    "Tracker": "training.tracker",
    "TrainConfig": "config.train",
    "VirtualTokens": "models.prompt",
    "add_mixture": "data.registry",
    "add_task": "data.registry",
    "beam_search": "inference.decoding",
    "concatenate_prompts": "models.prompt",
    "forward": "models",
    "generate": "inference.decoding",
    "load_model": "checkpoints.load",
    "load_prompt": "prompt_files.io",
    "merged_params": "models.delta",
    "push_prompt": "prompt_files.push",
    "run_experiment": "training.run_experiment",
    "save_ensemble": "prompt_files.io",
    "save_prompt": "prompt_files.io",
    "stack_prompts": "models.prompt",
    "text_source": "data.text_tasks",
    "tfds_source": "data.text_tasks",
}

__all__ = [
    "AdapterTuning",
    "DataConfig",
    "Decoding",
    "Delta",
    "EnsembleConfig",
    "Experiment",
    "FullTuning",
    "LastLayersTuning",
    "MeshConfig",
    "Model",
    "ModelConfig",
    "MultitaskPromptTuning",
    "OptimizerConfig",
    "PTuning",
    "Prefix",
    "PrefixTuning",
    "Prompt",
    "PromptFormatError",
    "PromptMetadata",
    "PromptTuning",
    "TrackedRun",
    "Tracker",
    "TrainConfig",
    "VirtualTokens",
    "add_mixture",
    "add_task",
    "beam_search",
    "concatenate_prompts",
    "forward",
    "generate",
    "load_model",
    "load_prompt",
    "merged_params",
    "push_prompt",
    "run_experiment",
    "save_ensemble",
    "save_prompt",
    "stack_prompts",
    "text_source",
    "tfds_source",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'prompt_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(f"prompt_jax.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
