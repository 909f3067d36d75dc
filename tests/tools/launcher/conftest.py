"""A checkout to launch from, with a stand-in for `prompt_jax`."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from launching import Checkout

ROOT = Path(__file__).resolve().parents[3]
STAND_INS = Path(__file__).parent / "stand_ins"


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[Checkout]:
    folder = tmp_path / "a checkout"  # with a space
    shutil.copytree(ROOT / "tools" / "launcher", folder / "tools" / "launcher", ignore=shutil.ignore_patterns("__py*"))
    shutil.copy(ROOT / "tools" / "__init__.py", folder / "tools")
    (folder / "prompt_jax").mkdir()
    (folder / "prompt_jax" / "__init__.py").touch()
    shutil.copy(STAND_INS / "prompt_jax_cli.py", folder / "prompt_jax" / "cli.py")
    (folder / "configs").mkdir()
    (folder / "configs" / "tiny.py").write_text("experiment = None\n")
    (folder / "requirements.lock").touch()
    (folder / ".gitignore").write_text("__pycache__/\n/runs/\n")
    records = tmp_path / "records"
    records.mkdir()
    author = {
        "GIT_AUTHOR_NAME": "t",
        "GIT_AUTHOR_EMAIL": "t@t",
        "GIT_COMMITTER_NAME": "t",
        "GIT_COMMITTER_EMAIL": "t@t",
    }
    env = {**os.environ, **author, "RECORDS": str(records), "GIT_CONFIG_GLOBAL": os.devnull}
    checkout = Checkout(folder, tmp_path / "state", records, env)
    for words in (("init", "-q"), ("add", "-A"), ("commit", "-qm", "first")):
        subprocess.run(["git", *words], cwd=folder, env=env, check=True, capture_output=True)
    yield checkout
    checkout.end()
