"""Help texts, their order, and words in any order."""

import dataclasses
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from prompt_jax.cli import VERBS, parse
from prompt_jax.cli.options import field_texts
from prompt_jax.cli.predict import Predict
from prompt_jax.config.train import TrainConfig
from prompt_jax.methods import METHODS


def options(help_text: str) -> list[str]:
    """Return the options that a help text lists, without the values."""
    return re.findall(r"^[│ ] (--[\w.-]+)", help_text, re.MULTILINE)


@pytest.fixture(autouse=True)
def terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")


@pytest.mark.parametrize("verb", VERBS)
def test_lines_are_full(run, verb):
    """A line ends because the next word does not fit, or with a text. Line breaks of the source are not kept."""
    status, shown, _ = run(verb, "--help-all")
    assert status == 0 and max(map(len, shown.splitlines())) <= 100
    lines = [line.strip("│").rstrip() for line in shown[shown.index("usage:") :].splitlines()]
    lines = [line for line in lines if line.startswith(" ")]
    assert len(lines) > 3
    for first, second in itertools.pairwise(lines):
        indent = len(second) - len(second.lstrip())
        if indent > 4 and len(first) - len(first.lstrip()) == indent:
            word = second.split()[0]
            assert len(first) + 1 + len(word) > 75, (first, second)


def test_train_lists_the_most_used_options(run):
    _, shown, _ = run("train", "--help")
    _, everything, _ = run("train", "--help-all")
    assert {"--train.steps", "--data.train", "--prompt.length", "--model.name"} <= set(options(shown))
    assert "--help-all" in shown and len(options(shown)) < len(options(everything)) / 2
    hidden = {"--optimizer.beta1", "--mesh.model", "--decoding.top-k", "--distributed"}
    assert not hidden & set(options(shown)) and hidden <= set(options(everything))
    assert options(shown)[:2] == options(everything)[:2] == ["--name", "--overwrite"], "the most used come first"


@pytest.mark.parametrize("method", METHODS)
def test_help_of_a_method(run, method):
    status, shown, _ = run("train", "--help-all", "--prompt.method", method)
    names = {f"--prompt.{field.name.replace('_', '-')}" for field in dataclasses.fields(METHODS[method])}
    assert status == 0
    assert {name for name in options(shown) if name.startswith("--prompt.")} == {"--prompt.method", *names}
    assert f"(default: {method})" in " ".join(shown.replace("│", "").split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "--prompt.method adapter --prompt.length 5",
            "--prompt.length is an option of the method soft_prompt or",
        ),
        (
            "--prompt.mlp_width=5 --prompt.method=p_tuning",
            "--prompt.mlp_width is an option of the method soft_",
        ),
        (
            "--prompt.no-tie-layers",
            "--prompt.no-tie-layers is an option of the method prefix. The method soft",
        ),
        ("--prompt.method full --prompt.kind lin", "of the method adapter. The method full has no options"),
    ],
)
def test_an_option_of_another_method(run, words, message):
    """Options that no method has are left to the parser, which suggests a similar one."""
    status, _, err = run("train", "configs/demo.py", *words.split())
    assert status == 1 and message in err
    if "adapter --prompt.length" in words:
        assert "The method adapter has --prompt.kind, --prompt.width, --prompt.share" in err
    assert "Unrecognized" in run("train", "configs/demo.py", "--prompt.lenght", "5")[2]


def test_most_used_options_exist(run):
    for verb, (kind, _) in VERBS.items():
        _, shown, _ = run(verb, "--help")
        names = set(getattr(kind, "shown", "").split())
        known = {f"prompt.{field.name}" for method in METHODS.values() for field in dataclasses.fields(method)}
        listed = {name.removeprefix("--").replace("-", "_") for name in options(shown)} | known
        assert names <= listed, verb


def test_field_texts():
    texts = field_texts(TrainConfig)
    assert texts["loss"].startswith(
        "token: mean over target tokens. sentence: mean over examples of the sum over tokens,"
    )
    assert set(texts) == {field.name for field in dataclasses.fields(TrainConfig)}


@pytest.mark.parametrize(
    "words",
    ["p.npz --json a -5", "p.npz a --json -5", "--json p.npz a -5", "p.npz --json a -- -5", "--json -- p.npz a -5"],
)
def test_texts_and_options_in_any_order(words):
    assert parse("predict", words.split()) == Predict(words=("p.npz", "a", "-5"), json=True)


def test_paths_and_options_in_any_order():
    parsed = parse("evaluate", ["a.npz", "--limit", "3", "gs://b/c.npz", "--early-stop", "d.npz", "--", "--e.npz"])
    assert list(map(str, parsed.files)) == ["a.npz", "gs://b/c.npz", "d.npz", "--e.npz"]
    assert parsed.source.limit == 3 and parsed.early_stop


def test_an_unknown_option_between_texts(run):
    status, _, err = run("predict", "p.npz", "--jsn", "text")
    assert status == 2 and "--json" in err


@pytest.mark.parametrize("words", ["c.py --name a", "--name a c.py", "--tasks t.py c.py --name=a", "--overwrite c.py"])
def test_the_configuration_in_any_place(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("c.py").write_text("from prompt_jax import Experiment\nexperiment = Experiment(name='a')\n")
    parsed = parse("train", words.split())
    assert parsed.config == Path("c.py") and parsed.experiment.name == "a"
    assert parsed.tasks == (Path("t.py") if "--tasks" in words else None)


def test_version(run):
    status, out, _ = run("--version")
    assert status == 0 and re.fullmatch(r"prompt-jax \d+\.\d+\S*\n", out)


@pytest.mark.parametrize("words", (["--help"], ["train", "--help"]), ids=" ".join)
def test_a_reader_that_leaves_is_no_error(words):
    """As `head` does."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "prompt_jax.cli", *words]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr
