"""Checkpoints of a run: trainable parameters, optimizer state, data position and progress, but not the base."""

import contextlib
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from prompt_jax.distributed.processes import all_processes, is_first, wait_for_all
from prompt_jax.distributed.sharding import mesh_of, to_devices, to_host
from prompt_jax.errors import SaveError, UserError
from prompt_jax.storage.paths import BucketPath

# If TensorFlow is installed, orbax accesses buckets through it. This variable makes orbax use gcsfs instead, as
# `prompt_jax.storage.paths` does. orbax reads the variable when it first uses a path.
os.environ.setdefault("EPATH_USE_TF", "false")
import orbax.checkpoint as ocp


class ResumeError(UserError, RuntimeError):
    """No checkpoint can be used."""


class Restored(NamedTuple):
    """The content of a checkpoint."""

    state: Any  # the tree that was saved
    position: dict[str, Any]  # the position in the training batches
    progress: dict[str, Any]  # the progress of the run, such as the best scores so far


class Checkpoints:
    """The checkpoints of one run. Use as a context manager: leaving it waits for the last save.

    Saving is asynchronous, so a SaveError may be raised by the next call, or on leaving. The state is small, so only
    the first process writes, and the others do not wait if that fails. Every process reads the checkpoint itself.
    """

    def __init__(self, folder: Path, keep: int, identity: Mapping[str, str]):
        """Open the folder of checkpoints, and keep the latest `keep` checkpoints.

        `identity` has fingerprints of the base and of the training data, by name. Each checkpoint records them. Before
        a checkpoint is used, they are compared.
        """
        self.folder, self.identity = folder, dict(identity)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=ocp.checkpoint_managers.LatestN(keep),
            enable_async_checkpointing=True,
            create=False,
            cleanup_tmp_directories=is_first(),  # incomplete saves of a killed process
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                primary_host=jax.process_index(),
                active_processes={jax.process_index()},
                barrier_sync_key_prefix=f"process_{jax.process_index()}",
            ),
        )
        if is_first():
            folder.mkdir(parents=True, exist_ok=True)
        wait_for_all("the folder of checkpoints exists")
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, failed: Any, *_: Any) -> None:
        # An error of the last save must not hide an earlier one.
        hidden = contextlib.nullcontext() if failed is None else contextlib.suppress(SaveError)
        with hidden, self._errors():
            self._manager.close()

    def save(self, step: int, state: Any, position: dict[str, Any], progress: dict[str, Any]) -> None:
        """Start to write a checkpoint in the background. Incomplete checkpoints are never read."""
        state = jax.tree.map(np.array, to_host(state))  # a copy, because the next step donates the state's memory
        if not is_first():
            return
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            position=ocp.args.JsonSave(position),
            progress=ocp.args.JsonSave(progress),
            identity=ocp.args.JsonSave(self.identity),
        )
        with self._errors():
            self._manager.save(step, args=items, force=True)

    @property
    def latest(self) -> int | None:
        """The step of the last complete checkpoint; None if there is none."""
        return self._manager.latest_step()

    def wait(self) -> None:
        """Wait until the last save is done."""
        with self._errors():
            self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn the errors that orbax and tensorstore raise for file systems and buckets into SaveError."""
        try:
            yield
        except Exception as error:
            left = "there is none" if self.latest is None else f"the last complete one is of step {self.latest}"
            reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
            raise SaveError(f"a checkpoint could not be written to {self.folder} ({reason}); {left}") from error

    def restore(self, like: Any) -> Restored | None:
        """Return the newest complete checkpoint; None if there are none. `like` gives shapes, dtypes and sharding.

        A checkpoint that cannot be read is reported and moved aside, and the one before it is used.

        Raises:
          ResumeError: no checkpoint can be read, or they belong to another base or other data.
        """
        template = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), like)
        damaged: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            items = ocp.args.Composite(
                state=ocp.args.StandardRestore(template),
                position=ocp.args.JsonRestore(),
                progress=ocp.args.JsonRestore(),
                identity=ocp.args.JsonRestore(),
            )
            restored, reason = None, "another process cannot read it"
            try:
                restored = self._manager.restore(step, args=items)
            except Exception as error:  # orbax and tensorstore raise many kinds on damaged files
                reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            if not all_processes(restored is not None):
                damaged[step] = reason
                continue
            assert restored is not None
            for bad, reason in damaged.items() if is_first() else ():
                earlier = sum(path.name.startswith(f"damaged-{bad}") for path in self.folder.iterdir())
                aside = self.folder / f"damaged-{bad}{f'.{earlier}' if earlier else ''}"
                (self.folder / str(bad)).rename(aside)
                warnings.warn(
                    f"checkpoint {bad} is damaged; step {step} is used. Moved to {aside}: {reason}", stacklevel=2
                )
            wait_for_all("damaged checkpoints are moved")
            self._manager.reload()
            for name, fingerprint in self.identity.items():
                if restored.identity.get(name) != fingerprint:
                    raise ResumeError(
                        f"the {name} is not what the run in {self.folder.parent} was begun with; "
                        "choose another --name, or --overwrite the run"
                    )
            state = jax.tree.map(_placed_like, restored.state, like)
            return Restored(state, restored.position, restored.progress)
        if damaged:
            reasons = "; ".join(f"{step}: {reason}" for step, reason in damaged.items())
            raise ResumeError(f"none of the checkpoints in {self.folder} can be read ({reasons})")
        return None


def is_unfinished(path: Path) -> bool:
    """Return whether a folder among a run's checkpoints is an incomplete save."""
    if isinstance(path, BucketPath):
        return not (path / "commit_success.txt").exists()
    return ".orbax-checkpoint-tmp" in path.name


def _placed_like(leaf: np.ndarray, like: Any) -> Any:
    """Return the leaf with the sharding of `like`, or on the host if `like` is a host array."""
    sharding: Any = like.sharding if mesh_of(like) else None
    return to_devices(leaf, sharding) if isinstance(like, jax.Array) else leaf
