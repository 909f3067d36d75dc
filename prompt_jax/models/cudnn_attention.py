"""cuDNN's attention kernel for GPUs, which keeps no array of scores [B, H, T, S] in memory.

`jax.nn.dot_product_attention` calls the same kernel, but always computes the gradient of a bias, and a mask per row
becomes an array [B, H, T, S] next to a bias, or under vmap. Here
  - relative positions, causality and windows are one bias [H, T, S] or [1, T, S] for all rows, without a gradient;
  - a mask of keys is one more channel: 1 in queries, and a large negative number in hidden keys;
  - without a bias, causality is cuDNN's own mask, which skips hidden blocks. A prefix comes first, and as many empty
    queries before the others, so that query t sees the keys up to t.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Bool, Float, Int

from prompt_jax.models import fused_attention
from prompt_jax.models.fused_attention import MASKED

# cuDNN takes widths that are multiples of 8.
_CHANNELS = 8


def suits(
    q: Any, key_values: Sequence[Any], positions: Int[Any, "#B T"] | None, softcap: float | None, dropped: bool
) -> bool:
    """Return whether the kernel computes `attention.attend` with these arguments, and is worth it."""
    width = q.shape[3] + _CHANNELS * any(each.mask is not None for each in key_values)
    return (
        q.dtype == jnp.bfloat16
        and all(each.k.dtype == q.dtype for each in key_values)
        and softcap is None
        and not dropped
        and width % _CHANNELS == 0
        and width <= widest()
        and all(_same_for_rows(each, positions) for each in key_values)
        and fused_attention.suits(q, key_values)
    )


def attend(
    q: Float[Array, "B T H K"], key_values: Sequence[Any], positions: Int[Any, "#B T"] | None, window: Any
) -> Float[Array, "B T H K"]:
    """Return the result of `attention.attend`, whose arguments these are. The positions must be consecutive."""
    rows, length, _, width = q.shape
    causal = _is_causal(key_values, positions, window)
    if causal:
        key_values = sorted(key_values, key=lambda each: _is_text(each, positions))
    k, v = (fused_attention.joined([getattr(each, name) for each in key_values], rows) for name in "kv")
    bias = None if causal else _bias(key_values, positions, window, length)
    if any(each.mask is not None for each in key_values):
        q, k, v = _with_mask(q, k, v, _key_mask(key_values, rows))
    first = k.shape[1] - length if causal else 0  # empty queries
    last = 0
    if bias is not None:  # cuDNN then takes even lengths only
        last, missing = length % 2, k.shape[1] % 2
        k, v = (jnp.pad(x, ((0, 0), (0, missing), (0, 0), (0, 0))) for x in (k, v))
        bias = jnp.pad(bias, ((0, 0), (0, last), (0, missing)), constant_values=MASKED).astype(q.dtype)
    q = jnp.pad(q, ((0, 0), (first, last), (0, 0), (0, 0)))
    call = fused_attention.sharded(functools.partial(_attend, causal), q, k, bias)
    return call(q, k, v, bias)[:, first : first + length, :, :width]


def widest() -> int:
    """Return the largest head width of cuDNN's kernel on this GPU."""
    capability = getattr(jax.devices()[0], "compute_capability", "0.0")
    return 256 if int(capability.split(".")[0]) >= 9 else 128


def _is_text(key_values: Any, positions: Any) -> bool:
    """Return whether these are the keys of the queries' own tokens, of which a query sees those before it."""
    return positions is not None and key_values.positions is positions


def _same_for_rows(key_values: Any, positions: Any) -> bool:
    """Return whether positions hide the same keys in all rows."""
    if positions is None or key_values.positions is None or _is_text(key_values, positions):
        return True
    return key_values.positions.shape[0] == positions.shape[0] == 1


def _is_causal(key_values: Sequence[Any], positions: Any, window: Any) -> bool:
    """Return whether queries see all keys but those of later tokens, without any bias."""
    text = [each for each in key_values if _is_text(each, positions)]
    others = [each for each in key_values if not _is_text(each, positions)]
    free = all(each.bias is None for each in key_values) and all(each.positions is None for each in others)
    return len(text) == 1 and window is None and free


def _bias(key_values: Sequence[Any], positions: Any, window: Any, length: int) -> Float[Array, "_ T S"] | None:
    """Return what is added to the scores of all rows: the bias, and a large negative number where positions hide."""
    parts = []
    for each in key_values:
        part, visible = None if each.bias is None else each.bias[0], _visible(each, positions, window, length)
        if visible is not None:
            part = jnp.where(visible, 0.0 if part is None else part, MASKED)
        parts.append(part)
    heads = max((part.shape[0] for part in parts if part is not None), default=0)
    if not heads:
        return None
    shapes = [(heads, length, each.k.shape[-3]) for each in key_values]
    whole = [
        jnp.zeros(shape) if part is None else jnp.broadcast_to(part, shape)
        for part, shape in zip(parts, shapes, strict=True)
    ]
    return jax.lax.stop_gradient(jnp.concatenate(whole, axis=2))


def _visible(key_values: Any, positions: Any, window: Any, length: int) -> Bool[Array, "1 T S"] | None:
    """Return which keys the queries of all rows see by their positions."""
    if positions is None or key_values.positions is None:
        return None
    if _is_text(key_values, positions):  # rows may begin at different positions
        queries = keys = jnp.arange(length)[None]
    else:
        queries, keys = jnp.asarray(positions), jnp.asarray(key_values.positions)
    queries, keys = queries[:, :, None], keys[:, None]
    return (keys <= queries) if window is None else (keys <= queries) & (keys > queries - window)


def _key_mask(key_values: Sequence[Any], rows: int) -> Bool[Array, "B S"]:
    masks = [
        jnp.ones((1, each.k.shape[-3]), bool) if each.mask is None else jnp.asarray(each.mask, bool)
        for each in key_values
    ]
    return jnp.concatenate([jnp.broadcast_to(mask, (rows, mask.shape[1])) for mask in masks], axis=1)


def _with_mask(q: Array, k: Array, v: Array, mask: Bool[Array, "B S"]) -> list[Array]:
    """Return queries, keys and values with channels that hide keys."""
    hidden = jnp.where(mask, 0.0, MASKED)[:, :, None]
    first = (jnp.ones((1, 1, 1)), hidden, jnp.zeros((1, 1, 1)))
    widened = []
    for x, channel in zip((q, k, v), first, strict=True):
        added = jnp.broadcast_to(channel[..., None].astype(x.dtype), (*x.shape[:3], 1))
        added = jnp.pad(added, ((0, 0), (0, 0), (0, 0), (0, _CHANNELS - 1)))
        widened.append(jnp.concatenate([x, added], axis=3))
    return widened


# --------------------------------------------------------------------------------------------------------------
# The kernels


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(causal: bool, q: Array, k: Array, v: Array, bias: Any) -> Array:
    return _over_members(_forward, causal)(bias, q, k, v)[0]


def _attend_forward(causal: bool, q: Array, k: Array, v: Array, bias: Any) -> tuple[Array, Any]:
    mixed, sums = _over_members(_forward, causal)(bias, q, k, v)
    return mixed, (bias, q, k, v, mixed, sums)


def _attend_backward(causal: bool, saved: Any, gradient: Array) -> tuple[Any, ...]:
    return *_over_members(_backward, causal)(*saved, gradient), None


_attend.defvjp(_attend_forward, _attend_backward)


def _over_members(kernel: Callable[..., Any], causal: bool) -> Callable[..., Any]:
    """Return the kernel such that vmap runs it once, for the rows of all members; its first argument is the bias."""
    mapped = custom_vmap(functools.partial(kernel, causal))

    @mapped.def_vmap
    def rule(members: int, batched: Any, bias: Any, *arrays: Array) -> tuple[Any, Any]:
        whole = [
            x if each else jnp.broadcast_to(x[None], (members, *x.shape))
            for x, each in zip(arrays, batched[1:], strict=True)
        ]
        if jax.tree.leaves(batched[0]) == [True]:  # one bias per member
            made = jax.lax.map(lambda each: mapped(*each), (bias, *whole))
        else:
            made = mapped(bias, *(x.reshape(-1, *x.shape[2:]) for x in whole))
            made = jax.tree.map(lambda x: x.reshape(members, -1, *x.shape[1:]), made)
        return made, jax.tree.map(lambda _: True, made)

    return mapped


def _forward(causal: bool, bias: Any, q: Array, k: Array, v: Array) -> tuple[Array, Array]:
    """Return the weighted sums of values, and the logarithms of the softmax's sums [B, H, T]."""
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    arrays, options = _arguments(causal, bias, q, k, v)
    mixed, sums = cudnn._dot_product_attention_fwd_p.bind(*arrays, **options, is_training=True)
    return mixed, sums


def _backward(
    causal: bool, bias: Any, q: Array, k: Array, v: Array, mixed: Array, sums: Array, gradient: Array
) -> tuple[Array, ...]:
    """Return the gradients of queries, keys and values."""
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    arrays, options = _arguments(causal, bias, q, k, v)
    return tuple(cudnn._dot_product_attention_bwd_p.bind(*arrays, sums, mixed, gradient, **options))


def _arguments(causal: bool, bias: Any, q: Array, k: Array, v: Array) -> tuple[list[Array], dict[str, Any]]:
    """Return the arguments of JAX's primitives."""
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    unused = jnp.zeros(0, q.dtype)
    arrays = [q, k, v, unused if bias is None else bias[None], *[unused] * 6]
    mask = cudnn.MaskType.CAUSAL if causal else cudnn.MaskType.NO_MASK
    return arrays, {
        "scale": 1.0,
        "seed": 42,  # JAX's; only dropout would use it
        "dropout_rate": 0.0,
        "variadic_args": (bias is not None, False),  # whether there is a bias, and a gradient of it
        "mask_type": mask,
        "layout": cudnn.AttentionLayout.BTNH.value,
        "sliding_window_length": None,
    }
