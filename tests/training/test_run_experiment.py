"""A whole run from Python does what `prompt-jax train` does."""

import json

import pytest

from experiments import with_name, with_options
from interruptions import before_step
from prompt_jax import cli
from prompt_jax import experiment as experiments
from prompt_jax.storage.locks import LockHeld
from prompt_jax.training.run_experiment import run_experiment


def test_text_and_files_are_those_of_the_command_line(experiment, tmp_path, capsys):
    short = with_options(experiment, "train", steps=1)
    config = tmp_path / "config.json"
    config.write_text(experiments.to_json(with_name(short, "shell")))
    assert cli.main(["train", str(config)]) == 0
    printed = capsys.readouterr().out
    text = run_experiment(short)
    shell = short.folder.parent / "shell"
    assert text == printed.rstrip("\n").replace(str(shell), str(short.folder))
    assert {path.name for path in short.folder.iterdir()} == {path.name for path in shell.iterdir()}
    ours, theirs = (json.loads((folder / "summary.json").read_text())["tests"] for folder in (short.folder, shell))
    assert ours == theirs
    assert run_experiment(short) == text, "a finished run is tested again"


def test_the_folder_is_locked_for_the_whole_run(experiment):
    short = with_options(experiment, "train", steps=1)

    def again(_):
        with pytest.raises(LockHeld, match="is in use by process"):
            run_experiment(short, overwrite=True)

    with before_step(1, again):
        run_experiment(short)
