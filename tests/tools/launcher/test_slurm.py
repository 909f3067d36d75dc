"""Tests of Slurm jobs: the arguments of sbatch, the job's script with a stand-in for srun, and a real Slurm.

The real Slurm has only this machine (`make test-slurm`, which sets SLURM_CONF with tests/slurm/one_node.sh).
"""

import json
import os
import re
import shlex
import signal
import subprocess
from pathlib import Path

import pytest

from launching import AWKWARD, Checkout, wait_for
from tools.launcher.restarts import Restarts

STAND_INS = Path(__file__).parent / "stand_ins"
DEMO = ("demo", "configs/tiny.py")
FAST = ("--backoff", "1", "--grace", "5")


@pytest.fixture
def stood_in(checkout, tmp_path) -> Checkout:
    """Return a checkout with stand-ins for Slurm's programs."""
    calls = tmp_path / "calls"
    calls.touch()
    checkout.env |= {"SLURM_CALLS": str(calls), "PATH": f"{STAND_INS}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    return checkout


def calls(stood_in: Checkout) -> list[str]:
    return Path(stood_in.env["SLURM_CALLS"]).read_text().splitlines()


def test_arguments_of_sbatch(stood_in):
    options = ("--nodes", "4", "--sbatch=--partition=gpu", "--sbatch=--comment=a b")
    stood_in.launch("slurm", *options, *DEMO, *AWKWARD, ANSWER_sbatch="41;cluster")
    folder = stood_in.state / "demo"
    assert calls(stood_in) == [
        "sbatch --parsable --job-name=demo --nodes=4 --ntasks-per-node=1 --requeue --open-mode=append "
        f"--output={folder}/logs/job.log --signal=TERM@60 --partition=gpu --comment=a b {folder}/job.sh"
    ]
    assert stood_in.job("demo")["ids"] == {"job": "41"}
    printed = stood_in.launch("slurm", "--dry-run", *options, *DEMO, *AWKWARD).stdout
    assert shlex.split(printed.splitlines()[-1])[-2:] == ["--comment=a b", str(folder / "job.sh")]
    assert (folder / "job.sh").read_text() in printed and (folder / "task.sh").read_text() in printed


def test_a_queued_job_is_not_submitted_again(stood_in):
    stood_in.launch("slurm", *DEMO, ANSWER_sbatch="41")
    refused = stood_in.launch("slurm", *DEMO, code=1, ANSWER_squeue="41 PENDING\n40 RUNNING")
    assert "demo is pending, as Slurm's job 41" in refused.stderr
    assert "  pending\n" in stood_in.launch("list", ANSWER_squeue="41 PENDING").stdout
    stood_in.launch("slurm", *DEMO, ANSWER_sbatch="42", ANSWER_squeue="40 RUNNING")
    assert stood_in.job("demo")["ids"] == {"job": "42"}


def test_stop_and_delete(stood_in):
    stood_in.launch("slurm", *DEMO, ANSWER_sbatch="41")
    stood_in.launch("stop", "demo")
    assert calls(stood_in)[-1] == "scancel 41"
    assert stood_in.launch("stop", "--dry-run", "demo").stdout == "scancel 41\n"
    stood_in.launch("delete", "demo")
    assert calls(stood_in)[-1] == "scancel 41" and not (stood_in.state / "demo").exists()


def test_an_empty_status_file(stood_in):
    stood_in.launch("slurm", *DEMO, ANSWER_sbatch="41")
    (stood_in.state / "demo" / "status").touch()
    assert "  ended\n" in stood_in.launch("list").stdout


# --------------------------------------------------------------------------------------------------------------
# The job's script


def submitted(stood_in: Checkout, *words: str, options: tuple[str, ...] = FAST) -> Path:
    stood_in.launch("slurm", *options, *DEMO, *words, ANSWER_sbatch="7")
    return stood_in.state / "demo" / "job.sh"


def test_the_script_has_the_launchers_restart_delays(stood_in):
    """Also after so many restarts that a shift would overflow."""
    script = submitted(stood_in, options=("--backoff", "5", "--retries", "200")).read_text()
    lines = re.search(r" +delay=.*\n.*\n", script)[0]
    command = ["bash", "-c", f"for restarts in $(seq 200); do\n{lines}echo $delay\ndone"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    restarts = Restarts(limit=200, first_delay=5)
    assert list(map(int, printed.split())) == [restarts.next_delay(1) for _ in range(200)]


def run_script(stood_in: Checkout, script: Path, **env: str) -> subprocess.CompletedProcess[str]:
    env = stood_in.env | {"NTASKS": "2"} | env
    return subprocess.run(["bash", script], env=env, capture_output=True, text=True, timeout=60)


def test_all_tasks_get_the_same_arguments_and_all_gpus_of_their_node(stood_in):
    script = submitted(stood_in, *AWKWARD)
    assert run_script(stood_in, script, SLURM_GPUS_ON_NODE="4").returncode == 0
    starts = stood_in.starts()
    assert sorted(starts) == ["0.0", "1.0"]
    named = ["--name", "demo", "--runs", str(stood_in.folder / "runs")]
    for start in starts.values():
        assert start["argv"] == ["train", "configs/tiny.py", "--distributed", *named, *AWKWARD]
        assert start["env"] == {"JAX_LOCAL_DEVICE_IDS": "0,1,2,3"}
        assert start["folder"] == str(script.parent / "code")
    assert "  done\n" in stood_in.launch("list").stdout


@pytest.mark.parametrize("status, end", [(76, 76), ("SIGABRT", 134), ("SIGKILL", 137)])
def test_tasks_restart_when_one_is_lost(stood_in, status, end):
    script = submitted(stood_in, options=("--backoff", "1", "--grace", "1"))
    done = run_script(stood_in, script, PLAY=json.dumps({"0": ["stubborn", 0], "1": [status, 0]}))
    assert done.returncode == 0 and f"worker 1 ended with {end}\nrestart 1 in 1 s\n" in done.stdout
    assert sorted(stood_in.starts()) == ["0.0", "0.1", "1.0", "1.1"]
    output = stood_in.launch("logs", "--worker", "1", "demo").stdout
    assert "process 1, start 0\n" in output and "process 1, start 1\n" in output


@pytest.mark.parametrize("status", [1, 2, 3])
def test_errors_are_not_retried(stood_in, status):
    done = run_script(stood_in, submitted(stood_in), PLAY=json.dumps({"1": [status]}))
    assert done.returncode == status and sorted(stood_in.starts()) == ["0.0", "1.0"]
    assert f"ended with {status}" in stood_in.launch("list").stdout


def test_restarts_are_limited(stood_in):
    script = submitted(stood_in, options=(*FAST, "--retries", "1"))
    done = run_script(stood_in, script, NTASKS="1", PLAY='{"0": ["SIGKILL"]}')
    assert done.returncode == 137 and sorted(stood_in.starts()) == ["0.0", "0.1"]


def test_a_preempted_job_is_requeued(stood_in):
    script = submitted(stood_in)
    play = '{"0": ["wait"], "1": ["wait"]}'
    with subprocess.Popen(["bash", script], env=stood_in.env | {"NTASKS": "2", "PLAY": play}) as job:
        wait_for(lambda: len(stood_in.starts()) == 2)
        for start in stood_in.starts().values():
            os.kill(start["pid"], signal.SIGTERM)
        wait_for(lambda: calls(stood_in)[-1] == "scontrol requeue 7")
        assert job.poll() is None  # it waits until Slurm kills it
        job.kill()


def test_a_canceled_job_is_not_requeued(stood_in):
    script = submitted(stood_in)
    with subprocess.Popen(["bash", script], env=stood_in.env | {"NTASKS": "1", "PLAY": '{"0": ["wait"]}'}) as job:
        wait_for(stood_in.starts)
        job.terminate()
        ((_, start),) = stood_in.starts().items()
        os.kill(start["pid"], signal.SIGTERM)
        assert job.wait(20) == 75
    assert not [call for call in calls(stood_in) if call.startswith("scontrol")]


# --------------------------------------------------------------------------------------------------------------
# A real Slurm


def slurm_states(number: str) -> str:
    output = subprocess.run(["scontrol", "show", "job", number], capture_output=True, text=True).stdout
    return next((word.split("=")[1] for word in output.split() if word.startswith("JobState=")), "")


@pytest.fixture
def on_slurm(checkout) -> Checkout:
    assert "one_node" in os.environ["SLURM_CONF"], "only on the Slurm of these tests: make test-slurm"
    yield checkout
    for path in checkout.state.glob("*/job.json"):
        subprocess.run(["scancel", json.loads(path.read_text())["ids"]["job"]])


@pytest.mark.slurm
def test_slurm_runs_a_job_with_its_arguments_and_environment(on_slurm):
    on_slurm.launch("slurm", *DEMO, *AWKWARD, HF_TOKEN="hf_0123456789")
    number = on_slurm.job("demo")["ids"]["job"]
    wait_for(lambda: slurm_states(number) == "COMPLETED")
    ((_, start),) = on_slurm.starts().items()
    assert start["argv"][7:] == AWKWARD and start["env"] == {"HF_TOKEN": "hf_0123456789"}
    assert "  done\n" in on_slurm.launch("list").stdout
    assert "process 0, start 0\n" in on_slurm.launch("logs", "demo").stdout
    kept = [path for path in on_slurm.state.rglob("*") if path.is_file()]
    assert kept and not [path for path in kept if b"hf_0123456789" in path.read_bytes()]
    assert "hf_0123" not in subprocess.run(["scontrol", "show", "job", number], capture_output=True, text=True).stdout


@pytest.mark.slurm
def test_slurm_restarts_a_lost_task(on_slurm):
    on_slurm.launch("slurm", *FAST, *DEMO, PLAY='{"0": ["SIGKILL", "SIGABRT", 3]}')
    number = on_slurm.job("demo")["ids"]["job"]
    wait_for(lambda: slurm_states(number) == "FAILED")
    assert sorted(on_slurm.starts()) == ["0.0", "0.1", "0.2"]
    assert "ended with 3 (diverged)" in on_slurm.launch("list").stdout


@pytest.mark.slurm
def test_slurm_requeues_a_preempted_job(on_slurm):
    on_slurm.launch("slurm", *FAST, *DEMO, PLAY='{"0": ["wait", 0]}')
    number = on_slurm.job("demo")["ids"]["job"]
    wait_for(on_slurm.starts)
    subprocess.run(["scancel", "--signal=TERM", number], check=True)  # signal only the tasks, as before the time limit
    wait_for(lambda: slurm_states(number) == "PENDING")
    assert "pending" in on_slurm.launch("list").stdout
    subprocess.run(["scontrol", "update", f"JobId={number}", "StartTime=now"], check=True)
    wait_for(lambda: slurm_states(number) == "COMPLETED", 60)
    assert sorted(on_slurm.starts()) == ["0.0", "0.1"]


@pytest.mark.slurm
def test_slurm_stops_a_job_after_it_saves(on_slurm):
    on_slurm.launch("slurm", *FAST, *DEMO, PLAY='{"0": ["wait"]}')
    number = on_slurm.job("demo")["ids"]["job"]
    wait_for(on_slurm.starts)
    with on_slurm.start("logs", "demo") as follower:
        assert follower.stdout.readline() == "process 0, start 0\n"
        follower.send_signal(signal.SIGINT)
        follower.wait(10)
    assert "runn" in on_slurm.launch("list").stdout
    on_slurm.launch("stop", "demo")
    wait_for(lambda: slurm_states(number) == "CANCELLED")
    wait_for(lambda: "preempted after saving" in on_slurm.launch("list").stdout)
    assert sorted(on_slurm.starts()) == ["0.0"]
