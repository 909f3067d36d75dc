"""Where a run ran: its command, the code's commit, devices and memory."""

import shutil
import subprocess
import sys

import jax
import pytest

from prompt_jax.training import environment

git = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")


@pytest.fixture(autouse=True)
def uncached():
    environment._commit.cache_clear()


def commit_all(folder) -> str:
    options = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    for words in (["init", "-q"], ["add", "."], [*options, "commit", "-qm", "x"]):
        subprocess.run(["git", "-C", folder, *words], check=True)
    return subprocess.check_output(["git", "-C", folder, "rev-parse", "HEAD"], text=True).strip()


@git
def test_the_commit_of_a_checkout(tmp_path):
    (tmp_path / "__init__.py").write_text("")
    commit = commit_all(tmp_path)
    assert environment._commit(tmp_path) == (commit, False)
    (tmp_path / "new.txt").write_text("not tracked")
    environment._commit.cache_clear()
    assert environment._commit(tmp_path) == (commit, False)
    (tmp_path / "__init__.py").write_text("changed")
    environment._commit.cache_clear()
    assert environment._commit(tmp_path) == (commit, True)


@git
def test_a_package_in_the_checkout_of_another_project(tmp_path):
    (tmp_path / "script.py").write_text("")
    (tmp_path / ".gitignore").write_text("packages")
    commit_all(tmp_path)
    installed = tmp_path / "packages"
    installed.mkdir()
    (installed / "__init__.py").write_text("")
    assert environment._commit(installed) == (None, False)


def test_no_checkout_and_no_git(tmp_path, monkeypatch):
    assert environment._commit(tmp_path) == (None, False)
    environment._commit.cache_clear()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment._commit(tmp_path) == (None, False)


@pytest.mark.parametrize("program", ["/x/bin/prompt-jax", "/x/prompt_jax/cli/__main__.py"])
def test_the_command(monkeypatch, program):
    monkeypatch.setattr(sys, "argv", [program, "train", "a b.py", "--name", "x"])
    assert environment.environment().command == "prompt-jax train 'a b.py' --name x"


def test_devices_and_memory():
    found = environment.environment()
    assert (found.device, found.devices, found.processes) == ("cpu", len(jax.devices()), 1)
    assert 2**26 < found.host_memory < 2**40
    assert environment.versions()["python"] == sys.version.split()[0]
