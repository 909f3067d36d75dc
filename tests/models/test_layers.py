"""`run_layers`: what the backward pass recomputes."""

import dataclasses
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import prompt_jax
from adapters import assert_close, random_text, random_tokens, whole
from prompt_jax.config.model import Remat
from prompt_jax.models import family, fused_attention
from prompt_jax.models.layers import merge_heads, project_heads
from prompt_jax.models.quantized import RANGES, quantize

DTYPES = ("float32", *RANGES)


@pytest.mark.slow
def test_rematerialisation_changes_memory_alone(fixtures):
    """The recomputation draws the same dropout masks."""
    model = prompt_jax.load_model(fixtures / "t5_v11" / "base")
    batch = whole(random_text(model, 8, 24)) | {"decoder_inputs": random_text(model, 8, 12, seed=1)}
    prompt, key = random_tokens(model, 5), jax.random.key(0)

    def gradient(remat):
        config = dataclasses.replace(model.config, remat=remat)

        def loss(prompt):
            return family(config).forward(model.params, config, batch, prompt, key=key).sum()

        return jax.jit(jax.grad(loss)).lower(prompt).compile()

    compiled = {remat: gradient(remat) for remat in get_args(Remat)}
    expected = compiled["none"](prompt).encoder_tokens.embeddings
    for each in compiled.values():
        assert_close(each(prompt).encoder_tokens.embeddings, expected, 1e-4)
    none, dots, full = (compiled[remat].memory_analysis().temp_size_in_bytes for remat in ("none", "dots", "full"))
    assert full < 0.8 * dots and dots < 0.85 * none


@pytest.mark.parametrize("dtype", DTYPES)
def test_heads_side_by_side_are_the_same(monkeypatch, dtype):
    """Both forms of the projections, with values and gradients; int4 has groups of inputs within and across heads."""
    rng = np.random.default_rng(0)
    x, mixed = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((2, 3, 64), (2, 3, 4, 32)))
    to_heads, from_heads = (rng.normal(size=shape).astype(np.float32) for shape in ((64, 4, 32), (4, 32, 64)))
    if dtype == "float32":
        to_heads, from_heads = map(jnp.asarray, (to_heads, from_heads))
    else:
        to_heads, from_heads = quantize(to_heads, 1, dtype), quantize(from_heads, 2, dtype)

    def results():
        forms = (project_heads, x, to_heads), (merge_heads, mixed, from_heads)
        return [jax.value_and_grad(lambda x, f=f, w=w: jnp.sin(f(x, w)).sum())(x) for f, x, w in forms]

    expected = results()
    monkeypatch.setattr(fused_attention, "platform", lambda: "tpu")
    kept = jax.tree.leaves(jax.vjp(lambda x: project_heads(x, to_heads), x)[1])
    assert (64, 4 * 32) not in map(jnp.shape, kept), "the backward pass keeps no copy of the weights"
    jax.tree.map(assert_close, results(), expected)
