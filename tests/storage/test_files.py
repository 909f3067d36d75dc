"""Atomic writes and deletions."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from prompt_jax.storage import files
from prompt_jax.storage.files import atomic_write, remove_temporary_files, write_text

ROOT = Path(__file__).parents[2]


def test_data_are_on_the_disk_before_the_file_has_its_name(tmp_path, monkeypatch):
    done, real_sync, real_replace = [], os.fsync, os.replace

    def fsync(descriptor):
        real_sync(descriptor)
        done.append(("synced", os.fstat(descriptor).st_ino, os.fstat(descriptor).st_size))

    def replace(source, target):
        done.append(("replaced", os.stat(source).st_ino, os.stat(source).st_size))
        real_replace(source, target)

    monkeypatch.setattr(files.os, "fsync", fsync)
    monkeypatch.setattr(files.os, "replace", replace)
    write_text(tmp_path / "new" / "config.json", "{}\n")
    number = (tmp_path / "new" / "config.json").stat().st_ino
    assert done == [("synced", number, 3), ("replaced", number, 3)]


def test_a_file_that_cannot_be_written_is_named_and_the_old_one_stays(tmp_path):
    path = tmp_path / "last.npz"
    write_text(path, "old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        with pytest.raises(OSError, match=str(path)) as told:
            atomic_write(path, lambda file: file.write(bytes(5000)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert told.value.filename == str(path) and path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["last.npz"]


def test_remains_of_a_killed_process_are_removed(tmp_path):
    script = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom prompt_jax.storage.files import write_text\n"
        "os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_text(Path(sys.argv[1]), 'new')\n"
    )
    path = tmp_path / "config.json"
    write_text(path, "old")
    (tmp_path / ".mine.tmp").touch()
    killed = subprocess.run([sys.executable, "-c", script, str(path)], cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL and path.read_text() == "old"
    assert any(each.name.startswith(".config.json.") for each in tmp_path.iterdir())
    remove_temporary_files(tmp_path)
    assert sorted(each.name for each in tmp_path.iterdir()) == [".mine.tmp", "config.json"]
