"""A checkout to launch from, and the launcher as a separate process, for the tests of `tools.launcher`."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Arguments that arrive unchanged only if every shell on the way gets them quoted correctly.
AWKWARD = ["--data.template", '{a}: it\'s "$(touch pwned)" `x` \\ *;&|', "", "--x", "a\nb", "é ~", "--", "#", "!1"]


@dataclasses.dataclass
class Checkout:
    """A repository with the launcher, and the folders of its job records and of the processes' notes."""

    folder: Path
    state: Path
    records: Path
    env: dict[str, str]
    started: list[subprocess.Popen[str]] = dataclasses.field(default_factory=list)

    def command(self, *words: str) -> list[str]:
        verb, *rest = words
        return [sys.executable, "-m", "tools.launcher", verb, "--state", str(self.state), *rest]

    def launch(self, *words: str, code: int | None = 0, **env: str) -> subprocess.CompletedProcess[str]:
        """Run the launcher to its end and check its exit status; None allows any."""
        done = subprocess.run(
            self.command(*words),
            cwd=self.folder,
            env=self.env | env,
            capture_output=True,
            text=True,
            timeout=120,
            stdin=subprocess.DEVNULL,
        )
        assert code is None or done.returncode == code, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def start(self, *words: str, **env: str) -> subprocess.Popen[str]:
        """Start the launcher."""
        process = subprocess.Popen(
            self.command(*words),
            cwd=self.folder,
            env=self.env | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.started.append(process)
        return process

    def end(self) -> None:
        """Kill the processes that a failed test left behind."""
        for process in self.started:
            process.kill()
            process.wait()
            process.stdout.close()
        for start in self.starts().values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(start["pid"], signal.SIGKILL)

    def git(self, *words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=self.folder, check=True, capture_output=True, text=True
        ).stdout.strip()

    def starts(self) -> dict[str, dict[str, Any]]:
        """Return the notes of processes, by process and start: "1.0" is the first start of process 1."""
        return {path.stem: json.loads(path.read_text()) for path in sorted(self.records.glob("*.json"))}

    def job(self, name: str) -> dict[str, Any]:
        return json.loads((self.state / name / "job.json").read_text())


def wait_for(what: Callable[[], Any], seconds: float = 30) -> Any:
    """Call `what` until its result is true, and return the result."""
    until = time.monotonic() + seconds
    while not (actual := what()):
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.02)
    return actual
