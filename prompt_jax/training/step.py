"""The training step.

The loss is differentiated with respect to the trainable parameters only, and optax labels the base as frozen. So the
compiled step contains no gradient, optimizer state or copy of the base.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray

from prompt_jax.methods import Method
from prompt_jax.methods.method import FROZEN
from prompt_jax.models import Config, family
from prompt_jax.models.delta import params_and_prompt
from prompt_jax.models.layers import collect_tables

Tree = Any

# The largest absolute value of a trained parameter. Beyond it float32 does not resolve differences of 1, so what the
# frozen layers add to such a virtual token is lost to rounding, and a finite loss means nothing. The prompts that
# Lester et al. published for T5 are far below, with standard deviations from 32 to 52.
LARGEST_PARAMETER = 2.0**24


def frozen_base(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """Return an optimizer of `{"base": ..., "prompt": ...}` that updates the prompt and freezes the base.

    Parameters of the prompt that a method stores under the name FROZEN do not change either.
    """

    def labels(variables: Tree) -> Tree:
        def label(path: Any, _: Any) -> str:
            return "frozen" if is_frozen(path) else "trainable"

        return {"base": "frozen", "prompt": jax.tree_util.tree_map_with_path(label, variables["prompt"])}

    return optax.partition({"trainable": optimizer, "frozen": optax.set_to_zero()}, labels)


def is_frozen(path: Sequence[Any]) -> bool:
    """Return whether parameters with this path stay at their initial values."""
    return any(getattr(key, "key", None) == FROZEN for key in path)


@struct.dataclass
class TrainState:
    """The state that a step updates and a checkpoint stores."""

    step: Any  # int32 scalar; Any, because tree maps put other types here
    active: Any  # bool scalar: False once a step diverged, after which steps change nothing
    trainable: Tree  # {"base": None, "prompt": the method's trainable parameters}
    opt_state: optax.OptState

    @classmethod
    def create(cls, trainable: Tree, optimizer: optax.GradientTransformation) -> "TrainState":
        """Return the state before the first step, for an optimizer from `frozen_base`."""
        variables = {"base": None, "prompt": trainable}
        return cls(jnp.zeros((), jnp.int32), jnp.ones((), bool), variables, optimizer.init(variables))


class Sums(NamedTuple):
    """Sums over target tokens. Means are computed after the parts of a batch have been added."""

    loss: Float[Array, ""]  # cross-entropy
    z_loss: Float[Array, ""]  # squared log-normalizer, not weighted
    correct: Float[Array, ""]
    tokens: Float[Array, ""]
    sentences: Float[Array, ""]  # rows with a target


def token_sums(logits: Float[Array, "B T V"], targets: Int[Array, "B T"], mask: Bool[Array, "B T"]) -> Sums:
    """Return the cross-entropy of the targets in nats, and related sums, over the positions of the mask."""
    weights = mask.astype(jnp.float32)
    log_normalizer = jax.nn.logsumexp(logits, axis=-1)
    # A sum instead of a gather: a gather would collect logits that are sharded over the vocabulary.
    words = jnp.arange(logits.shape[-1])[None, None]
    target_logits = jnp.where(words == targets[..., None], logits, 0.0).sum(axis=-1)
    correct = (jnp.argmax(logits, axis=-1) == targets).astype(jnp.float32)
    return Sums(
        ((log_normalizer - target_logits) * weights).sum(),
        (jnp.square(log_normalizer) * weights).sum(),
        (correct * weights).sum(),
        weights.sum(),
        mask.any(axis=1).astype(jnp.float32).sum(),
    )


def make_train_step(
    config: Config,
    method: Method,
    optimizer: optax.GradientTransformation,
    *,
    loss: Literal["token", "sentence"] = "token",
    z_loss: float = 0.0,
    dropout: bool = False,
    accumulate: int = 1,
) -> Callable[[TrainState, Tree, dict[str, Array], PRNGKeyArray], tuple[TrainState, dict[str, Array]]]:
    """Return `step(state, params, batch, key) -> (state, metrics)`, ready for `jax.jit`.

    `params` is the frozen base. `key` is the run's key; the step number is folded into it. The metrics are scalars:
    `loss` (mean, nats per target token), `accuracy` (of tokens), `z_loss` (weighted), `grad_norm`, `tokens`, `largest`
    (the largest absolute value of an updated parameter) and `diverged`: whether the loss or gradient is not finite, or
    a parameter exceeds LARGEST_PARAMETER. A diverged step leaves the parameters unchanged and clears `state.active`.

    Args:
      config: the model's configuration.
      method: turns trainable parameters into a Prompt or a Delta.
      optimizer: from `frozen_base`.
      loss: the objective: the mean over target tokens, or the mean over sentences of the sum over tokens.
      z_loss: weight of the mean squared log-normalizer.
      dropout: whether the base's dropout is on, at `config.dropout_rate`.
      accumulate: number of parts in which a batch is processed. The gradient is that of the whole batch's mean.
    """
    model = family(config)

    def loss_sums(trainable: Tree, params: Tree, batch: dict[str, Array], key: PRNGKeyArray):
        method_key, model_key = jax.random.split(key)
        params, prompt = params_and_prompt(params, method.apply(trainable["prompt"], method_key))
        logits = model.forward(params, config, batch, prompt, key=model_key if dropout else None)
        sums = token_sums(logits, batch["targets"], batch["target_mask"])
        return sums.loss + z_loss * sums.z_loss, sums

    def step(state: TrainState, params: Tree, batch: dict[str, Array], key: PRNGKeyArray):
        key = jax.random.fold_in(key, state.step)
        gradient = jax.grad(loss_sums, has_aux=True)  # with respect to the first argument, the trainable parameters
        if accumulate == 1:
            grads, sums = gradient(state.trainable, params, batch, key)
        else:
            grads, sums = _accumulated(gradient, state.trainable, params, batch, key, accumulate)
        # At least one, so that a batch of only padding changes nothing.
        tokens = jnp.maximum(sums.tokens, 1.0)
        count = tokens if loss == "token" else jnp.maximum(sums.sentences, 1.0)
        grads = jax.tree.map(lambda g: g / count, grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.trainable)
        metrics = {
            "loss": sums.loss / tokens,
            "z_loss": z_loss * sums.z_loss / tokens,
            "accuracy": sums.correct / tokens,
            "grad_norm": optax.tree.norm(grads),
            "tokens": sums.tokens,
        }
        trainable = optax.apply_updates(state.trainable, updates)
        largest = jnp.stack([jnp.abs(leaf).max() for leaf in jax.tree.leaves(trainable)]).max()
        sound = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"]) & (largest <= LARGEST_PARAMETER)
        metrics |= {"largest": largest, "diverged": ~sound}
        active = state.active & sound
        stepped = TrainState(state.step + 1, active, trainable, opt_state)
        stays = dataclasses.replace(state, active=active)
        return jax.tree.map(lambda new, old: jnp.where(active, new, old), stepped, stays), metrics

    return step


def vmap_members(step: Callable, *, group: int | None = None, mesh: Mesh | None = None, fsdp: bool = False) -> Callable:
    """Return the step of an ensemble: the whole update, optimizer included, vmapped over a leading axis E.

    State, batch and key have this axis. All members share one copy of the base's parameters.

    Args:
      step: from `make_train_step`.
      group: number of members that are processed at once. None means all.
      mesh: its axis `ensemble` shards the members, without communication between them. The compiler shards each
        member's step over the other axes, as it does the batch and the base.
      fsdp: whether the base is sharded over `data` too.
    """

    def members(state: TrainState, params: Tree, batch: dict[str, Array], key: Key[Array, "E"]):
        if fsdp:
            params = collect_tables(params)  # once for all members

        def one(member: Any) -> Any:
            return step(member[0], params, *member[1:])

        if key.shape[0] == 1 or group == 1:  # a loop, since vmap over one member is slower
            return jax.lax.map(one, (state, batch, key))
        if group is None:
            return jax.vmap(one)((state, batch, key))
        return jax.lax.map(one, (state, batch, key), batch_size=min(group, key.shape[0]))

    if mesh is None:
        return members
    members_axis, shared = PartitionSpec("ensemble"), PartitionSpec()
    return jax.shard_map(
        members,
        mesh=mesh,
        in_specs=(members_axis, shared, members_axis, members_axis),
        out_specs=members_axis,
        # The compiler shards the other axes. With an axis of one device, it would duplicate the loop over parts.
        axis_names={name for name, size in mesh.shape.items() if name == "ensemble" or size == 1},
        check_vma=False,
    )


def _accumulated(
    gradient: Callable, trainable: Tree, params: Tree, batch: dict[str, Array], key: PRNGKeyArray, parts: int
) -> tuple[Tree, Sums]:
    """Return the sums of gradients and losses over equal parts of the batch, with one part in memory at a time."""
    # A part takes every k-th row, so that a batch that is sharded over devices stays sharded in each part.
    split = jax.tree.map(lambda x: x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1), batch)

    def add(total, part):
        return jax.tree.map(jnp.add, total, gradient(trainable, params, *part)), None

    keys = jax.random.split(key, parts)
    shapes = jax.eval_shape(gradient, trainable, params, jax.tree.map(lambda x: x[0], split), keys[0])
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return jax.lax.scan(add, zeros, (split, keys))[0]
