"""Stands in for `prompt_jax.cli`: records how it was called, and ends as the test says.

Environment: RECORDS is a folder for a JSON file per process and start. PLAY is JSON with, for each process, a list of
what it does at each start: an exit status, the name of a signal that kills it, or

    wait      wait for SIGTERM, then exit with 75
    exit N    wait for SIGTERM, then exit with N
    stubborn  ignore SIGTERM

The last entry repeats; a process without entries exits with 0. All wait until every process of the start is running.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path


def number(*names: str) -> int:
    """Return the first of these variables that is set."""
    return int(next(os.environ[name] for name in names if name in os.environ))


def main() -> int:
    process = number("JAX_PROCESS_ID", "SLURM_PROCID", "WORKER")
    count = number("JAX_NUM_PROCESSES", "SLURM_NTASKS", "WORKERS")
    records = Path(os.environ["RECORDS"])
    start = len(list(records.glob(f"{process}.*.json")))
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "JAX_LOCAL_DEVICE_IDS", "HF_TOKEN")
    noted = {
        "argv": sys.argv[1:],
        "env": {name: os.environ[name] for name in names if name in os.environ},
        "folder": os.getcwd(),
        "file": __file__,
        "pid": os.getpid(),
    }

    received = []
    signal.signal(signal.SIGTERM, lambda *_: received.append(True))
    whole = records / f"{process}.{start}.new"
    whole.write_text(json.dumps(noted))
    whole.rename(records / f"{process}.{start}.json")
    print(f"process {process}, start {start}", flush=True)

    plays = json.loads(os.environ.get("PLAY", "{}")).get(str(process), [0])
    play = plays[min(start, len(plays) - 1)]
    while not received and len(list(records.glob(f"*.{start}.json"))) < count:
        time.sleep(0.01)
    if isinstance(play, int):
        return play
    if play in ("wait", "stubborn") or play.startswith("exit "):
        while play == "stubborn" or not received:
            time.sleep(0.01)
        return int(play.removeprefix("exit ")) if play.startswith("exit ") else 75
    os.kill(os.getpid(), signal.Signals[play])
    return 1


if __name__ == "__main__":
    sys.exit(main())
