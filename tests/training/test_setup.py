"""Setup: the loaded splits, the stored parameters, and the initial values, by configuration."""

import dataclasses

import jax

from prompt_jax.config.ensemble import EnsembleConfig
from prompt_jax.methods.prefix import PrefixTuning
from prompt_jax.training.setup import prepare


def test_stored_parameters_are_those_of_the_files(experiment):
    """Stored parameters are the keys and values of every layer and site, without the MLP."""
    prefix = PrefixTuning(length=4, init="normal", mlp_width=8)
    setup = prepare(dataclasses.replace(experiment, prompt=prefix, ensemble=EnsembleConfig(length=(4, 2))))
    written = jax.tree.leaves(setup.make_prompts(setup.trainable(setup.states)))
    assert setup.stored_parameters == sum(leaf.size for leaf in written) != setup.trained_parameters
