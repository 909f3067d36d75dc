"""Paths of buckets without a bucket. Runs in a bucket are in training/test_bucket.py."""

import copy
import dataclasses
import io
import json
import pickle
import sys
from pathlib import Path

import pytest

from prompt_jax import cli
from prompt_jax import experiment as experiments
from prompt_jax.config.data import DataConfig
from prompt_jax.errors import MissingPackage, UserError
from prompt_jax.experiment import Experiment, check
from prompt_jax.storage import paths
from prompt_jax.storage.paths import BucketPath, parse_path


@pytest.mark.parametrize("text", ["gs://b/runs", "gs://b/runs/", Path("gs://b/runs"), BucketPath("gs://b/runs")])
def test_a_url_is_unchanged(text):
    path = parse_path(text)
    assert isinstance(path, BucketPath) and str(path) == "gs://b/runs" and path.absolute() == path.resolve() == path
    best = path / "demo" / "best.npz"
    assert str(best) == f"{best}" == "gs://b/runs/demo/best.npz"
    assert (best.name, best.suffix, str(best.parent.parent)) == ("best.npz", ".npz", "gs://b/runs")
    for same in (copy.deepcopy(best), pickle.loads(pickle.dumps(best)), parse_path(str(best))):
        assert isinstance(same, BucketPath) and str(same) == str(best) and same == best and hash(same) == hash(best)


@pytest.mark.parametrize("text", ["runs", "/runs/gs", "~/runs", "gs", "s3", "a=gs://b/c"])
def test_other_paths_are_of_this_machine(text):
    assert type(parse_path(text)) is type(Path()) and str(parse_path(text)) == str(Path(text))


@pytest.mark.parametrize("text", ["s3://b/runs", "gcs://b/runs", "https://b/runs", "gs://", "gs:///"])
def test_other_urls_are_errors(text):
    with pytest.raises(UserError, match="gs://BUCKET"):
        parse_path(text)


@pytest.mark.parametrize("runs", [parse_path("gs://b/runs"), Path("gs://b/runs")])
def test_a_configuration_keeps_the_address(runs, tmp_path):
    experiment = Experiment(name="demo", runs=runs, data=DataConfig(task="sentiment"))
    check(experiment)
    assert str(experiment.folder) == "gs://b/runs/demo"
    read = experiments.from_json(experiments.to_json(experiment))
    assert json.loads(experiments.to_json(read))["runs"] == "gs://b/runs" and read.folder == experiment.folder
    config = tmp_path / "demo.py"
    config.write_text(
        "from pathlib import Path\n"
        "from prompt_jax import Experiment\n"
        "experiment = Experiment(runs=Path('gs://b/runs'))\n"
    )
    assert str(experiments.load_experiment(config).runs) == "gs://b/runs"


def test_the_command_line_keeps_the_address(tmp_path):
    config = tmp_path / "config.json"
    config.write_text(experiments.to_json(Experiment()))
    parsed = cli.parse("train", [str(config), "--runs", "gs://b/runs"])
    assert isinstance(parsed.experiment.runs, BucketPath) and str(parsed.experiment.runs) == "gs://b/runs"
    config.write_text(experiments.to_json(dataclasses.replace(Experiment(), runs=parse_path("gs://b/runs"))))
    assert str(cli.parse("train", [str(config)]).experiment.runs) == "gs://b/runs"
    assert type(cli.parse("train", [str(config), "--runs", "runs"]).experiment.runs) is type(Path())
    parsed = cli.parse("evaluate", ["gs://b/best.npz", "p.npz", "--out", "gs://b/out"])
    assert [str(path) for path in (*parsed.files, parsed.out)] == ["gs://b/best.npz", "p.npz", "gs://b/out"]


def test_a_file_is_not_opened_for_writing():
    with pytest.raises(io.UnsupportedOperation, match="gs://b/a: a file in a bucket is written whole"):
        parse_path("gs://b/a").open("ab")


def test_a_package_that_is_missing_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    paths._files.cache_clear()
    with pytest.raises(MissingPackage, match=r"gs://... needs the package gcsfs: pip install '\.\[gcs\]'"):
        parse_path("gs://b/best.npz").exists()
    assert cli.main(["inspect", "gs://b/best.npz"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
