"""The side `prompt_jax`."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from prompt_jax.checkpoints.config_files import model_config
from prompt_jax.checkpoints.weights import abstract
from prompt_jax.models import family
from prompt_jax.models.fused_attention import is_fused
from tools.bench.cases import Row, timed
from tools.bench.jax_side import Training, device_peak, ensemble_step, generator, random_batch
from tools.gpu.cases import Case, base_config, cases
from tools.planner.flops import matmul_flops


def rows(model: str, tiny: bool) -> Iterator[dict[str, Any]]:
    """Yield the measurements of a base."""
    yield {"case": "matmul", "side": "prompt_jax", **matmul(512 if tiny else 8192)}
    base, peak = random_base(model, tiny), 0.0
    for case in cases(model, tiny):
        measured = measure(base, case, tiny)
        if measured.get("device_mib", 0.0) <= peak:  # an earlier case's
            measured.pop("device_mib", None)
        peak = measured.get("device_mib", peak)
        yield {"case": case.name, "side": "prompt_jax", "examples": case.examples, **measured}


def measure(base: tuple[Any, Any], case: Case, tiny: bool) -> Row:
    """Time a case. `device_mib` is the peak of the process so far."""
    counts = {"steps": 1 if tiny else 8 if case.kind == "step" else 3}
    if case.kind == "generation":
        return timed(generator(base, case.shape, beams=1), **counts) | device_peak()
    if case.kind == "members":
        one, _ = ensemble_step(base, case.shape, case.members)
        measured = timed(lambda: jax.block_until_ready(one()), **counts)
    else:
        measured = timed(Training(base, case.shape).repeated(), **counts)
    return measured | device_peak() | {"flops": case.members * step_flops(base, case)}


def step_flops(base: tuple[Any, Any], case: Case) -> float:
    """Return the operations of the matrix products in one member's step."""
    config, params = base
    training = Training((dataclasses.replace(config, fused_attention=False), params), case.shape)
    state = jax.eval_shape(functools.partial(training.state, 0))
    return matmul_flops(jax.jit(training.step).trace(state, params, random_batch(case.shape), jax.random.key(1)).jaxpr)


def random_base(model: str, tiny: bool) -> tuple[Any, Any]:
    """Return config and random parameters of a base, in bfloat16."""
    config = model_config(base_config(model, tiny), {}, source=model)
    config = dataclasses.replace(config, fused_attention=is_fused("auto"))
    return config, random_parameters(config, "bfloat16")


def random_parameters(config: Any, dtype: str) -> Any:
    """Return random parameters, made on the device: matrices with a standard deviation of 0.02, and norms of 1."""
    shapes = abstract(family(config).parameters(config), dtype)

    @jax.jit
    def make(key: jax.Array) -> Any:
        leaves, tree = jax.tree_util.tree_flatten_with_path(shapes)
        keys = jax.random.split(key, len(leaves))
        return tree.unflatten([_leaf(key, path, leaf) for key, (path, leaf) in zip(keys, leaves, strict=True)])

    return make(jax.random.key(0, impl="rbg"))  # fast to compile


def _leaf(key: jax.Array, path: Any, leaf: Any) -> jax.Array:
    name = jax.tree_util.keystr(path)
    if name.endswith(".scale"):  # of int8 values
        return jnp.full(leaf.shape, 0.02 / 73, leaf.dtype)
    if leaf.dtype == jnp.int8:
        return jax.random.randint(key, leaf.shape, -127, 128, jnp.int8)
    if "norm" in name:
        return jnp.ones(leaf.shape, leaf.dtype)
    return 0.02 * jax.random.normal(key, leaf.shape, leaf.dtype)


def matmul(size: int) -> Row:
    """Measure the rate of products of random bfloat16 matrices."""
    a, b = (jax.random.normal(jax.random.key(seed), (size, size), jnp.bfloat16) for seed in range(2))
    product = jax.jit(jnp.matmul)
    return {"flops": 2 * size**3, **timed(lambda: product(a, b).block_until_ready())}


def machine() -> dict[str, str]:
    device = jax.devices()[0]
    return {"device": device.device_kind, "platform": device.platform, "jax": jax.__version__}
