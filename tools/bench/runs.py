"""The cases `processes`, `checkpoint` and `resume`, described in __main__.py."""

import functools
import itertools
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tools.bench.cases import SAVED_MEMBERS, SHAPES, STEPS, Row

ROOT = Path(__file__).parents[2]
# The first steps compile the demo's length buckets and are not timed.
WARM_UP, TIMED = 16, 24
# Each run begins with a validation; this makes it short.
OPTIONS = ("--train.eval-examples", "32", "--train.log-every", "1", "--train.eval-every", "100000")


def processes() -> dict[str, Row]:
    """Time a training step on two cores: in one process with both, and in two processes with one each."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        raise SystemExit("bench: the case processes needs two cores")
    rows = {}
    for what, members, mesh in (("rows", "1", "--mesh.data"), ("members", "2", "--mesh.ensemble")):
        options = (*OPTIONS, "--ensemble.size", members, "--train.steps", "100000")
        for cores_by_process in ([cores], [cores[:1], cores[1:]]):
            split = (mesh, "2") if len(cores_by_process) == 2 else ()
            with tempfile.TemporaryDirectory() as folder:
                words = [*options, *split, "--runs", folder]
                times = _step_times(words, cores_by_process, WARM_UP + TIMED)
            seconds = [after - before for before, after in itertools.pairwise(times[WARM_UP:])]
            rows[f"{what}, {len(cores_by_process)}"] = {"seconds": statistics.median(seconds)}
    return rows


def checkpoint() -> dict[str, Row]:
    """Measure a checkpoint's size, and a step without and with a save after it, by number of members."""
    import jax

    from prompt_jax.training.checkpoints import Checkpoints
    from tools.bench import jax_side

    shape, base = SHAPES["checkpoint"], jax_side.random_base()
    training = jax_side.Training(base, shape)
    rows = {}
    for members in SAVED_MEMBERS:
        state = jax_side.stacked([training.state(seed) for seed in range(members)])
        one, _ = jax_side.ensemble_step(base, shape, members, group=1)
        steps: dict[bool, list[float]] = {False: [], True: []}
        held = []
        with tempfile.TemporaryDirectory() as folder:
            with Checkpoints(Path(folder), 2, {"base": "random", "training data": "random"}) as kept:
                for number in range(2 * (2 + STEPS)):
                    start = time.perf_counter()
                    jax.block_until_ready(one())
                    trained = time.perf_counter()
                    if saving := number % 2 == 1:
                        kept.save(number, state, {"epoch": 0, "row": 0}, {"step": number})
                        held.append(time.perf_counter() - trained)
                        # The next step runs while the checkpoint is still being written.
                        jax.block_until_ready(one())
                    steps[saving].append(time.perf_counter() - start)
            last = max(
                (path for path in Path(folder).iterdir() if path.name.isdigit()), key=lambda path: int(path.name)
            )
            size = sum(file.stat().st_size for file in last.rglob("*") if file.is_file())
        plain, two_and_save = (statistics.median(each[2:]) for each in steps.values())
        rows[str(members)] = {
            "arrays_kib": sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / 1024,
            "files_kib": size / 1024,
            "held": statistics.median(held[2:]),
            "seconds": plain,
            "lost": two_and_save - 2 * plain,
        }
    return rows


def resume() -> dict[str, Row]:
    """Time from a command to its first step, for a new and a resumed run, without and with JAX's compilation cache.

    The new run fills the cache.
    """
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        caches = {
            "without": {"JAX_ENABLE_COMPILATION_CACHE": "false"},
            "with": {"JAX_COMPILATION_CACHE_DIR": f"{folder}/cache"},
        }
        for name, variables in caches.items():
            options = [*OPTIONS, "--ensemble.size", "1", "--runs", folder, "--name", name]
            for which in ("new", "resumed"):
                start = time.perf_counter()
                # Enough steps for a checkpoint to be complete.
                times = _step_times([*options, "--train.checkpoint-every", "4"], [None], 12, variables)
                rows[f"{which}, {name}"] = {"seconds": times[0] - start}
    return rows


def _step_times(
    options: Sequence[str], cores: Sequence[Any], count: int, variables: dict[str, str] | None = None
) -> list[float]:
    """Run `prompt-jax train` until `count` steps are done, and return when each of them ended.

    There is one process per entry of `cores`, with these cores; None means all. They are killed at the end.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "prompt_jax.cli", "train", "configs/demo.py", *options]
    started: list[subprocess.Popen] = []
    try:
        for number, affinity in enumerate(cores):
            environment = os.environ | (variables or {})
            if len(cores) > 1:
                numbers = {"JAX_NUM_PROCESSES": str(len(cores)), "JAX_PROCESS_ID": str(number)}
                environment |= {"JAX_COORDINATOR_ADDRESS": address, **numbers}
            process = subprocess.Popen(
                [*command, *(["--distributed"] if len(cores) > 1 else [])],
                cwd=ROOT,
                env=environment,
                stderr=subprocess.DEVNULL if number else subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                preexec_fn=None if affinity is None else functools.partial(os.sched_setaffinity, 0, affinity),
            )
            started.append(process)
        output, times = [], []
        for line in started[0].stderr or ():
            output.append(line.decode())
            if re.match(r"step \d+/\d+  loss", output[-1]):
                times.append(time.perf_counter())
                if len(times) == count:
                    return times
        raise SystemExit(f"bench: the run ended after {len(times)} of {count} steps:\n" + "".join(output))
    finally:
        for process in started:
            process.kill()
            process.wait()
