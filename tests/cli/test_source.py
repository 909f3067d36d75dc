"""The examples that verbs read: a user's file with the prompts' task format, or with options that replace it."""

import dataclasses

import pytest

from printed_tables import table
from prompt_jax import save_prompt
from prompt_jax.prompt_files.io import read_prompt


def test_options_override_differences_between_members(prompt_file, sentiment_files, tiny_folder, tmp_path, run):
    prompt, metadata = read_prompt(prompt_file)
    others = dataclasses.replace(metadata.format, labels=("bad", "good"), template="review: {text}", input_length=256)
    save_prompt(tmp_path / "o.npz", prompt, dataclasses.replace(metadata, task="movies", format=others))
    argv = ("evaluate", prompt_file, tmp_path / "o.npz", "--model", tiny_folder, "--data", sentiment_files["test"])
    options = ("--template", "{text}", "--labels", "negative", "positive")
    with pytest.warns(UserWarning, match="o.npz was trained with at most 256 tokens of input"):
        status, out, err = run(*argv, *options)
    assert status == 0, err
    printed = table(out, "test.jsonl")
    assert printed["vote"] == printed["average"], "it is the same prompt twice"


def test_a_foreign_prompt_is_scored_on_a_users_file(prompt_file, sentiment_files, tiny_folder, tmp_path, run):
    """A .npy has no metadata: the command line supplies base and task."""
    assert run("export", prompt_file, tmp_path / "p.npy")[0] == 0
    argv = ("evaluate", tmp_path / "p.npy", "--model", tiny_folder, "--data", sentiment_files["test"])
    with pytest.warns(UserWarning, match="does not say which base"):
        assert "give one with --template" in run(*argv)[2]
    with pytest.warns(UserWarning, match="does not say which base"):
        status, out, err = run(*argv, "--template", "{text}", "--labels", "negative", "positive")
    assert status == 0 and "rank/accuracy" in out, err
