"""Setup: shapes and numbers of parameters, by configuration."""

import dataclasses

import jax
import numpy as np
import pytest

from prompt_jax.config.ensemble import EnsembleConfig
from prompt_jax.config.optimizer import OptimizerConfig
from prompt_jax.errors import ConfigError
from prompt_jax.methods.adapter import AdapterTuning
from prompt_jax.methods.full import FullTuning
from prompt_jax.methods.last_layers import LastLayersTuning
from prompt_jax.methods.multitask import MultitaskPromptTuning
from prompt_jax.methods.p_tuning import PTuning
from prompt_jax.methods.prefix import PrefixTuning
from prompt_jax.methods.soft_prompt import PromptTuning
from prompt_jax.training.setup import prepare


@pytest.mark.parametrize(
    "method",
    [
        PromptTuning(init="text", init_text="a film", init_vocab=99),
        PromptTuning(length=5, mlp_width=7, init_vocab=99),
        MultitaskPromptTuning(length=5, task_part="concatenate", init_vocab=99),
        PTuning(length=5),
        PrefixTuning(length=5, mlp_width=7),
        AdapterTuning(),
        LastLayersTuning(layers=1),
        FullTuning(),
    ],
)
def test_shapes_are_known_before_initialization(tiny, method):
    made = method.initialize(jax.random.key(1), tiny, ["good", "bad"], tasks=2)
    shapes = method.shapes(tiny, ["good", "bad"], tasks=2)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), made) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), shapes
    )


@pytest.mark.parametrize("size", [2**40, 2**62])
@pytest.mark.parametrize("method", [PromptTuning(), PrefixTuning(mlp_width=4)], ids=lambda method: method.name)
def test_sizes_that_exceed_the_memory(experiment, method, size):
    """XLA would end the process."""
    method = dataclasses.replace(method, length=size)
    both = dataclasses.replace(experiment, prompt=method, ensemble=EnsembleConfig(size=2))
    told = rf"trainable parameters of 2 members take .* GiB in float32, and there are .*choose smaller .*length {size}"
    with pytest.raises(ConfigError, match=told):
        prepare(both)


def test_stored_parameters_are_those_of_the_files(experiment):
    """Stored parameters are the keys and values of every layer and site, without the MLP."""
    prefix = PrefixTuning(length=4, init="normal", mlp_width=8)
    setup = prepare(dataclasses.replace(experiment, prompt=prefix, ensemble=EnsembleConfig(length=(4, 2))))
    written = jax.tree.leaves(setup.make_prompts(setup.trainable(setup.states)))
    assert setup.stored_parameters == sum(leaf.size for leaf in written) != setup.trained_parameters


def test_rates_in_units_of_the_embeddings(experiment):
    """Members have other rates in the same unit. Adafactor's first update moves each number by the rate."""
    options = OptimizerConfig(rate_unit="embedding_rms", weight_decay=0.0)
    run = dataclasses.replace(experiment, optimizer=options, ensemble=EnsembleConfig(seed=(0,), learning_rate=(0.1, 2)))
    setup = prepare(run)
    rms = np.sqrt(np.square(np.asarray(setup.model.params["embedding"])).mean())
    np.testing.assert_allclose(setup.rate_rms, rms, rtol=1e-6)
    start = np.stack([member["prompt"]["encoder_tokens"] for member in setup.trainable(setup.states)])
    (batch,) = next(iter(setup.batches))
    states, _ = setup.step(setup.states[0], setup.model.params, setup.place(batch), setup.keys[0])
    moved = np.asarray(states.trainable["prompt"]["encoder_tokens"]) - start
    sizes = np.sqrt(np.square(moved).mean(axis=(1, 2)))
    np.testing.assert_allclose(sizes, [0.1 * rms, 2 * rms], rtol=1e-3)
    assert prepare(experiment).rate_rms is None
