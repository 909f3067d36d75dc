"""The training step: what is differentiated, by how much it moves, and nothing about the base.

One label tree says which variables are trainable. The others are merged in after differentiation has been told what
to differentiate, so no gradient, moment or copy of the base exists in the compiled step.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray

from prompt_jax.models import family
from prompt_jax.models.delta import tuned

Tree = Any

# A method that tunes some of the base has copies of these leaves among its own variables, in float32.
LABELS = {"base": "frozen", "prompt": "trainable"}

# The largest absolute value that a trained parameter may have. Beyond it float32 does not resolve differences of 1, so
# that what the frozen layers add to such a virtual token is lost to rounding: the loss is finite but means nothing. The
# prompts that Lester et al. published for T5 are far below, with standard deviations from 32 to 52.
LARGEST_PARAMETER = 2.0**24


def only(label: str, labels: Tree, variables: Tree) -> Tree:
    """The variables of one label; None in place of the others."""
    return jax.tree.map(lambda l, v: v if l == label else None, labels, variables)


def merge(labels: Tree, trainable: Tree, frozen: Tree) -> Tree:
    """All variables, from the two parts that `only` gives."""
    return jax.tree.map(lambda l, t, f: t if l == "trainable" else f, labels, trainable, frozen)


def frozen_base(optimizer: optax.GradientTransformation, labels: Tree = LABELS) -> optax.GradientTransformation:
    """The optimizer for the trainable variables, and none for the frozen ones."""
    return optax.partition({"trainable": optimizer, "frozen": optax.set_to_zero()}, labels)


@struct.dataclass
class TrainState:
    """What changes from step to step, and what a checkpoint holds."""

    step: Any  # int32 scalar; Any, since tree maps put other things in its place
    active: Any  # bool scalar: whether steps still change anything; false once one has diverged
    trainable: Tree  # the variables, with None for those that are frozen
    opt_state: optax.OptState

    @classmethod
    def create(cls, trainable: Tree, optimizer: optax.GradientTransformation) -> "TrainState":
        return cls(jnp.zeros((), jnp.int32), jnp.ones((), bool), trainable, optimizer.init(trainable))


class Sums(NamedTuple):
    """Sums over target tokens, from which means are made after all parts of a batch have been added up."""

    loss: Float[Array, ""]  # cross-entropy
    z_loss: Float[Array, ""]  # squared log-normalizer, not weighted
    correct: Float[Array, ""]
    tokens: Float[Array, ""]
    sentences: Float[Array, ""]  # rows with a target


def token_sums(logits: Float[Array, "B T V"], targets: Int[Array, "B T"], mask: Bool[Array, "B T"]) -> Sums:
    """Cross-entropy of the targets in nats, and what belongs to it, over the positions of the mask."""
    weights = mask.astype(jnp.float32)
    log_normalizer = jax.nn.logsumexp(logits, axis=-1)
    # A sum and not a gather, which would bring together what is divided over the words.
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
    config: Any,
    apply: Callable,
    optimizer: optax.GradientTransformation,
    *,
    labels: Tree = LABELS,
    loss: Literal["token", "sentence"] = "token",
    z_loss: float = 0.0,
    dropout: bool = False,
    accumulate: int = 1,
) -> Callable[[TrainState, Tree, dict[str, Array], PRNGKeyArray], tuple[TrainState, dict[str, Array]]]:
    """Builds `step(state, frozen, batch, key) -> (state, metrics)`, to be jitted.

    Args:
      config: the model's.
      apply: the method's, `apply(prompt variables, base, key) -> (params, Prompt)`.
      optimizer: from `frozen_base`.
      labels: which variables are trainable.
      loss: what the gradient is of: the mean over target tokens, or over sentences of the sum of their tokens.
      z_loss: weight of the mean squared log-normalizer.
      dropout: whether the base's dropout is on (at `config.dropout_rate`).
      accumulate: the batch is processed in so many parts; the gradient is that of the whole batch's mean.

    The step's `frozen` has None where variables are trainable; `key` is the run's, and the step's own is folded
    from it. Metrics are scalars: the mean `loss` (nats a target token) and token `accuracy`, the weighted `z_loss`,
    `grad_norm`, `tokens`, the absolute value of the `largest` updated parameter, and whether the step has `diverged`:
    the loss or the gradient is not finite, or a parameter is beyond LARGEST_PARAMETER. Then the state stays as it was,
    and is no longer active.
    """
    model = family(config)

    def loss_sums(trainable: Tree, frozen: Tree, batch: dict[str, Array], key: PRNGKeyArray):
        variables = merge(labels, trainable, frozen)
        method_key, model_key = jax.random.split(key)
        params, prompt = tuned(*apply(variables["prompt"], variables["base"], method_key))
        logits = model.forward(params, config, batch, prompt, key=model_key if dropout else None)
        sums = token_sums(logits, batch["targets"], batch["target_mask"])
        return sums.loss + z_loss * sums.z_loss, sums

    def step(state: TrainState, frozen: Tree, batch: dict[str, Array], key: PRNGKeyArray):
        key = jax.random.fold_in(key, state.step)
        gradient = jax.grad(loss_sums, has_aux=True)
        if accumulate == 1:
            grads, sums = gradient(state.trainable, frozen, batch, key)
        else:
            grads, sums = _accumulated(gradient, state.trainable, frozen, batch, key, accumulate)
        # At least one, so that a batch of padding alone moves nothing.
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


def over_members(step: Callable, *, group: int | None = None, mesh: Mesh | None = None) -> Callable:
    """The step for the members of an ensemble: all of it, the optimizer included, is mapped over a leading axis E.

    State, batch and key have the axis, the frozen variables do not; nothing couples the members.

    Args:
      step: from `make_train_step`.
      group: members that are processed at once; None is all.
      mesh: its axis `ensemble` divides the members, and nothing passes between those of different devices. The
        compiler divides each member's step over the other axes, as batch and frozen variables are.
    """

    def members(state: TrainState, frozen: Tree, batch: dict[str, Array], key: Key[Array, "E"]):
        def one(member: Any) -> Any:
            return step(member[0], frozen, *member[1:])

        if key.shape[0] == 1 or group == 1:  # a loop: what is mapped over one member is slower than the member alone
            return jax.lax.map(one, (state, batch, key))
        if group is None:
            return jax.vmap(one)((state, batch, key))
        return jax.lax.map(one, (state, batch, key), batch_size=min(group, key.shape[0]))

    if mesh is None:
        return members
    own, shared = PartitionSpec("ensemble"), PartitionSpec()
    return jax.shard_map(
        members,
        mesh=mesh,
        in_specs=(own, shared, own, own),
        out_specs=own,
        axis_names={"ensemble"},
        check_vma=False,
    )


def _accumulated(
    gradient: Callable, trainable: Tree, frozen: Tree, batch: dict[str, Array], key: PRNGKeyArray, parts: int
) -> tuple[Tree, Sums]:
    """Sums of gradients and losses over equal parts of the batch, one part in memory at a time."""
    # Every so many-th row is in one part, so that a batch that is divided over devices stays so in each part.
    split = jax.tree.map(lambda x: x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1), batch)

    def add(total, part):
        return jax.tree.map(jnp.add, total, gradient(trainable, frozen, *part)), None

    keys = jax.random.split(key, parts)
    shapes = jax.eval_shape(gradient, trainable, frozen, jax.tree.map(lambda x: x[0], split), keys[0])
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return jax.lax.scan(add, zeros, (split, keys))[0]
