"""The methods that change the base, and their Deltas."""

import jax
import numpy as np

import prompt_jax
from adapters import random_text, whole
from prompt_jax.checkpoints.load import Model
from prompt_jax.methods.adapter import AdapterTuning
from prompt_jax.methods.full import FullTuning
from prompt_jax.methods.last_layers import LastLayersTuning
from prompt_jax.models.delta import Delta, params_and_prompt

FAMILIES = ("t5_v11", "gpt2", "bart")


METHODS = {
    "houlsby": AdapterTuning(width=3),
    "lin": AdapterTuning(kind="lin", width=3),
    "last_layers": LastLayersTuning(layers=1),
    "full": FullTuning(),
}


def trained(model: Model, name: str, noise: float = 0.1, seed: int = 0) -> Delta:
    """Return a method's initial parameters plus noise."""
    config = METHODS[name]
    variables = config.initialize(jax.random.key(seed), model)
    rng = np.random.default_rng(seed)
    moved = jax.tree.map(lambda leaf: leaf + noise * rng.normal(size=leaf.shape).astype(np.float32), variables)
    return config.apply(moved)


def batch_of(model: Model, rows: int = 2) -> dict[str, np.ndarray]:
    return whole(random_text(model, rows, 6)) | {"decoder_inputs": random_text(model, rows, 5, seed=1)}


def logits(model: Model, added: Delta | None = None, batch=None) -> np.ndarray:
    params, prompt = params_and_prompt(model.params, added)
    return np.asarray(prompt_jax.forward(params, model.config, batch or batch_of(model), prompt))
