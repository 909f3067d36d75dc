"""Runs on a bucket: the real clients of Google Cloud Storage against the fake server in `buckets`."""

import dataclasses
import gzip
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import numpy as np
import pytest
from etils.epath import gpath

import buckets
import jax_processes
from buckets import Storage
from experiments import with_name, with_options
from interruptions import Interrupted, before_step
from prompt_jax import cli
from prompt_jax import experiment as experiments
from prompt_jax.config.mesh import MeshConfig
from prompt_jax.data.files import file_task
from prompt_jax.errors import ConfigError, DataError, SaveError
from prompt_jax.experiment import Experiment
from prompt_jax.prompt_files.io import read_prompts
from prompt_jax.report.metrics_log import read_log
from prompt_jax.storage import paths
from prompt_jax.storage.locks import LockLost
from prompt_jax.storage.paths import BucketError, parse_path
from prompt_jax.task_format import TaskFormat
from prompt_jax.training import loop
from prompt_jax.training.run_folder import run_lock


@pytest.fixture(scope="module")
def storage() -> Iterator[Storage]:
    with buckets.serving() as storage, pytest.MonkeyPatch.context() as patch:
        for name, value in storage.settings.items():
            patch.setenv(name, value)
        # Other tests may have made the libraries read these.
        patch.setitem(fsspec.config.conf, "gcs", {"token": "anon"})
        gpath._is_tf_installed.cache_clear()
        paths._files.cache_clear()
        yield storage
    paths._files.cache_clear()


@pytest.fixture
def runs(storage: Storage, tmp_path: Path) -> Iterator[Path]:
    """Return a folder of runs on the bucket, unique to the test."""
    yield parse_path(f"gs://bucket/{tmp_path.name}/runs")
    storage.refusing = False


def on(runs: Path, experiment: Experiment) -> Experiment:
    return dataclasses.replace(experiment, runs=runs)


def tokens(experiment: Experiment, file: str = "last.npz") -> list[np.ndarray]:
    return [np.asarray(prompt.encoder_tokens.embeddings) for prompt, _ in read_prompts(experiment.folder / file)]


def log(experiment: Experiment) -> list[dict[str, float]]:
    return [{k: v for k, v in line.items() if k != "seconds"} for line in read_log(experiment.folder)]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def command(capsys, *argv: object) -> tuple[int, str, str]:
    status = cli.main([str(word) for word in argv])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


@pytest.mark.slow
def test_commands_give_the_same_results_on_a_bucket_and_in_a_folder(
    experiment, runs, sentiment_files, tiny_folder, tmp_path, capsys
):
    """Interrupted and resumed training, and all commands that read its files."""
    config = tmp_path / "config.json"
    config.write_text(experiments.to_json(experiment))
    there = on(runs, experiment)
    printed = {}
    assert command(capsys, "train", config)[0] == 0
    with before_step(4), pytest.raises(Interrupted):
        cli.main(["train", str(config), "--runs", str(runs)])
    assert log(there)[-1]["step"] == 3 and names(there.folder / "checkpoints") == {"2"}
    status, _, err = command(capsys, "train", config, "--runs", runs)
    assert status == 0 and "resuming at step 2 of 6" in err, err

    for file in ("best.npz", "last.npz"):
        np.testing.assert_array_equal(tokens(there, file), tokens(experiment, file))
    assert log(there) == log(experiment)
    assert names(there.folder) == names(experiment.folder)
    assert names(there.folder / "checkpoints") == names(experiment.folder / "checkpoints") == {"4", "6"}
    (events,) = (there.folder / "tensorboard" / "member_0").iterdir()  # rebuilt when the run was resumed
    assert events.read_bytes().count(b"train/loss") == 6
    written = json.loads((there.folder / "config.json").read_text())
    assert written["runs"] == str(runs)
    assert (there.folder / "predictions.jsonl").read_text() == (experiment.folder / "predictions.jsonl").read_text()
    assert str(runs) in (there.folder / "report.html").read_text()

    base = ("--model", tiny_folder)
    for run in (experiment, there):
        best, out = run.folder / "best.npz", run.folder / "out"
        words = [
            ("evaluate", best, *base, "--data", sentiment_files["test"], "--out", out),
            ("predict", best, "a good film", "a bad film", *base),
            ("export", best, out / "best.npy"),
            ("inspect", best, *base),
        ]
        done = [command(capsys, *each) for each in words]
        printed[run] = [(status, out.replace(str(run.folder), "RUN"), err) for status, out, err in done]
        assert [status for status, *_ in done] == [0] * len(words), done
        assert names(out) == {"table.md", "scores.json", "predictions.jsonl", "best.npy"}
    assert printed[there] == printed[experiment]


@pytest.mark.slow
# If one array cannot be read, orbax abandons the other reads, which then find its event loop closed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_incomplete_and_damaged_checkpoints(experiment, runs, whole, storage):
    """Incomplete checkpoints are ignored. A damaged one is moved aside, and the last complete one is used."""
    there = on(runs, experiment)
    loop.train(there)
    prefix = f"{'/'.join(there.folder.parts[2:])}/checkpoints"
    for name in [name for name in storage.objects if name.startswith(f"{prefix}/6/state/d/")]:
        del storage.objects[name]
    with pytest.warns(UserWarning, match=f"checkpoint 6 is damaged; step 4 is used. Moved to gs://bucket/{prefix}"):
        loop.train(there)
    np.testing.assert_array_equal(tokens(there), tokens(whole))
    assert "damaged-6" in names(there.folder / "checkpoints")

    del storage.objects[f"{prefix}/6/commit_success.txt"]
    loop.train(there)
    np.testing.assert_array_equal(tokens(there), tokens(whole))
    assert f"{prefix}/6/commit_success.txt" in storage.objects


@pytest.mark.slow
def test_a_folder_of_another_run_or_of_other_files(experiment, runs, storage):
    there = on(runs, experiment)
    loop.train(with_options(there, "train", steps=2))
    other = with_options(with_options(there, "prompt", length=5), "train", steps=2)
    with pytest.raises(ConfigError, match=rf"{there.folder} holds a run with another configuration \(changed: prompt"):
        loop.train(other)
    loop.train(other, overwrite=True)
    assert tokens(other)[0].shape[0] == 5 and names(other.folder / "checkpoints") == {"2"}

    thesis = with_name(there, "thesis")
    (thesis.folder / "thesis.tex").write_bytes(b"all of it")
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match=f"{thesis.folder} is not empty and holds no run"):
            loop.train(thesis, overwrite=overwrite)
    assert names(thesis.folder) == {"thesis.tex"}


def test_interrupted_overwriting(experiment, runs, storage):
    """It can be repeated, because config.json is deleted last."""
    there = with_options(on(runs, experiment), "train", steps=2)
    loop.train(there)
    deleted, real = [], paths.BucketPath.delete

    def delete(path):
        if path.name == "metrics.jsonl":
            raise Interrupted
        deleted.append(path.name)
        real(path)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(paths.BucketPath, "delete", delete)
        loop.train(there, overwrite=True)
    assert "checkpoints" in deleted and "config.json" in names(there.folder)
    loop.train(there, overwrite=True)
    assert log(there)[-1]["step"] == 2


def contents(storage: Storage, experiment: Experiment) -> dict[str, bytes]:
    prefix = "/".join(experiment.folder.parts[2:])
    return {name: each.data for name, each in storage.objects.items() if name.startswith(f"{prefix}/")}


def test_a_second_process_takes_over_the_run(experiment, runs, whole, storage):
    """The first one stops before it writes again. The files are those of a single run."""
    there, after = on(runs, experiment), {}
    told = f"{there.folder}, or the .lock in it, was deleted .* by another process that took over"

    def take_over(run):
        if after:  # in the first process
            return
        run.checkpoints.wait()
        after["step"] = run.progress.step
        left = f"{there.folder} was last used by process {os.getpid()} on .* it will stop"
        with pytest.warns(UserWarning, match=left), ThreadPoolExecutor() as pool:  # a thread has a shallow stack
            pool.submit(loop.train, there).result()
        after["files"] = contents(storage, there)

    with before_step(4, take_over), pytest.raises(LockLost, match=told):
        loop.train(there)
    assert after["step"] == 3 and contents(storage, there) == after["files"]
    for file in ("best.npz", "last.npz"):
        np.testing.assert_array_equal(tokens(there, file), tokens(whole, file))
    assert log(there) == log(whole)


def test_the_process_that_took_the_run_over_is_named(experiment, runs, storage):
    there = on(runs, experiment)
    with run_lock(there) as other:

        def take_over(run):
            with pytest.warns(UserWarning, match="it will stop"):
                other.acquire()

        with before_step(4, take_over), pytest.raises(LockLost) as lost:
            loop.train(there)
        told = f"{there.folder} was taken over by process {os.getpid()} on {socket.gethostname()}, started"
        assert str(lost.value).startswith(told)
        other.check()
    assert ".lock" not in names(there.folder) and "last.npz" in names(there.folder)


def test_two_processes_that_begin_together(experiment, runs, monkeypatch):
    """One writes the configuration. The other sees that it is of another run."""
    there = with_options(on(runs, experiment), "train", steps=2)
    other = with_options(there, "prompt", length=5)
    real = paths.BucketPath.create

    def create(path, data):  # just before, the other process did the same
        assert real(path, experiments.to_json(other).encode())
        return real(path, data)

    monkeypatch.setattr(paths.BucketPath, "create", create)
    with pytest.raises(ConfigError, match=r"another configuration \(changed: prompt.length\)"):
        loop.train(there)
    monkeypatch.undo()
    loop.train(other)


def test_a_folder_that_is_deleted_during_training(experiment, runs, whole, storage):
    there = on(runs, experiment)

    def delete(run):
        run.checkpoints.wait()
        there.folder.delete()

    with before_step(4, delete), pytest.raises(LockLost, match=f"{there.folder} was deleted while"):
        loop.train(there)
    assert contents(storage, there) == {}
    loop.train(there)
    np.testing.assert_array_equal(tokens(there), tokens(whole))
    assert log(there) == log(whole)


def test_an_incomplete_save_in_a_deleted_folder(experiment, runs, storage):
    there = with_options(on(runs, experiment), "train", steps=2)
    (there.folder / "checkpoints" / "4" / "state" / "d" / "0").write_bytes(b"half")
    loop.train(there)
    assert names(there.folder / "checkpoints") == {"2"}


@pytest.mark.parametrize("bucket", ["missing", "refused"])
def test_an_unusable_bucket(experiment, runs, storage, tmp_path, capsys, bucket):
    """The error is one line and comes before anything is loaded."""
    storage.refusing = bucket == "refused"
    config = tmp_path / "config.json"
    config.write_text(experiments.to_json(experiment))
    address = runs if bucket == "refused" else "gs://none/runs"
    told = {"missing": "there is no bucket none", "refused": "needs the roles Storage Object Admin and"}[bucket]
    status, out, err = command(capsys, "train", config, "--runs", address, "--model.name", "nobody/nothing")
    assert status == 1 and out == "" and told in err and f"{address}/run" in err and err.count("\n") == 1
    status, out, err = command(capsys, "inspect", f"{address}/run/best.npz")
    told = {"missing": "no such file: gs://none/runs/run/best.npz", "refused": told}[bucket]
    assert status == 1 and out == "" and told in err and err.count("\n") == 1


def test_lost_access(experiment, runs, whole, storage):
    """The run stops, and resumes from the last complete checkpoint when the account has access again."""
    there = on(runs, experiment)

    def refuse(run):
        run.checkpoints.wait()
        storage.refusing = True

    told = "nobody does not have storage access"
    with before_step(4, refuse), pytest.raises((BucketError, SaveError), match=told):
        loop.train(there)
    storage.refusing = False
    assert names(there.folder / "checkpoints") == {"2"}
    with pytest.warns(UserWarning, match="which did not finish"):  # it could not release its lock
        loop.train(there)
    np.testing.assert_array_equal(tokens(there), tokens(whole))
    assert log(there) == log(whole)


def test_data_files_are_read_from_a_bucket(runs, sentiment_files):
    task_format = TaskFormat("{text}", labels=("negative", "positive"))
    here = sentiment_files["train"]
    plain, packed = runs / "train.jsonl", runs / "train.jsonl.gz"
    plain.write_bytes(here.read_bytes())
    packed.write_bytes(gzip.compress(here.read_bytes()))
    read = [
        list(file_task("files", {"train": str(path)}, task_format).examples("train")) for path in (here, plain, packed)
    ]
    assert len(read[0]) == 40 and read[0] == read[1] == read[2]
    with pytest.raises(DataError, match=f"{runs}/none.jsonl: no such file"):
        file_task("files", {"train": runs / "none.jsonl"}, task_format)


def test_files_of_other_processes_are_seen_at_once(runs, storage):
    folder = runs / "run"
    prefix = "/".join(folder.parts[2:])
    for files in ({"a", "b"}, {"a", "b", "c"}, {"c"}):
        for name in list(storage.objects):
            if name.startswith(prefix):
                del storage.objects[name]
        for file in files:
            storage.put(f"{prefix}/{file}", b"text")
        assert names(folder) == files
        assert [(folder / file).exists() for file in ("a", "c")] == [file in files for file in ("a", "c")]


@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")  # gcsfs
def test_a_large_file_is_written_and_read_in_parts(runs):
    data = np.random.default_rng(0).bytes((50 << 20) + 1)
    path = runs / "large"
    assert path.write_bytes(data) == len(data) and path.read_bytes() == data and path.is_file()


@pytest.mark.slow
def test_two_processes_of_which_one_is_killed(experiment, runs, storage):
    """The other one exits. The same command resumes, and the result is bit-identical to an uninterrupted run."""
    options = {"steps": 200, "checkpoint_every": 50, "eval_every": 10_000, "log_every": 10}
    experiment = dataclasses.replace(with_options(experiment, "train", **options), mesh=MeshConfig(data=2))
    whole = with_name(experiment, "whole")
    jax_processes.run(whole, 2)
    there = on(runs, experiment)
    words = ("--runs", str(runs), "--heartbeat", "10")
    started = jax_processes.start(experiment, 2, 1, *words, **storage.settings)
    done = f"{'/'.join(there.folder.parts[2:])}/checkpoints/50/commit_success.txt"
    deadline = time.monotonic() + 200
    while done not in storage.objects:
        assert time.monotonic() < deadline, jax_processes.output(experiment).read_text()
        time.sleep(0.05)
    started[1].kill()
    statuses = jax_processes.finish(experiment, started, timeout=60)
    assert statuses[1] == -signal.SIGKILL and statuses[0] in (76, -signal.SIGABRT)
    said = jax_processes.run(experiment, 2, 1, *words, **storage.settings)
    assert "resuming at step" in said
    for file in ("best.npz", "last.npz"):
        np.testing.assert_array_equal(tokens(there, file), tokens(whole, file))
    assert log(there) == log(whole)
