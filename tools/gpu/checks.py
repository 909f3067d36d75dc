"""Checks that results on the GPU are right.

Logits and prompt gradients of small models are compared with the CPU's in float32, and attention in one kernel with
XLA's operations in float32. An error is the norm of the difference, relative to the norm of what is expected.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prompt_jax.checkpoints.config_files import model_config
from prompt_jax.models import cudnn_attention, family, fused_attention
from prompt_jax.models.attention import KeyValues, attend
from prompt_jax.models.prompt import Prompt, VirtualTokens
from prompt_jax.models.quantized import Quantized
from tools.bench.cases import Shape
from tools.bench.jax_side import random_batch
from tools.gpu.cases import base_config
from tools.gpu.jax_side import random_parameters

# Largest errors. bfloat16 has a relative rounding error of 0.004; gradients sum over more roundings.
EXACT, ROUNDED = 1e-4, 0.05
WITHOUT = "needs a GPU"


def rows(tiny: bool) -> Iterator[dict[str, Any]]:
    """Yield the error of each check and its limit."""
    for model in ("t5", "llama"):
        yield from model_rows(model, tiny)
    yield from attention_rows(tiny)


def row(name: str, error: float | None, limit: float) -> dict[str, Any]:
    """Return a check's row; without an error, the check needs a GPU."""
    if error is None:
        return {"case": name, "skipped": WITHOUT}
    return {"case": name, "error": error, "limit": limit, "passed": bool(error <= limit)}


def relative_error(actual: Any, expected: Any) -> float:
    actual, expected = (np.asarray(x, np.float64) for x in (actual, expected))
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


# --------------------------------------------------------------------------------------------------------------
# Models


def model_rows(model: str, tiny: bool) -> Iterator[dict[str, Any]]:
    """Yield the errors of a small model's logits and prompt gradient."""
    config, batch, prompt = small_model(model, tiny)
    arguments = {"batch": batch, "prompt": prompt}
    cpu, device = jax.devices("cpu")[0], jax.devices()[0]
    base, integers = (jax.device_get(random_parameters(config, dtype)) for dtype in ("bfloat16", "int8"))
    exact = dequantized(base)
    expected = run(cpu, config, exact, **arguments)
    fused = dataclasses.replace(config, fused_attention=True)
    variants: dict[str, tuple[Any, Any, Any, float]] = {
        "float32": (config, exact, expected, EXACT),
        "bfloat16": (config, base, expected, ROUNDED),
        "int8": (config, integers, run(cpu, config, dequantized(integers), **arguments), ROUNDED),
        "bfloat16, fused attention": (fused, base, expected, ROUNDED),
    }
    for name, (settings, params, wanted, limit) in variants.items():
        skipped = settings.fused_attention and fused_attention.platform() != "gpu"
        actual = (None, None) if skipped else run(device, settings, params, **arguments)
        for what, made, right in zip(("logits", "prompt gradient"), actual, wanted, strict=True):
            yield row(f"{model}: {what}, {name}", None if made is None else relative_error(made, right), limit)


def small_model(model: str, tiny: bool) -> tuple[Any, dict[str, Any], np.ndarray]:
    """Return the config of a small model, a batch of rows of different lengths, and a prompt."""
    raw = base_config(model, tiny=True)
    if not tiny:
        widths = {"t5": {"d_model": 512, "d_kv": 64, "d_ff": 1024, "num_heads": 8}}
        widths["llama"] = {"hidden_size": 512, "intermediate_size": 1024, "head_dim": 128}
        raw |= widths[model]
    config = model_config(raw, {}, source=model)
    source, target = (16, 8) if tiny else (200, 16)
    target = target if model == "t5" else 0
    shape = Shape(batch=4, length=20, dropout=0.0, source=source, target=target, model=model)
    batch = random_batch(shape)
    for ids, mask in (("inputs", "inputs_mask"), ("targets", "target_mask")):
        length = batch[ids].shape[1]
        batch[mask] = np.arange(length)[None] < np.arange(length, length - shape.batch, -1)[:, None]
    prompt = np.random.default_rng(0).normal(size=(shape.length, config.d_model)).astype(np.float32)
    return config, batch, prompt


def run(device: Any, config: Any, params: Any, batch: Any, prompt: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the logits of real positions and the prompt's gradient, with all bits of float32 products."""
    with jax.default_device(device), jax.default_matmul_precision("highest"):
        logits, gradient = jax.device_get(logits_and_gradient(prompt, params, batch, config))
    return np.asarray(logits, np.float32)[batch["target_mask"]], gradient


@functools.partial(jax.jit, static_argnames="config")
def logits_and_gradient(prompt: jax.Array, params: Any, batch: Any, config: Any) -> tuple[jax.Array, jax.Array]:
    """Return the logits, and the gradient of the log-likelihood with respect to the prompt."""

    def log_likelihood(prompt: jax.Array) -> Any:
        logits = family(config).forward(params, config, batch, Prompt(VirtualTokens(prompt)))
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), batch["targets"][..., None], axis=2)[..., 0]
        return jnp.where(batch["target_mask"], chosen, 0.0).sum(), logits

    gradient, logits = jax.grad(log_likelihood, has_aux=True)(prompt)
    return logits, gradient


def dequantized(params: Any) -> Any:
    """Return parameters in float32."""

    def single(x: Any) -> np.ndarray:
        return x.values * np.asarray(x.scale) if isinstance(x, Quantized) else np.asarray(x, np.float32)

    return jax.tree.map(single, params, is_leaf=lambda x: isinstance(x, Quantized))


# --------------------------------------------------------------------------------------------------------------
# Attention


def attention_rows(tiny: bool) -> Iterator[dict[str, Any]]:
    """Yield the errors of attention in one kernel: values, and gradients of queries, keys and values."""
    for name, (q, blocks, options) in attention_cases(tiny).items():
        parts = ("values", "gradients")
        if fused_attention.platform() != "gpu":
            for part in parts:
                yield row(f"attention: {part}, {name}", None, ROUNDED)
            continue
        if not cudnn_attention.suits(q, blocks, options.get("positions"), None, False):
            raise ValueError(f"cuDNN does not take the arguments of the case {name}")
        made, wanted = (attention_results(q, blocks, options, fused) for fused in (True, False))
        for part, actual, expected in zip(parts, made, wanted, strict=True):
            yield row(f"attention: {part}, {name}", max(map(relative_error, actual, expected)), ROUNDED)


def attention_cases(tiny: bool) -> dict[str, tuple[Any, list[KeyValues], dict[str, Any]]]:
    """Return queries, blocks of keys and options for each kind of attention in the models."""
    rows, length, before = 2, 16 if tiny else 500, 5 if tiny else 99

    def random(*shape: int, seed: int = 0) -> jax.Array:
        return jax.random.normal(jax.random.key(seed), shape, jnp.bfloat16)

    def case(heads: int, groups: int, width: int, **fields: Any) -> tuple[Any, KeyValues, KeyValues]:
        q = random(rows, length, heads, width, seed=1) * width**-0.5
        text = KeyValues(*(random(rows, length, groups, width, seed=seed) for seed in (2, 3)), **fields)
        return q, text, KeyValues(*(random(before, groups, width, seed=seed) for seed in (4, 5)))

    padding = jnp.arange(length)[None] < jnp.array([[length], [length - 7]])
    positions = before + jnp.arange(length)[None]
    biases = [random(1, 8, length, keys, seed=6).astype(jnp.float32) for keys in (length, before)]
    q, text, prefix = case(8, 8, 64, bias=biases[0], mask=padding)
    made = {"relative positions and padding": (q, [text, prefix._replace(bias=biases[1])], {})}
    q, text, prefix = case(8, 2, 128, positions=positions)
    causal = {"positions": positions}
    made["causal, grouped queries"] = q, [text, prefix], causal
    made["causal, masked prefix"] = q, [text, prefix._replace(mask=jnp.arange(before)[None] > 2)], causal
    made["causal, window"] = q, [text, prefix], causal | {"window": jnp.int32(length // 3)}
    if cudnn_attention.widest() < 128 + 8:  # a mask takes 8 channels
        del made["causal, masked prefix"]
    return made


def attention_results(q: Any, blocks: list[KeyValues], options: Any, fused: bool) -> tuple[list[Any], list[Any]]:
    """Return the values of one form of attention, and its gradients; XLA's operations compute in float32."""
    dtype = jnp.bfloat16 if fused else jnp.float32

    def mixed(arrays: Any) -> Any:
        q, pairs = arrays
        each = [block._replace(k=k, v=v) for block, (k, v) in zip(blocks, pairs, strict=True)]
        return attend(q, *each, fused=fused, **options)

    @jax.jit
    def compute(arrays: Any) -> Any:
        values, pull = jax.vjp(mixed, jax.tree.map(lambda x: x.astype(dtype), arrays))
        weights = jax.random.normal(jax.random.key(7), values.shape, jnp.bfloat16)
        return [values], jax.tree.leaves(pull(weights.astype(dtype)))

    with jax.default_matmul_precision("highest"):
        return jax.device_get(compute((q, [(block.k, block.v) for block in blocks])))
