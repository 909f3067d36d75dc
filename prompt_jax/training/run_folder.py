"""The folder of a run: its lock, its configuration, and the remains of earlier processes."""

import contextlib
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prompt_jax import experiment as experiments
from prompt_jax.config.optimizer import PAPER_RATE
from prompt_jax.errors import ConfigError
from prompt_jax.experiment import Experiment
from prompt_jax.storage.files import delete, remove_temporary_files, write_text
from prompt_jax.storage.locks import FileLock
from prompt_jax.storage.paths import BucketPath
from prompt_jax.training.checkpoints import is_unfinished

# Files that are written at the end of a run, from its last state.
_RESULTS = ("summary.json", "predictions.jsonl", "report.html")

# Options that may differ when a run is resumed. With a constant schedule it may also train for more steps.
_MAY_CHANGE = {
    "ensemble.group",
    "model.remat",
    "runs",
    "train.keep_checkpoints",
    "train.log_every",
    "train.trackers",
}


def run_lock(experiment: Experiment) -> FileLock:
    """Return the lock of the run's folder, not acquired yet."""
    return FileLock(experiment.folder / ".lock")


def check_folder(experiment: Experiment, overwrite: bool) -> None:
    """Check that the folder is empty or contains this run. With `overwrite`, it may contain another run.

    Raises:
      ConfigError: the folder contains something else.
    """
    folder, record = experiment.folder, experiment.folder / "config.json"
    if isinstance(folder, BucketPath):
        folder.check()
    if not record.exists():
        if folder.exists() and any(map(_is_foreign, folder.iterdir())):
            raise ConfigError(f"{folder} is not empty and holds no run; choose another --name")
        return
    if text := _recorded(record):
        try:
            experiments.from_json(text)
        except ConfigError as error:
            raise ConfigError(f"{record} is not the record of a run ({error}); choose another --name") from error
        if not overwrite:
            check_same(json.loads(text), experiment)


def lock_existing_run(experiment: Experiment, lock: FileLock) -> None:
    """Acquire the lock of an existing run, so that a run in use fails early.

    On a bucket `open_folder` acquires the lock instead, because that stops the other process.

    Raises:
      LockHeld: another process uses the folder.
    """
    if not isinstance(experiment.folder, BucketPath) and (experiment.folder / "config.json").exists():
        lock.acquire()


def check_same(recorded: Mapping[str, Any], experiment: Experiment) -> None:
    """Raise ConfigError if the run began with another configuration than the one that resumes it.

    Args:
      recorded: the content of the run's config.json.
      experiment: the configuration that resumes the run.
    """
    begun = experiments.from_json(json.dumps(recorded))
    before, now = (json.loads(experiments.to_json(each)) for each in (begun, experiment))
    more_steps = {"train.steps", "train.epochs"} if experiment.optimizer.schedule == "constant" else set()
    # Earlier versions, which had no `rate_unit`, wrote defaults that are now None.
    defaults: list[tuple[str, str, str | float]] = [("prompt", "init", "normal")]
    if experiment.prompt.default_rate == PAPER_RATE:
        defaults.append(("optimizer", "learning_rate", PAPER_RATE))
    for section, name, default in defaults:
        earlier = "rate_unit" not in recorded.get("optimizer", {})
        if earlier and now[section].get(name, default) is None and before[section].get(name) == default:
            before[section][name] = None
    changed = [
        name
        for name in experiments.differences(before, now)
        if name not in _MAY_CHANGE | more_steps and not name.startswith(("decoding.", "mesh."))  # no effect on training
    ]
    if changed:
        raise ConfigError(
            f"{experiment.folder} holds a run with another configuration (changed: {', '.join(changed)}); "
            "choose another --name, or --overwrite it"
        )


def open_folder(experiment: Experiment, overwrite: bool, lock: FileLock) -> None:
    """Lock the folder, and delete unfinished files of earlier processes; with `overwrite`, delete everything.

    Raises:
      LockHeld: another process uses the folder.
      ConfigError: as `check_folder`, since another run may have begun there in the meantime.
    """
    folder, record = experiment.folder, experiment.folder / "config.json"
    lock.acquire()
    check_folder(experiment, overwrite)
    if overwrite:
        _empty(folder, lock)
    remove_temporary_files(folder)
    if not record.exists():
        text = experiments.to_json(experiment)
        if not isinstance(record, BucketPath):
            write_text(record, text)
        elif not record.create(text.encode()):  # another process was faster
            check_folder(experiment, overwrite=False)


def record_configuration(experiment: Experiment) -> None:
    """Update config.json if the resumed run changed fields that it may change."""
    record, text = experiment.folder / "config.json", experiments.to_json(experiment)
    before = _recorded(record)
    if not before:
        warnings.warn(f"{record} was empty; it is written again, from this command", stacklevel=2)
    if before != text:
        write_text(record, text)


def remove_results(folder: Path) -> None:
    """Delete the results that the run wrote at its end, because it is about to train further."""
    for path in (folder / name for name in _RESULTS):
        if path.exists():
            delete(path)


def remove_remains(folder: Path, lock: FileLock) -> None:
    """Delete files that a late save wrote into a deleted folder, so that a run can begin there."""
    with contextlib.suppress(OSError):  # must not hide the first error
        if lock.acquired and not lock.path.exists() and not (folder / "config.json").exists():
            checkpoints = folder / "checkpoints"
            if checkpoints.exists():
                delete(checkpoints)
            if folder.exists() and not any(folder.iterdir()):
                folder.rmdir()


def _recorded(record: Path) -> str:
    """Return the text of a config.json. It is empty if a power failure left an empty file, or one of zero bytes."""
    try:
        text = record.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{record} is not the record of a run ({error}); choose another --name") from error
    return text if text.strip("\0 \r\n") else ""


def _is_foreign(path: Path) -> bool:
    """Return whether a file or folder cannot be the remains of an unfinished or deleted run."""
    if path.name == "checkpoints" and path.is_dir():
        return not all(map(is_unfinished, path.iterdir()))
    return not path.name.startswith(".")


def _empty(folder: Path, lock: FileLock) -> None:
    """Delete everything in a folder but the lock. config.json is last, so that the folder is a run until then."""
    paths = [path for path in folder.iterdir() if path != lock.path]
    for path in sorted(paths, key=lambda path: path.name == "config.json"):
        delete(path)
