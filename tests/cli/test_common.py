"""`--member`, folders of runs, and `--overwrite`, which several verbs share."""

import numpy as np
import pytest

from prompt_jax import PromptMetadata, load_prompt, save_prompt
from prompt_jax.cli import VERBS
from prompt_jax.prompt_files.io import ModelId, read_prompts


def tokens(path) -> list[np.ndarray]:
    return [np.asarray(prompt.encoder_tokens.embeddings) for prompt, _ in read_prompts(path)]


@pytest.fixture
def run_folder(ensemble_file, tmp_path):
    """Return the folder of a run, with the ensemble as its best prompt."""
    folder = tmp_path / "runs" / "lr0.3"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "best.npz").write_bytes(ensemble_file.read_bytes())
    return folder


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in ("train", "doctor", "new")])
def test_every_verb_that_reads_prompts_has_the_option(run, verb):
    assert "--member INT" in run(verb, "--help")[1]


def test_member(ensemble_file, tmp_path, tiny_folder, run):
    """Each verb reads the member as the file that `export --member` writes."""
    assert run("export", ensemble_file, tmp_path / "one.npz", "--member", 1)[0] == 0
    one = tmp_path / "one.npz"
    assert run("diff", ensemble_file, one, "--member", 1)[0] == 0
    assert run("diff", ensemble_file, one, "--member", 0)[0] == 1
    for verb in ("import", "average"):
        status, _, err = run(verb, ensemble_file, tmp_path / f"{verb}.npz", "--member", 1)
        assert (status == 0) == (verb == "import"), "an average needs two prompts"
    np.testing.assert_array_equal(tokens(tmp_path / "import.npz"), tokens(one))
    assert run("average", ensemble_file, one, tmp_path / "mean.npz", "--member", 0)[0] == 0
    expected = (tokens(ensemble_file)[0] + tokens(one)[0]) / 2
    np.testing.assert_allclose(tokens(tmp_path / "mean.npz")[0], expected, rtol=1e-6, atol=1e-6)
    status, out, _ = run("inspect", ensemble_file, "--member", 1)
    assert status == 0 and "member 1" in out and "member 0" not in out
    status, out, _ = run("similarity", ensemble_file, one, "--member", 1)
    assert status == 0 and out.count("1.000") >= 4
    words = ("--model", tiny_folder, "a good film")
    assert run("predict", ensemble_file, "--member", 1, "--json", *words)[1] == run("predict", one, "--json", *words)[1]


def test_no_such_member(prompt_file, ensemble_file, tmp_path, run):
    for words in (("inspect", ensemble_file), ("export", ensemble_file, tmp_path / "x.npz")):
        status, _, err = run(*words, "--member", 2)
        assert status == 1 and f"--member 2: {ensemble_file} has 2 prompts: 0 (seed 7), 1 (seed 8)" in err
    assert run("diff", ensemble_file, prompt_file, "--member", 2)[0] == 2
    status, _, err = run("predict", "--prompts", f"{ensemble_file}", "--member", "0", "x")
    assert status == 1 and "NAME/NUMBER" in err


def test_the_folder_of_a_run(run_folder, ensemble_file, prompt_file, sentiment_files, tiny_folder, tmp_path, run):
    best = run_folder / "best.npz"
    base = ("--model", tiny_folder)
    for words in (
        ("evaluate", *base, "--data", sentiment_files["test"], "--limit", 2),
        ("predict", *base, "--json", "a good film"),
        ("inspect",),
    ):
        shown = [run(words[0], path, *words[1:]) for path in (run_folder, best)]
        assert shown[0] == shown[1] and shown[0][0] == 0, shown
    assert run("export", run_folder, tmp_path / "x.npz")[0] == 0
    assert run("diff", run_folder, tmp_path / "x.npz")[0] == 0 and run("diff", run_folder, prompt_file)[0] != 0
    assert run("similarity", run_folder)[1] == run("similarity", best)[1]
    status, _, err = run("inspect", run_folder, best)
    assert status == 1 and "named twice" in err
    best.unlink()
    status, _, err = run("inspect", run_folder)
    assert status == 1 and f"{run_folder} has no best.npz yet" in err


def test_existing_files_are_not_overwritten(prompt_file, ensemble_file, tmp_path, run):
    dest = tmp_path / "dest.npz"
    for verb in ("export", "import"):
        dest.write_text("mine")
        status, _, err = run(verb, prompt_file, dest)
        assert status == 1 and f"{dest} exists already; add --overwrite to replace it" in err
        assert dest.read_text() == "mine"
        assert run(verb, prompt_file, dest, "--overwrite")[0] == 0
        np.testing.assert_array_equal(tokens(dest), tokens(prompt_file))


def test_a_single_prompt_has_no_member_number(tmp_path, run):
    path = tmp_path / "c.py"
    path.write_text(
        "from prompt_jax import DataConfig, Experiment\nexperiment = Experiment(data=DataConfig(task='x'))\n"
    )
    wrong = ("--train.steps", "0")
    assert run("train", path, *wrong)[1:] == ("", "prompt-jax: train.steps must be positive, not 0\n")
    assert "train.steps must be positive, not 0 (member 0)" in run("train", path, "--ensemble.size", "2", *wrong)[2]


@pytest.mark.parametrize(
    ("name", "revision"),
    [
        ("FOLDER", None),
        ("~/secret", None),
        ("../secret", None),
        ("a/b/c", None),
        ("x" * 300, None),
        ("google/t5", "/etc/passwd"),
        ("google/t5", "main"),
        ("x\x1b]0;pwn\x07/y", None),
    ],
)
def test_a_base_that_a_file_names_is_not_loaded(prompt_file, tiny_folder, monkeypatch, name, revision, run):
    """Its base may be a folder, or look like a name on the Hub. Without --model, it is not opened."""
    from prompt_jax.checkpoints import load

    monkeypatch.setattr(load, "load_model", lambda *args, **options: pytest.fail(f"loaded {args}"))
    base = ModelId(name.replace("FOLDER", str(tiny_folder)), revision, "sha256:1")
    save_prompt(prompt_file, load_prompt(prompt_file), PromptMetadata(base=base))
    status, _, err = run("predict", prompt_file, "x")
    assert status == 1 and "if you trust it, say --model" in err and "\x1b" not in err
