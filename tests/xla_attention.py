"""XLA's operations in place of cuDNN's kernel, which needs a GPU."""

import functools

import jax
import jax.numpy as jnp

from prompt_jax.models import cudnn_attention, fused_attention


def use(monkeypatch) -> list:
    """Compute attention as on a GPU, with XLA's operations. Return the list of the shapes of all calls."""
    shapes = []

    def mixed(causal, bias, q, k, v):
        if bias is not None:
            assert bias.dtype == q.dtype
            assert bias.shape[1:] == (q.shape[1], k.shape[1])
            assert bias.shape[1] % 2 == bias.shape[2] % 2 == 0
        shapes.append((q.shape, k.shape, None if bias is None else bias.shape, causal))
        bias = None if bias is None else bias[None]
        return jax.nn.dot_product_attention(q, k, v, bias, scale=1.0, is_causal=causal, implementation="xla")

    def forward(causal, bias, q, k, v):
        return mixed(causal, bias, q, k, v), jnp.zeros((len(q), q.shape[2], q.shape[1]))

    def backward(causal, bias, q, k, v, _, sums, gradient):
        return jax.vjp(functools.partial(mixed, causal, bias), q, k, v)[1](gradient)

    monkeypatch.setattr(fused_attention, "platform", lambda: "gpu")
    monkeypatch.setattr(fused_attention, "LEAST_QUERIES", 1)
    monkeypatch.setattr(cudnn_attention, "_forward", forward)
    monkeypatch.setattr(cudnn_attention, "_backward", backward)
    return shapes
