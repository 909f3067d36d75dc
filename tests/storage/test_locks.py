"""File locks, held by other processes or by none."""

import contextlib
import errno
import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from prompt_jax.storage.locks import FileLock, LockHeld, LockLost

ROOT = Path(__file__).parents[2]

HOLD = """
import sys
from pathlib import Path
from prompt_jax.storage.locks import FileLock
lock = FileLock(Path(sys.argv[1]))
lock.acquire()
print("held", flush=True)
sys.stdin.read()
lock.release()
"""

# Adds one to the number in a file, which loses some of them if two processes do it at the same time.
COUNT = """
import sys
from pathlib import Path
from prompt_jax.storage.locks import FileLock
lock, counter = FileLock(Path(sys.argv[1])), Path(sys.argv[2])
for _ in range(100):
    lock.acquire(wait=lambda holder: None)
    counter.write_text(str(int(counter.read_text()) + 1))
    lock.release()
"""


def start(script: str, *words: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", script, *map(str, words)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True)


@contextlib.contextmanager
def holding(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Return a process that holds the lock until it reads the end of its input."""
    with start(HOLD, path) as process:
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / ".lock"


def test_the_holder_is_named(path):
    with holding(path) as process:
        name = rf"{path.parent} is in use by process {process.pid} on {socket.gethostname()}, started 2\d{{3}}-.* UTC"
        with pytest.raises(LockHeld, match=name), FileLock(path) as lock:
            lock.acquire()
        with pytest.raises(LockHeld, match=name):  # the first attempt changed nothing
            FileLock(path).acquire()
        process.communicate()
    with FileLock(path) as lock:
        lock.acquire()
        lock.acquire()
        assert json.loads(path.read_text())["pid"] == os.getpid()
        lock.check()
    assert not path.exists()


def test_a_killed_process_releases_its_lock(path):
    with holding(path) as process:
        process.kill()
        process.wait()
        assert json.loads(path.read_text())["pid"] == process.pid
        with FileLock(path) as lock:
            lock.acquire()
            lock.check()


def test_a_child_that_inherits_the_lock_holds_it_when_its_parent_is_killed(path):
    script = HOLD.replace(
        "print(",
        "import subprocess\n"
        "child = subprocess.Popen(['cat'], stdin=subprocess.PIPE, pass_fds=lock.descriptors)\n"
        "print(child.pid, flush=True)\nprint(",
    )
    with start(script, path) as process:
        child = int(process.stdout.readline())
        process.stdout.readline()
        fds = f"/proc/{child}/fd"
        assert any(os.path.realpath(f"{fds}/{fd}") == str(path) for fd in os.listdir(fds))
        os.kill(child, 19)  # it cannot notice that its input ends
        process.kill()
        process.wait()
        with pytest.raises(LockHeld, match=f"process {process.pid} on"):
            FileLock(path).acquire()
        os.kill(child, 9)


def test_waiting_processes_take_turns(path, tmp_path):
    """Even if each deletes the file that the others wait for."""
    counter = tmp_path / "counter"
    counter.write_text("0")
    processes = [start(COUNT, path, counter) for _ in range(4)]
    for process in processes:
        process.communicate()
        assert process.returncode == 0
    assert counter.read_text() == "400" and not path.exists()


def test_a_deleted_or_replaced_lock_is_lost(path):
    with FileLock(path) as lock:
        lock.check()  # not acquired
        lock.acquire()
        shutil.rmtree(path.parent)
        with pytest.raises(LockLost, match=f"^{path.parent} was deleted while this process used it; start the same"):
            lock.check()
        with holding(path) as process:
            with pytest.raises(LockLost, match=f"{path.parent} was taken over by process {process.pid} on "):
                lock.check()
            lock.release()
            assert json.loads(path.read_text())["pid"] == process.pid
    with FileLock(path) as lock:
        lock.acquire()
        path.unlink()
        with pytest.raises(LockLost, match=f"^{path.parent}, or the .lock in it, was deleted while"):
            lock.check()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_locks_the_latest_process_takes_over(path, monkeypatch, code):
    def flock(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    first, second = FileLock(path), FileLock(path)
    with pytest.warns(
        UserWarning, match=rf"{path}: this file system has no locks \({os.strerror(code)}\); do not start"
    ):
        first.acquire()
    first.check()
    with pytest.warns(UserWarning) as told:
        second.acquire()
    assert f"{path.parent} was last used by process {os.getpid()} on" in str(told[-1].message)
    with pytest.raises(LockLost, match=f"was taken over by process {os.getpid()} on .*; this process stops"):
        first.check()
    first.release()
    second.check()
    second.release()
    assert not path.exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=str(tmp_path / "file")):
        FileLock(tmp_path / "file" / ".lock").acquire()
