"""`prompt-jax similarity`."""

import numpy as np
import pytest

from adapters import random_prefix
from pages import Page
from prompt_jax import Prompt, PromptMetadata, VirtualTokens, save_ensemble, save_prompt
from prompt_jax.prompt_files.io import ModelId


@pytest.fixture
def folder(tmp_path, tiny, said):
    """Return a folder with prompts of several kinds and other files."""
    folder = tmp_path / "prompts"
    random = np.random.default_rng(0)
    tokens = [random.normal(size=(count, 64)).astype(np.float32) for count in (3, 3, 5)]
    tokens[2][:3] = tokens[0] + 0.1  # the longest is most similar to the first
    save_prompt(folder / "a.npz", Prompt(VirtualTokens(tokens[0])), said)
    save_ensemble(folder / "run" / "best.npz", [Prompt(VirtualTokens(own)) for own in tokens[1:]], [said] * 2)
    save_prompt(folder / "run" / "last.npz", Prompt(VirtualTokens(tokens[1])), said)
    save_prompt(folder / "wide.npz", Prompt(VirtualTokens(np.ones((3, 65), np.float32))), said)
    save_prompt(folder / "x.npz", random_prefix(tiny, 3), said)
    save_prompt(
        folder / "z.npz", Prompt(VirtualTokens(tokens[0])), PromptMetadata(base=ModelId("other", None, "sha256:1"))
    )
    (folder / "notes.txt").write_text("no prompt")
    (folder / ".hidden").write_text("no prompt")
    (folder / "empty").mkdir()
    return folder, tokens


def cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def test_a_folder(folder, tmp_path, run):
    folder, tokens = folder
    status, out, err = run("similarity", folder, "--html", tmp_path / "page.html")
    assert status == 0, err
    skipped = err.splitlines()
    assert len(skipped) == 4 and all(line.startswith("prompt-jax: skipped ") for line in skipped)
    for name, why in (
        ("notes.txt", "neither a NumPy archive"),
        ("wide.npz", "of width 64 and"),
        ("x.npz", "has encoder_self and decoder_self and decoder_cross"),
        ("z.npz", "on other"),
    ):
        assert any(name in line and why in line for line in skipped), (name, err)
    names = [str(folder / "a.npz"), *(f"{folder / 'run' / 'best.npz'}, member {i}" for i in range(2))]
    for i, name in enumerate(names):
        others = sorted({0, 1, 2} - {i}, key=lambda j: -cosine(tokens[i].mean(axis=0), tokens[j].mean(axis=0)))
        j = others[0]
        mean = cosine(tokens[i].mean(axis=0), tokens[j].mean(axis=0))
        pairs = np.mean([cosine(x, y) for x in tokens[i] for y in tokens[j]])
        row = next(line for line in out.splitlines() if line.strip().startswith(f"{i} {name}"))
        assert row.split(f"{j} {names[j]}")[1].split() == [f"{mean:.3f}", f"{pairs:.3f}"]
    assert "last.npz" not in out and "cosines of mean tokens" in out

    page = Page((tmp_path / "page.html").read_text())
    assert "Similarity of 3 prompts" in page.words and "notes.txt" in page.words
    assert page.labeled("svg") == [
        "Cosine similarity of the prompts' mean tokens",
        "Mean cosine of the prompts' tokens",
    ]


def test_files_and_many_of_them(tmp_path, said, run):
    random = np.random.default_rng(0)
    paths = [tmp_path / f"{i}.npz" for i in range(13)]
    for path in paths:
        save_prompt(path, Prompt(VirtualTokens(random.normal(size=(2, 64)).astype(np.float32))), said)
    status, out, _ = run("similarity", *paths)
    assert status == 0 and "cosines of mean tokens" not in out and len(out.splitlines()) == 15


def test_a_link_that_leads_nowhere_is_skipped(folder, run):
    folder, _ = folder
    (folder / "gone.npz").symlink_to(folder / "nowhere.npz")
    status, out, err = run("similarity", folder)
    assert status == 0 and "gone.npz: a broken link" in err and "mean tokens" in out


def test_errors_name_the_problem(prompt_file, tmp_path, run):
    for argv, message in (
        ((), "name prompt files or a folder of them"),
        ((prompt_file,), "1 prompts to compare; name two or more"),
        ((prompt_file, tmp_path / "none.npz"), "no such file: "),
    ):
        status, _, err = run("similarity", *argv)
        assert status == 1 and message in err, (argv, err)
