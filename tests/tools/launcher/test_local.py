"""Tests of processes on this machine: same arguments, stopped and restarted together."""

import os
import signal
import subprocess

import pytest

from launching import AWKWARD, wait_for

FAST = ("--backoff", "0.05", "--grace", "1")


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize("count", [1, 4])
def test_all_processes_get_the_same_arguments_and_their_number(checkout, count):
    done = checkout.launch("local", "--processes", str(count), "demo", "configs/tiny.py", *AWKWARD)
    assert done.stdout == "process 0, start 0\n" and not done.stderr
    starts = checkout.starts()
    assert sorted(starts) == [f"{number}.0" for number in range(count)]
    code = checkout.state / "demo" / "code"
    named = ["--name", "demo", "--runs", str(checkout.folder / "runs")]
    for number in range(count):
        start = starts[f"{number}.0"]
        assert start["argv"] == ["train", "configs/tiny.py", "--distributed", *named, *AWKWARD]
        assert start["env"]["JAX_PROCESS_ID"] == str(number) and start["env"]["JAX_NUM_PROCESSES"] == str(count)
        assert start["folder"] == str(code) and start["file"] == str(code / "prompt_jax" / "cli.py")
    assert len({start["env"]["JAX_COORDINATOR_ADDRESS"] for start in starts.values()}) == 1
    assert not (checkout.folder / "pwned").exists() and not (code / "pwned").exists()


@pytest.mark.parametrize("status, end", [(75, 75), (76, 76), ("SIGABRT", 134), ("SIGKILL", 137)])
def test_all_restart_when_one_is_lost(checkout, status, end):
    play = f'{{"0": ["wait", 0], "1": ["{status}", 0]}}'.replace(f'"{end}"', str(end))
    done = checkout.launch("local", "--processes", "2", *FAST, "demo", "configs/tiny.py", PLAY=play)
    assert sorted(checkout.starts()) == ["0.0", "0.1", "1.0", "1.1"]
    assert f"process 1 ended with {end} (" in done.stderr and "restart 1 in" in done.stderr
    assert done.stdout == "process 0, start 0\nprocess 0, start 1\n"
    assert checkout.job("demo")["state"] == "done"


@pytest.mark.parametrize("status", [1, 2, 3])
def test_errors_are_not_retried(checkout, status):
    play = f'{{"0": ["stubborn"], "1": [{status}]}}'
    done = checkout.launch("local", "--processes", "2", *FAST, "demo", "configs/tiny.py", code=status, PLAY=play)
    starts = checkout.starts()
    assert sorted(starts) == ["0.0", "1.0"]
    assert gone(starts["0.0"]["pid"])  # killed, because it ignored SIGTERM
    assert f"process 1 ended with {status}" in done.stderr and checkout.job("demo")["state"] == "failed"
    assert f"failed: process 1 ended with {status}" in checkout.launch("list").stdout


def test_restarts_are_limited(checkout):
    done = checkout.launch(
        "local", "--retries", "2", *FAST, "demo", "configs/tiny.py", code=137, PLAY='{"0": ["SIGKILL"]}'
    )
    assert sorted(checkout.starts()) == ["0.0", "0.1", "0.2"]
    assert "failed after 2 restarts" in done.stderr


def test_stop_lets_processes_save_and_the_same_command_resumes(checkout):
    words = ("local", "--processes", "2", "--backoff", "0.05", "demo", "configs/tiny.py")
    play = {"PLAY": '{"0": ["wait", 0], "1": ["wait", 0]}'}
    with checkout.start(*words, **play) as launcher:
        wait_for(lambda: len(checkout.starts()) == 2)
        assert "running" in checkout.launch("list").stdout
        assert "is already running" in checkout.launch(*words, code=1).stderr
        checkout.launch("stop", "demo")
        assert launcher.wait(10) == 75
    assert all(gone(start["pid"]) for start in checkout.starts().values())
    assert "stopped: by SIGTERM" in checkout.launch("list").stdout
    checkout.launch(*words, **play)
    assert len(checkout.starts()) == 4 and checkout.job("demo")["state"] == "done"


def stopped(checkout, *words: str, play: str) -> tuple[int, str]:
    """Stop a launcher of two processes; return its exit status and output."""
    with checkout.start("local", "--processes", "2", *words, "demo", "configs/tiny.py", PLAY=play) as launcher:
        wait_for(lambda: len(checkout.starts()) == 2)
        checkout.launch("stop", "demo")
        output = launcher.communicate(timeout=10)[0]
    return launcher.returncode, output


def test_stop_names_a_process_that_had_to_be_killed(checkout):
    code, output = stopped(checkout, "--grace", "0.1", play='{"0": ["wait"], "1": ["stubborn"]}')
    assert code == 137 and "stopped, but not everything was saved: process 1 ended with 137 (SIGKILL)" in output
    assert "stopped: by SIGTERM, but not everything was saved" in checkout.launch("list").stdout


@pytest.mark.parametrize("status, state", [(0, "done"), (1, "failed")])
def test_processes_that_end_by_themselves_were_not_stopped(checkout, status, state):
    code, output = stopped(checkout, play=f'{{"0": ["exit {status}"], "1": ["exit {status}"]}}')
    assert code == status and "stopped" not in output
    assert checkout.job("demo")["state"] == state


def test_stop_during_a_restart_delay(checkout):
    with checkout.start("local", "--backoff", "60", "demo", "configs/tiny.py", PLAY='{"0": ["SIGKILL"]}') as launcher:
        wait_for(lambda: "restart 1" in launcher.stdout.readline())
        checkout.launch("stop", "demo")
        assert launcher.wait(10) == 75
    assert len(checkout.starts()) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_interrupting_the_launcher_stops_the_processes(checkout, number):
    with checkout.start("local", "--processes", "2", "demo", "configs/tiny.py", PLAY='{"0": ["wait"]}') as launcher:
        wait_for(lambda: len(checkout.starts()) == 2)
        launcher.send_signal(number)
        assert launcher.wait(10) == 75
    assert all(gone(start["pid"]) for start in checkout.starts().values())


def test_errors_name_the_processes_of_a_killed_launcher(checkout):
    words = ("local", "demo", "configs/tiny.py")
    with checkout.start(*words, PLAY='{"0": ["wait", 0]}') as launcher:
        wait_for(checkout.starts)
        launcher.kill()
    ((_, start),) = checkout.starts().items()
    assert "running" in checkout.launch("list").stdout
    assert "is already running" in checkout.launch(*words, code=1).stderr
    for verb in ("stop", "delete"):
        assert (
            f"was killed, and its processes [{start['pid']}] still run" in checkout.launch(verb, "demo", code=1).stderr
        )
    os.kill(start["pid"], signal.SIGTERM)
    wait_for(lambda: "ended with its launcher" in checkout.launch("list").stdout)


def test_logs_of_one_worker_over_all_attempts(checkout):
    play = '{"1": ["SIGKILL", 0]}'
    checkout.launch("local", "--processes", "2", *FAST, "demo", "configs/tiny.py", PLAY=play)
    printed = checkout.launch("logs", "--worker", "1", "demo").stdout
    assert printed == "process 1, start 0\nprocess 1, start 1\n"
    missing = checkout.launch("logs", "--worker", "2", "demo", code=1).stderr
    assert "no log of worker 2; existing logs: worker-0.log, worker-1.log" in missing


def test_logs_follow_a_running_job(checkout):
    words = ("local", "--processes", "2", "--grace", "5", "--backoff", "0.05", "demo", "configs/tiny.py")
    with checkout.start(*words, PLAY='{"1": ["wait", "wait"]}') as launcher:
        wait_for(lambda: len(checkout.starts()) == 2)
        with checkout.start("logs", "--worker", "1", "demo") as follower:
            assert follower.stdout.readline() == "process 1, start 0\n"
            os.kill(checkout.starts()["1.0"]["pid"], signal.SIGKILL)
            assert follower.stdout.readline() == "process 1, start 1\n"
            follower.send_signal(signal.SIGINT)
            assert follower.wait(10) == 130
        checkout.launch("stop", "demo")
        launcher.wait(10)


def test_delete_stops_the_job_and_keeps_the_run(checkout):
    run = checkout.folder / "runs" / "demo"
    run.mkdir(parents=True)
    with checkout.start("local", "demo", "configs/tiny.py", PLAY='{"0": ["wait"]}') as launcher:
        wait_for(checkout.starts)
        checkout.launch("delete", "demo")
        launcher.wait(10)
    assert run.exists() and not (checkout.state / "demo").exists()
    assert checkout.launch("list").stdout == ""
    assert subprocess.run(["git", "status", "--porcelain"], cwd=checkout.folder, capture_output=True).stdout == b""
