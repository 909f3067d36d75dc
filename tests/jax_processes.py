"""Runs of `prompt-jax train` in one or several processes, each with its own devices."""

import os
import socket
import subprocess
import sys
from pathlib import Path

from prompt_jax import experiment as experiments
from prompt_jax.experiment import Experiment

ROOT = Path(__file__).parents[1]


def start(
    experiment: Experiment, processes: int = 1, devices: int = 1, *options: str, patch: str = "", **environment: str
) -> list[subprocess.Popen]:
    """Start the processes of a run, each with that many virtual CPU devices. Their output goes to PREFIX.N.txt.

    `patch` is Python that each of them runs first.
    """
    experiment.runs.mkdir(parents=True, exist_ok=True)
    config = experiment.runs / f"{experiment.name}.json"
    config.write_text(experiments.to_json(experiment))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    started = []
    for number in range(processes):
        own = os.environ | {
            "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}",
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": str(ROOT),
            **environment,
        }
        program = f"{patch}\nimport sys\nfrom prompt_jax.cli import main\nsys.exit(main())"
        command = [sys.executable, "-c", program, "train", str(config), *options]
        if processes > 1:
            own |= {
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": str(processes),
                "JAX_PROCESS_ID": str(number),
            }
            command.append("--distributed")
        with output(experiment, number).open("w") as file:
            started.append(subprocess.Popen(command, env=own, stdout=file, stderr=subprocess.STDOUT))
    return started


def output(experiment: Experiment, number: int = 0) -> Path:
    return experiment.runs / f"{experiment.name}.{number}.txt"


def finish(experiment: Experiment, started: list[subprocess.Popen], timeout: float = 300) -> list[int]:
    """Wait for the processes and return their exit statuses. Kill those that take too long."""
    try:
        return [process.wait(timeout) for process in started]
    finally:
        for process in started:
            process.kill()


def run(experiment: Experiment, processes: int = 1, devices: int = 1, *options: str, **environment: str) -> str:
    """Complete a run and return the output of the first process."""
    statuses = finish(experiment, start(experiment, processes, devices, *options, **environment))
    said = [output(experiment, number).read_text() for number in range(processes)]
    assert statuses == [0] * processes, "\n".join(said)
    return said[0]
