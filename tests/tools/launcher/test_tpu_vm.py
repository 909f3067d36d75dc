"""Tests of Cloud TPUs, with a stand-in for gcloud that checks arguments, runs the workers' commands, and preempts."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from launching import AWKWARD, Checkout, wait_for
from tools.launcher import gcloud, jobs, tpu_vm, tpu_workers
from tools.launcher.commands import LaunchError

pytestmark = pytest.mark.slow  # two minutes in all, for processes that wait for each other

STAND_INS = Path(__file__).parent / "stand_ins"
TPU = ("--zone", "us-west4-a", "--accelerator", "v5litepod-8", "--runs", "gs://bucket/runs")
FAST = ("--poll", "0.02", "--backoff", "0.02")
DEMO = ("demo", "configs/tiny.py")


class Cloud:
    """The state of the gcloud stand-in, and a checkout that uses it."""

    def __init__(self, checkout: Checkout, folder: Path):
        self.checkout, self.folder = checkout, folder
        folder.mkdir()
        state = {"request": None, "node": None, "workers": 2, "preempt": [], "looks": 0, "calls": []}
        self.write(**state, creates=[["WAITING_FOR_RESOURCES", "PROVISIONING"]])
        stand_ins = {"GCLOUD": str(folder), "PYTHON": sys.executable}
        checkout.env |= stand_ins | {"PATH": f"{STAND_INS}:{os.environ['PATH']}"}

    @property
    def state(self) -> dict[str, Any]:
        return json.loads((self.folder / "state.json").read_text())

    def write(self, **state: Any) -> None:
        before = self.state if (self.folder / "state.json").exists() else {}
        (self.folder / "state.json").write_text(json.dumps(before | state))  # only while no stand-in runs

    def calls(self, *words: str) -> list[str]:
        """Return the calls that contain all of these words."""
        lines = [" ".join(call) for call in self.state["calls"]]
        return [line for line in lines if all(word in line for word in words)]

    def worker(self, number: int) -> Path:
        """Return the job's folder on a worker."""
        return self.folder / f"worker-{number}" / "prompt_jax_jobs" / "demo"

    def end(self) -> None:
        """Kill the processes of the workers."""
        for pid in self.folder.glob("worker-*/prompt_jax_jobs/*/pid"):
            subprocess.run(["kill", "-KILL", "--", f"-{pid.read_text().strip()}"], stderr=subprocess.DEVNULL)


@pytest.fixture
def cloud(checkout, tmp_path):
    """Google Cloud with capacity for a TPU of two workers."""
    cloud = Cloud(checkout, tmp_path / "gcloud")
    yield cloud
    cloud.end()


def launch(cloud: Cloud, *words: str, options: tuple[str, ...] = (), code: int = 0, **env: str):
    return cloud.checkout.launch("tpu-vm", *TPU, *FAST, *options, *DEMO, *words, code=code, **env)


# --------------------------------------------------------------------------------------------------------------
# From nothing to the end


def test_a_job_from_request_to_end(cloud):
    done = launch(cloud, *AWKWARD)
    starts = cloud.checkout.starts()
    assert sorted(starts) == ["0.0", "1.0"]
    named = ["--name", "demo", "--runs", "gs://bucket/runs"]
    for number in (0, 1):
        start = starts[f"{number}.0"]
        assert start["argv"] == ["train", "configs/tiny.py", "--distributed", *named, *AWKWARD]
        assert start["folder"] == str(cloud.worker(number) / "code")  # the commit's code
        assert not start["env"]  # JAX finds the other workers by itself
    assert not list(cloud.folder.rglob("pwned"))
    (create,) = cloud.calls("create")
    assert create == (
        "compute tpus queued-resources create demo --node-id=demo --accelerator-type=v5litepod-8 "
        "--runtime-version=v2-alpha-tpuv5-lite --quiet --zone=us-west4-a"
    )
    assert not cloud.calls("delete")
    last = done.stderr.splitlines()[-1]
    assert "STILL EXISTS AND IS BILLED: v5litepod-8 demo in us-west4-a (ACTIVE, READY)" in last
    assert "python -m tools.launcher delete demo" in last
    assert "WAITING_FOR_RESOURCES" in done.stderr and cloud.checkout.job("demo")["state"] == "done"
    assert (cloud.checkout.state / "demo" / "logs" / "worker-0.log").read_text() == "process 0, start 0\n"


def test_spot_project_and_autodelete(cloud):
    done = launch(cloud, options=("--spot", "--project", "my-project", "--autodelete"))
    (create,) = cloud.calls("create")
    assert "--spot" in create and all("--project=my-project" in call for call in cloud.calls("compute"))
    (delete,) = cloud.calls("delete")
    assert delete.startswith("compute tpus queued-resources delete demo --force --quiet")
    assert done.stderr.splitlines()[-1] == "launcher: no TPU of demo remains, and nothing is billed"


def test_a_tpu_without_the_queue(cloud):
    cloud.write(creates=["RESOURCE_EXHAUSTED: There is no more capacity in the zone", []])
    done = launch(cloud, options=("--direct", "--autodelete"))
    assert "no more capacity" in done.stderr and "restart 1" in done.stderr
    assert len(cloud.calls("tpu-vm create demo --accelerator-type=v5litepod-8 --version=v2-alpha-tpuv5-lite")) == 2
    assert len(cloud.calls("tpu-vm delete demo")) == 1 and not cloud.calls("queued-resources")


@pytest.mark.parametrize("direct", [False, True])
def test_reserved_capacity(cloud, direct):
    launch(cloud, options=("--reserved", *["--direct"] * direct, "--autodelete"))
    (create,) = cloud.calls("create")
    assert "--reserved" in create and "--spot" not in create


EXISTING = ("--zone", "us-west4-a", "--existing", "my-tpu", "--runs", "gs://bucket/runs")


@pytest.fixture
def existing(cloud):
    """Google Cloud with a TPU VM that no job created."""
    cloud.write(node="READY", name="my-tpu")
    for number in (0, 1):
        (cloud.folder / f"worker-{number}").mkdir()
    return cloud


def test_a_job_on_an_existing_tpu(existing):
    play = json.dumps({"0": ["SIGKILL", 0], "1": ["SIGKILL", 0]})
    done = existing.checkout.launch(
        "tpu-vm", *EXISTING, *FAST, "--env", "HF_TOKEN", *DEMO, PLAY=play, HF_TOKEN="secret"
    )
    assert sorted(existing.checkout.starts()) == ["0.0", "0.1", "1.0", "1.1"] and "restart 1" in done.stderr
    assert (
        "STILL EXISTS AND IS BILLED: TPU VM my-tpu in us-west4-a (READY); the launcher does not delete it"
        in done.stderr
    )
    assert (existing.worker(0) / "env").exists()

    done = existing.checkout.launch("delete", "demo")
    assert (
        not existing.calls("create") and not existing.calls("tpu-vm delete") and not existing.calls("queued-resources")
    )
    assert existing.state["node"] == "READY" and not existing.worker(0).exists() and not existing.worker(1).exists()
    assert not (existing.checkout.state / "demo").exists() and "the launcher does not delete it" in done.stderr


def test_delete_stops_the_processes_on_an_existing_tpu(existing):
    play = json.dumps({"0": ["wait"], "1": ["wait"]})
    with existing.checkout.start("tpu-vm", *EXISTING, *FAST, *DEMO, PLAY=play) as watcher:
        wait_for(lambda: len(existing.checkout.starts()) == 2 and existing.calls("worker.sh status"))
        existing.checkout.launch("delete", "demo")
        watcher.communicate(timeout=20)
    for start in existing.checkout.starts().values():
        with pytest.raises(ProcessLookupError):
            os.kill(start["pid"], 0)
    assert existing.state["node"] == "READY" and not existing.worker(0).exists()


def test_an_existing_tpu_that_is_gone_or_stopped_ends_the_job(existing):
    existing.write(node="STOPPED")
    refused = existing.checkout.launch("tpu-vm", *EXISTING, *FAST, *DEMO, code=1).stderr
    assert "the TPU VM my-tpu in us-west4-a cannot be used: STOPPED" in refused
    existing.write(node=None)
    refused = existing.checkout.launch("tpu-vm", *EXISTING, *FAST, *DEMO, code=1).stderr
    assert "the TPU VM my-tpu in us-west4-a cannot be used: no TPU" in refused
    assert not existing.calls("create") and not existing.calls("delete")
    existing.checkout.launch("delete", "demo")
    assert not (existing.checkout.state / "demo").exists() and not existing.calls("delete")


def test_a_preempted_existing_tpu_ends_the_job(existing):
    existing.write(preempt=[1])
    play = json.dumps({"0": ["wait"], "1": ["wait"]})
    refused = existing.checkout.launch("tpu-vm", *EXISTING, *FAST, *DEMO, code=1, PLAY=play).stderr
    assert "cannot be used: PREEMPTED" in refused and existing.checkout.job("demo")["state"] == "failed"
    assert not existing.calls("create") and not existing.calls("delete")


def test_a_dry_run_on_an_existing_tpu_neither_creates_nor_deletes(existing):
    printed = existing.checkout.launch("tpu-vm", "--dry-run", *EXISTING, *FAST, *DEMO).stdout
    assert "tpu-vm ssh my-tpu" in printed and " create " not in printed and " delete " not in printed


def test_the_tpu_of_a_job_is_not_forgotten_for_an_existing_one(requested):
    words = ("tpu-vm", *EXISTING, *FAST, *DEMO)
    refused = requested.checkout.launch(*words, code=1).stderr
    assert "existing None, not " in refused and "existing my-tpu" in refused
    assert "still requested, and billed once it exists: v5litepod-8 demo" in refused


def test_secrets_reach_the_workers_in_a_private_file(cloud):
    secret = "hf_01$(touch pwned)'\""
    done = launch(cloud, options=("--env", "HF_TOKEN"), HF_TOKEN=secret)
    for number in (0, 1):
        assert cloud.checkout.starts()[f"{number}.0"]["env"] == {"HF_TOKEN": secret}
        assert (cloud.worker(number) / "env").stat().st_mode & 0o777 == 0o600
        assert cloud.worker(number).stat().st_mode & 0o777 == 0o700
    texts = [done.stdout, done.stderr, *cloud.calls("")]
    kept = [path for path in cloud.checkout.state.rglob("*") if path.is_file()]
    assert len(kept) > 5 and not [path for path in kept if b"hf_01" in path.read_bytes()]
    assert not any("hf_01" in text for text in texts)


def test_secrets_are_deleted_if_they_cannot_be_sent(cloud):
    words = ("--env", "HF_TOKEN", "--retries", "0")
    gcloud = cloud.folder / "bin" / "gcloud"
    gcloud.parent.mkdir()
    scp = 'scp) cp "${@:(-5):1}" "$GCLOUD/taken"; exit 1 ;;'
    gcloud.write_text(f'#!/bin/bash\ncase "$4" in {scp} esac\nexec "{STAND_INS}/gcloud" "$@"\n')
    gcloud.chmod(0o755)
    path = f"{gcloud.parent}:{cloud.checkout.env['PATH']}"
    launch(cloud, options=words, code=76, HF_TOKEN="hf_0123456789", PATH=path)
    assert "hf_0123456789" in (cloud.folder / "taken").read_text()  # the file was sent with the secret
    assert not (cloud.checkout.state / "demo" / "env").exists()


def test_a_dry_run_prints_the_commands_of_a_launch(cloud):
    words = ("tpu-vm", "--dry-run", *TPU, *FAST, "--autodelete", *DEMO, *AWKWARD)
    printed = cloud.checkout.launch(*words).stdout
    assert not cloud.calls("") and not cloud.checkout.state.exists()
    launch(cloud, *AWKWARD, options=("--autodelete",))
    by_launcher = list(dict.fromkeys(cloud.calls("")))
    run_script = (cloud.checkout.state / "demo" / "run.sh").read_text()

    shutil.rmtree(cloud.checkout.state)
    cloud.write(calls=[], creates=[[]])
    subprocess.run(
        ["bash", "-e"], input=printed, text=True, check=True, env=cloud.checkout.env, cwd=cloud.checkout.folder
    )
    by_hand = cloud.calls("")
    # The launch additionally copies the logs.
    assert [call for call in by_launcher if "worker-0.log" not in call and call not in by_hand] == []
    assert set(by_hand) <= set(by_launcher)
    assert (cloud.checkout.state / "demo" / "run.sh").read_text() == run_script


# --------------------------------------------------------------------------------------------------------------
# Preemption, loss and failure


def test_a_preempted_tpu_is_requested_again_and_the_job_resumes(cloud):
    cloud.write(preempt=[2, 1])
    play = json.dumps({"0": ["wait", "wait", 0], "1": ["wait", "wait", 0]})
    done = launch(cloud, options=("--spot",), PLAY=play)
    assert sorted(cloud.checkout.starts()) == ["0.0", "0.1", "0.2", "1.0", "1.1", "1.2"]
    assert len(cloud.calls("create")) == 3 and len(cloud.calls("delete demo --force")) == 2
    assert len((cloud.folder / "installations").read_text().splitlines()) == 6  # new workers need a new installation
    assert "the TPU was preempted: SUSPENDED, PREEMPTED" in done.stderr


def test_preemption_during_setup(cloud):
    uv = cloud.folder / "bin" / "uv"
    uv.parent.mkdir()
    uv.write_text(
        f'#!/bin/bash\nif ! test -e "$GCLOUD/once"; then touch "$GCLOUD/once"; exit 1; fi\nexec "{STAND_INS}/uv" "$@"\n'
    )
    uv.chmod(0o755)
    done = launch(cloud, PATH=f"{uv.parent}:{cloud.checkout.env['PATH']}")
    assert "worker.sh setup" in done.stderr and "restart 1" in done.stderr
    assert sorted(cloud.checkout.starts()) == ["0.0", "1.0"] and len(cloud.calls("create")) == 1


def test_a_failed_request_is_repeated(cloud):
    cloud.write(creates=[["FAILED"], ["SUSPENDING"], []])
    launch(cloud)
    assert len(cloud.calls("create")) == 3 and len(cloud.calls("delete")) == 2


def test_a_refused_request_is_not_repeated(cloud):
    cloud.write(creates=["INVALID_ARGUMENT: no such accelerator type"])
    done = launch(cloud, code=1)
    assert "no such accelerator type" in done.stderr and len(cloud.calls("create")) == 1
    assert done.stderr.splitlines()[0] == "launcher: demo: no TPU"
    assert (
        "no TPU of demo remains, and nothing is billed" in done.stderr
        and cloud.checkout.job("demo")["state"] == "failed"
    )


@pytest.mark.parametrize("status, end", [(75, 75), (76, 76), ("SIGABRT", 134), ("SIGKILL", 137)])
def test_lost_processes_restart_on_the_same_tpu(cloud, status, end):
    # Worker 0 fails later, because worker 1 failed, so its status does not count.
    play = {"0": ["wait", 0], "1": [status, 0]}
    done = launch(cloud, PLAY=json.dumps(play | {"0": [76, 0]}))
    assert sorted(cloud.checkout.starts()) == ["0.0", "0.1", "1.0", "1.1"]
    assert "restart 1" in done.stderr and len(cloud.calls("create")) == 1
    assert any(f"ended with {each} (" in done.stderr for each in (76, end))


@pytest.mark.parametrize("status", [1, 2, 3])
def test_errors_are_not_retried_and_billing_is_printed(cloud, status):
    done = launch(cloud, code=status, PLAY=json.dumps({"0": [status], "1": [status]}))
    assert sorted(cloud.checkout.starts()) == ["0.0", "1.0"]
    assert f"ended with {status}" in done.stderr and "STILL EXISTS AND IS BILLED" in done.stderr.splitlines()[-1]
    assert (cloud.checkout.state / "demo" / "logs" / "worker-0.log").exists()


def test_restarts_are_limited(cloud):
    play = json.dumps({"0": ["SIGKILL"], "1": ["SIGKILL"]})
    done = launch(cloud, options=("--retries", "1"), code=137, PLAY=play)
    assert sorted(cloud.checkout.starts()) == ["0.0", "0.1", "1.0", "1.1"]
    assert "giving up after 1 restarts in a row" in done.stderr


def test_without_gcloud_nothing_starts(checkout):
    programs = checkout.folder.parent / "bin"
    programs.mkdir()
    for program in ("git", "mkdir", "rm", "tar"):
        (programs / program).symlink_to(str(shutil.which(program)))
    done = checkout.launch("tpu-vm", *TPU, *DEMO, code=1, PATH=str(programs))
    assert "launcher: gcloud is not installed" in done.stderr and not (checkout.state / "demo" / "code").exists()


def test_unknown_billing_is_printed_if_gcloud_fails(cloud):
    (cloud.folder / "state.json").write_text("broken")
    done = launch(cloud, code=1)
    assert "COULD NOT CHECK whether v5litepod-8 demo in us-west4-a still exists" in done.stderr


# --------------------------------------------------------------------------------------------------------------
# The other verbs, and interruptions


def running(cloud: Cloud):
    """Start a launcher that watches two processes."""
    play = json.dumps({"0": ["wait", 0], "1": ["wait", 0]})
    watcher = cloud.checkout.start("tpu-vm", *TPU, *FAST, *DEMO, PLAY=play)
    wait_for(lambda: len(cloud.checkout.starts()) == 2 and cloud.calls("worker.sh status"))
    return watcher


@pytest.fixture
def requested(cloud):
    """Google Cloud with a job's pending request, whose launcher was interrupted."""
    cloud.write(creates=[["WAITING_FOR_RESOURCES"] * 10_000])
    with cloud.checkout.start("tpu-vm", *TPU, *FAST, *DEMO) as watcher:
        wait_for(lambda: cloud.state["request"] == "WAITING_FOR_RESOURCES")
        watcher.send_signal(signal.SIGINT)
        watcher.communicate(timeout=20)
    return cloud


@pytest.mark.parametrize(
    "options, was, now",
    [
        (("--zone", "us-east1-c"), "zone us-west4-a", "zone us-east1-c"),
        (("--project", "my-project"), "project None", "project my-project"),
        (("--accelerator", "v5litepod-16"), "accelerator v5litepod-8", "accelerator v5litepod-16"),
        (("--direct", "--spot"), "spot False, direct False", "spot True, direct True"),
    ],
)
def test_other_tpu_options_are_refused_while_a_tpu_exists(requested, options, was, now):
    refused = launch(requested, options=options, code=1).stderr
    assert f"demo was launched with {was}, not {now}: " in refused
    assert "still requested, and billed once it exists: v5litepod-8 demo in us-west4-a" in refused
    assert "no TPU of demo remains" not in refused
    assert len(requested.calls("create")) == 1 and len(requested.checkout.job("demo")["launches"]) == 1
    requested.checkout.launch("delete", "demo")
    assert requested.state["request"] is None
    (delete,) = requested.calls("delete")
    assert "queued-resources" in delete and "--zone=us-west4-a" in delete


def test_other_tpu_options_are_refused_if_gcloud_fails(requested):
    (requested.folder / "state.json").write_text("broken")
    refused = launch(requested, options=("--zone", "us-east1-c"), code=1).stderr
    assert "COULD NOT CHECK whether v5litepod-8 demo in us-west4-a" in refused
    assert requested.checkout.job("demo")["options"]["zone"] == "us-west4-a"


def test_other_tpu_options_after_the_tpu_was_deleted(cloud):
    launch(cloud, options=("--autodelete",))
    launch(cloud, options=("--zone", "us-east1-c"))
    assert cloud.checkout.job("demo")["options"]["zone"] == "us-east1-c"
    assert len(cloud.calls("create", "--zone=us-east1-c")) == 1


def test_other_overrides_are_refused_while_workers_run(cloud):
    with running(cloud) as watcher:
        watcher.send_signal(signal.SIGINT)
        watcher.communicate(timeout=20)
    commit = cloud.checkout.git("rev-parse", "HEAD")[:12]
    refused = launch(cloud, "--train.steps", "9", code=1).stderr
    assert (
        f"demo still runs commit {commit}: train configs/tiny.py" in refused
        and "first run python -m tools.launcher stop demo" in refused
    )
    assert "STILL EXISTS AND IS BILLED" in refused
    assert len(cloud.checkout.job("demo")["launches"]) == 1 and len(cloud.checkout.starts()) == 2

    cloud.checkout.launch("stop", "demo")
    launch(cloud, "--train.steps", "9")
    assert cloud.checkout.starts()["0.1"]["argv"][-2:] == ["--train.steps", "9"]


def test_other_overrides_before_workers_start(requested):
    requested.write(coming=["ACTIVE"])
    launch(requested, "--train.steps", "9")
    assert requested.checkout.starts()["0.0"]["argv"][-2:] == ["--train.steps", "9"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_after_an_interruption_the_job_continues_and_is_watched_again(cloud, number):
    with running(cloud) as watcher:
        watcher.send_signal(number)
        said = watcher.communicate(timeout=20)[0]
        assert watcher.returncode == 128 + number
    assert "STILL EXISTS AND IS BILLED" in said.splitlines()[-1]
    pids = [start["pid"] for start in cloud.checkout.starts().values()]
    for pid in pids:
        os.kill(pid, 0)  # it is running
    assert "not watched, last running; STILL EXISTS" in cloud.checkout.launch("list").stdout

    with cloud.checkout.start("tpu-vm", *TPU, *FAST, *DEMO, PLAY='{"0": [0, 0], "1": [0, 0]}') as watcher:
        looks = len(cloud.calls("worker.sh status"))
        wait_for(lambda: len(cloud.calls("worker.sh status")) > looks)
        assert len(cloud.checkout.starts()) == 2 and len(cloud.calls("create")) == 1  # nothing was restarted
        for pid in pids:
            os.kill(pid, signal.SIGTERM)
        watcher.communicate(timeout=20)
        assert watcher.returncode == 0
    assert sorted(cloud.checkout.starts()) == ["0.0", "0.1", "1.0", "1.1"]


def test_stop_stops_processes_and_prints_billing(cloud):
    with running(cloud) as watcher:
        done = cloud.checkout.launch("stop", "demo")
        watcher.communicate(timeout=20)
    assert "STILL EXISTS AND IS BILLED" in done.stderr
    assert [(cloud.worker(number) / "ended").read_text().split()[0] for number in (0, 1)] == ["75", "75"]
    assert cloud.state["node"] == "READY" and len(cloud.checkout.starts()) == 2


def test_delete_stops_the_launcher_and_deletes_the_tpu(cloud):
    with running(cloud) as watcher:
        done = cloud.checkout.launch("delete", "demo")
        watcher.communicate(timeout=20)
    assert done.stderr.splitlines()[-1] == "launcher: no TPU of demo remains, and nothing is billed"
    assert cloud.state["node"] is None and cloud.state["request"] is None and len(cloud.calls("create")) == 1
    assert not (cloud.checkout.state / "demo").exists()


def test_delete_after_the_tpu_was_deleted(cloud):
    launch(cloud, options=("--autodelete",))
    cloud.checkout.launch("delete", "demo")
    assert len(cloud.calls("resources delete")) == 1 and not (cloud.checkout.state / "demo").exists()


def test_a_record_stays_if_the_tpu_could_not_be_deleted(cloud):
    launch(cloud)
    (cloud.folder / "state.json").write_text("broken")
    assert "COULD NOT CHECK" in cloud.checkout.launch("delete", "demo", code=1).stderr
    assert (cloud.checkout.state / "demo" / "job.json").exists()


def test_logs_follow_one_worker(cloud):
    launch(cloud)
    with cloud.checkout.start("logs", "--worker", "1", "demo") as follower:
        assert follower.stdout.readline() == "process 1, start 0\n"
        follower.send_signal(signal.SIGINT)
        follower.wait(10)


def test_logs_of_a_deleted_tpu_are_the_copied_ones(cloud):
    launch(cloud, options=("--autodelete",))
    assert cloud.checkout.launch("logs", "demo").stdout == "process 0, start 0\n"
    missing = cloud.checkout.launch("logs", "--worker", "1", "demo", code=1).stderr
    assert "demo has no log of worker 1; existing logs: worker-0.log" in missing


def test_unknown_billing_is_printed_if_the_query_is_interrupted(cloud, monkeypatch, capsys):
    launch(cloud)
    job = jobs.read_job(cloud.checkout.state, "demo")

    def interrupted(job):
        raise KeyboardInterrupt

    monkeypatch.setattr(gcloud, "tpu_state", interrupted)
    with pytest.raises(KeyboardInterrupt):
        gcloud.print_billing(job)
    message = capsys.readouterr().err
    assert "COULD NOT CHECK whether v5litepod-8 demo in us-west4-a still exists and is billed: interrupted" in message
    assert "gcloud compute tpus tpu-vm list" in message


def test_dry_runs_of_the_other_verbs(cloud):
    launch(cloud)
    before = cloud.state["calls"]
    output = {verb: cloud.checkout.launch(verb, "--dry-run", "demo").stdout for verb in ("logs", "stop", "delete")}
    assert "--worker=0 '--command=bash prompt_jax_jobs/demo/worker.sh log'" in output["logs"]
    assert "--worker=all '--command=bash prompt_jax_jobs/demo/worker.sh stop'" in output["stop"]
    assert "queued-resources delete demo --force" in output["delete"] and "\nrm -r -- " in output["delete"]
    assert "queued-resources list" in cloud.checkout.launch("list", "--dry-run").stdout
    assert cloud.state["calls"] == before


# --------------------------------------------------------------------------------------------------------------
# The commands themselves


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gcloud") is None, reason="gcloud is not installed")
@pytest.mark.parametrize("direct", [False, True])
def test_the_real_gcloud_accepts_the_arguments(direct, tmp_path):
    """Uses gcloud's linter, which runs no command."""
    options = {"zone": "us-west4-a", "project": "my-project", "accelerator": "v5litepod-16", "spot": True, "env": []}
    options |= {"reserved": True, "existing": None}
    options |= {"runtime_version": "v2-alpha-tpuv5-lite", "direct": direct}
    launched = [{"commit": "0" * 40, "command": ["train"]}]
    job = jobs.Job("demo", "tpu-vm", "gs://bucket/runs", options, {}, launches=launched, folder=tmp_path)
    steps = [gcloud.create_tpu(job), gcloud.delete_tpu(job), gcloud.list_nodes(job), gcloud.list_requests(job)]
    steps += tpu_workers.start_workers(job)
    output = [step.shell() for step in [*steps, tpu_workers.fetch_log(job, 1), tpu_vm.logs(job, 1)]]
    asked = [line for line in output if line.startswith("gcloud ")]
    assert len(asked) == 10
    commands = tmp_path / "commands.json"
    wrong = f"{asked[0]} --no-such-flag"
    commands.write_text(json.dumps([{"command_string": line} for line in [*asked, wrong]]))
    env = os.environ | {"CLOUDSDK_CONFIG": str(tmp_path), "CLOUDSDK_CORE_DISABLE_USAGE_REPORTING": "1"}
    lint = ["gcloud", "meta", "lint-gcloud-commands", f"--commands-file={commands}"]
    done = subprocess.run(lint, env=env, capture_output=True, text=True)
    if "Invalid choice" in done.stderr:
        pytest.skip("this gcloud has no check of commands")
    *ours, last = [each["error_message"] for each in json.loads(done.stdout)]
    assert dict(zip(asked, ours, strict=True)) == dict.fromkeys(asked)
    assert "--no-such-flag" in last


@pytest.mark.parametrize("listing", ["WARNING: no JSON", "[1]", '[{"state": "READY"}]'])
def test_the_error_shows_an_answer_that_is_not_a_list(listing):
    with pytest.raises(LaunchError, match="gcloud printed no list of resources") as message:
        gcloud.find_resource(listing, "demo")
    assert listing in str(message.value)
