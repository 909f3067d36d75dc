"""Tuning of the last layers: which weights change, and what is differentiated."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

import prompt_jax
from adapters import assert_close
from deltas import batch_of, logits, trained
from prompt_jax.errors import ConfigError
from prompt_jax.methods.last_layers import LastLayersTuning
from prompt_jax.models.delta import Delta, merged_params
from prompt_jax.models.layers import depth


def test_only_the_last_layers_change(model):
    prompt = trained(model, "last_layers")
    side = model.params if "layers" in model.params else model.params["decoder"]
    (stack,) = side["layers"]
    leaves = prompt.leaves if "layers" in model.params else prompt.leaves["decoder"]
    last = jax.tree.map(lambda leaf, new: leaf.at[-1:].set(new), stack, leaves["last_layers"])
    params = {**side, "layers": (last,)}
    params = params if "layers" in model.params else {**model.params, "decoder": params}
    assert_close(logits(model, prompt), logits(dataclasses.replace(model, params=params)))


def test_lower_layers_are_not_differentiated(model):
    """With the last layer trained, the backward pass runs one layer."""
    batch = batch_of(model)

    def backwards(jaxpr) -> int:
        layers = 0
        for equation in jaxpr.eqns:
            if equation.primitive.name == "scan" and equation.params["reverse"]:
                layers += equation.params["length"]
            for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
                inner = getattr(inner, "jaxpr", inner)
                layers += backwards(inner) if hasattr(inner, "eqns") else 0
        return layers

    def layers(name: str) -> int:
        def loss(base):
            params = merged_params(model.params, Delta(base))
            return jnp.square(prompt_jax.forward(params, model.config, batch)).mean()

        return backwards(jax.make_jaxpr(jax.grad(loss))(trained(model, name).leaves).jaxpr)

    sides = [model.params] if "layers" in model.params else [model.params["encoder"], model.params["decoder"]]
    assert layers("full") == sum(depth(side["layers"][0]) for side in sides)
    assert layers("last_layers") == 1


def test_more_layers_than_the_model_has(model):
    config = LastLayersTuning(layers=9)
    with pytest.raises(ConfigError, match="prompt.layers is 9, and .* has"):
        config.initialize(jax.random.key(0), model)
