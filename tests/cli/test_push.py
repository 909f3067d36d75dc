"""`prompt-jax push` before it talks to the Hub. `tests/prompt_files/test_hub.py` pushes to a server."""

import pytest

from prompt_jax.prompt_files import push


@pytest.fixture(autouse=True)
def no_hub(monkeypatch):
    monkeypatch.setattr(push, "push_members", lambda *_, **__: pytest.fail("something was pushed"))


@pytest.mark.parametrize(
    ("dest", "message"),
    [
        ("me/p", "'me/p' is not a name on the Hub"),
        ("hf://me/p/best.npz", "hf://me/p/best.npz: a prompt is pushed to a folder, as prompt.npz"),
        ("hf://me/p@" + "0" * 40, "a commit cannot change; push to a branch"),
    ],
)
def test_the_destination_is_checked_before_anything_is_read(tmp_path, run, dest, message):
    status, out, err = run("push", tmp_path / "none.npz", dest)
    assert status == 1 and not out and message in err and "none.npz" not in err


def test_errors_name_the_problem(prompt_file, ensemble_file, tmp_path, run):
    for words, message in (
        ((tmp_path / "none.npz", "hf://me/p"), "no such file"),
        ((ensemble_file, "hf://me/p", "--member", 2), f"--member 2: {ensemble_file} has 2 prompts"),
        ((prompt_file, "hf://me/p", "--model", tmp_path), f"{tmp_path} has no config.json"),
    ):
        status, out, err = run("push", *words)
        assert status == 1 and not out and message in err, err
