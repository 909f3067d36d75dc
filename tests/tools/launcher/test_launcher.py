"""Tests of the launcher for every backend: checks, records, commits, shell, restart delays."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launching import AWKWARD
from tools.launcher import checks, jobs
from tools.launcher.commands import Command, LaunchError, SecretFile, TextFile
from tools.launcher.restarts import Restarts, exit_status

TPU = ("--zone", "us-west4-a", "--accelerator", "v5litepod-16", "--runs", "gs://bucket/runs")
GKE = ("--context", "cluster", "--topology", "v5e:4x4", "--image", "gcr.io/p/image", "--runs", "gs://bucket/runs")
BACKENDS = {"local": (), "slurm": (), "tpu-vm": TPU, "gke": GKE}
words = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30)


# --------------------------------------------------------------------------------------------------------------
# Shell


@given(st.lists(words, max_size=5), words)
def test_a_shell_passes_arguments_unchanged(arguments, value):
    show = "import json, os, sys; print(json.dumps([sys.argv[1:], os.environ['IT'], os.getcwd()]))"
    command = Command((sys.executable, "-c", show, *arguments), {"IT": value}, Path("/"))
    done = subprocess.run(["bash", "-c", command.shell()], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [arguments, value, "/"]


@pytest.mark.parametrize("text", ["plain\n", "a $(b) `c` \\ 'd' \"\n", "END\nEND_\n", "\n"])
def test_a_files_shell_writes_the_same_text(text, tmp_path):
    step = TextFile(tmp_path / "a file", text)
    subprocess.run(["bash", "-c", step.shell()], check=True)
    assert step.path.read_text() == text
    step.path.unlink()
    step.run()
    assert step.path.read_text() == text


@pytest.mark.parametrize("by", ["run", "shell"])
def test_a_secret_is_only_in_a_file_that_its_owner_can_read(by, tmp_path, monkeypatch):
    secret = "s e'c\"r$(et)"
    monkeypatch.setenv("HF_TOKEN", secret)
    step = SecretFile(tmp_path / "env", ("HF_TOKEN",))
    assert "s e" not in step.shell()
    if by == "run":
        step.path.touch(0o644)  # from an earlier launch
        step.run()
    else:
        subprocess.run(["bash", "-c", step.shell()], check=True)
    assert step.path.stat().st_mode & 0o777 == 0o600
    read = f'unset HF_TOKEN; . {shlex.quote(str(step.path))}; printf %s "$HF_TOKEN"'
    assert subprocess.run(["bash", "-c", read], capture_output=True, text=True).stdout == secret


def test_errors_name_a_program_that_is_missing_or_fails():
    with pytest.raises(LaunchError, match="no-such-program is not installed"):
        Command(("no-such-program",)).run()
    with pytest.raises(LaunchError, match="ended with 3: bash -c 'exit 3'"):
        Command(("bash", "-c", "exit 3")).run()
    with pytest.raises(LaunchError, match="(?s)ended with 1: .*why"):
        Command(("bash", "-c", "echo why >&2; exit 1")).output()


# --------------------------------------------------------------------------------------------------------------
# Restart delays


def test_delays_grow_and_end():
    restarts = Restarts(limit=8, first_delay=5)
    delays = [restarts.next_delay(1) for _ in range(9)]
    assert delays == [5, 10, 20, 40, 80, 160, 300, 300, None]


def test_delays_do_not_overflow():
    restarts = Restarts(limit=3000, first_delay=0.5)
    delays = [restarts.next_delay(1) for _ in range(3000)]
    assert delays[:10] == [0.5, 1, 2, 4, 8, 16, 32, 64, 128, 256] and set(delays[10:]) == {300}


def test_a_long_attempt_resets_the_count():
    restarts = Restarts(limit=1, first_delay=5)
    assert [restarts.next_delay(duration) for duration in (1, 601, 601, 1)] == [5, 5, 5, None]
    assert Restarts(limit=0, first_delay=5).next_delay(1e6) is None


def test_exit_statuses_are_those_of_a_shell():
    assert [exit_status(code) for code in (0, 3, 75, -6, -9)] == [0, 3, 75, 134, 137]


# --------------------------------------------------------------------------------------------------------------
# Checks


@pytest.mark.parametrize("name", ["a", "demo8", "t5-xxl-2", "a" * 50])
def test_valid_names(name):
    checks.check_name(name)


@pytest.mark.parametrize(
    "name", ["", "A", "8demo", "-a", "a-", "a_b", "a b", "a/b", "..", "a;b", "$(a)", "a\n", "a" * 51]
)
def test_invalid_names(name):
    with pytest.raises(LaunchError, match="is not a valid job name"):
        checks.check_name(name)


@pytest.mark.parametrize(
    "bad", ["runs", "/runs", "s3://bucket/runs", "gs://", "gs://b/$(a)", "gs://bucket/a b", "gs://B/a"]
)
def test_runs_on_a_tpu_need_a_bucket(bad):
    checks.check_bucket("gs://my-bucket/runs/of me".replace(" ", "_"))
    with pytest.raises(LaunchError, match="expected a bucket"):
        checks.check_bucket(bad)


@pytest.mark.parametrize("backend", ["local", "slurm"])
def test_runs_may_be_on_a_bucket(checkout, backend):
    words = (backend, "--dry-run", "--runs")
    assert "--runs gs://b-1/r" in checkout.launch(*words, "gs://b-1/r/", "demo", "configs/tiny.py").stdout
    here = checkout.launch(*words, "a/r", "demo", "configs/tiny.py").stdout
    assert shlex.quote(str(checkout.folder / "a" / "r")) in here
    for bad in ("gs:/b-1/r", "gs://", "s3://b-1/r", "hdfs:///r"):
        message = checkout.launch(*words, bad, "demo", "configs/tiny.py", code=1).stderr
        assert message.startswith(f"launcher: --runs {bad}: expected a folder, or a bucket such as")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "overrides, message",
    [
        (["--name", "x"], "NAME is the run's name"),
        (["--runs=x"], "it is a launcher option, so put it before NAME"),
        (["--overwrite"], "each restart would start over"),
        (["--no-distributed"], "each process would train the whole run"),
        (["--train.steps", "3", "--no_distributed"], "each process would train the whole run"),
        (["--train.steps", "3", "--dry-run"], "--dry-run is a launcher option, so put it before NAME"),
        (["--retries=3"], "put it before NAME"),
        (["--data.template", "the hf_0123456789 one"], "the command line contains the value of HF_TOKEN"),
    ],
)
def test_invalid_overrides_are_refused_before_anything_runs(checkout, backend, overrides, message):
    words = (backend, *BACKENDS[backend], "demo", "configs/tiny.py", *overrides)
    done = checkout.launch(*words, code=1, HF_TOKEN="hf_0123456789")
    assert message in done.stderr and done.stderr.startswith("launcher: ") and not done.stdout
    assert not checkout.state.exists()
    assert "hf_0123456789" not in done.stderr


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "config, message",
    [
        ("configs", "configs is a folder: CONFIG must be a file"),
        (".", "is a folder: CONFIG must be a file"),
        ("requirements.lock", "requirements.lock is not a configuration"),
    ],
)
def test_invalid_configurations_are_refused_before_anything_runs(checkout, backend, config, message):
    done = checkout.launch(backend, *BACKENDS[backend], "demo", config, code=1)
    assert done.stderr.startswith("launcher: ") and message in done.stderr and not done.stdout
    assert not checkout.state.exists()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "option, value", [("--retries", "-1"), *(("--backoff", v) for v in ("-1", "nan", "inf", "301"))]
)
def test_invalid_restart_options(checkout, backend, option, value):
    words = (backend, *BACKENDS[backend], option, value, "demo", "configs/tiny.py")
    if (backend, option) == ("gke", "--backoff"):  # JobSet has no delays
        assert "unrecognized arguments" in checkout.launch(*words, code=2).stderr
    else:
        assert f"launcher: {option} must be" in checkout.launch(*words, code=1).stderr
    assert not checkout.state.exists()


def test_the_error_names_a_record_folder_that_cannot_be_created(checkout):
    checkout.state.touch()
    for words in (("local", "demo", "configs/tiny.py"), ("list",), ("stop", "demo")):
        done = checkout.launch(*words, code=None)
        assert "Traceback" not in done.stderr
        assert done.returncode == 0 or done.stderr.startswith(f"launcher: {checkout.state}"), done.stderr


@pytest.mark.parametrize(
    "options, message",
    [
        (("--poll", "nan"), "--poll must be from 0 to 86400 seconds"),
        (("--zone", "us-west4-a; rm -rf /"), "--zone"),
        (("--accelerator", "v5litepod"), "something like v5litepod-256"),
        (("--accelerator", "v9x-8"), "for another one give --runtime-version too"),
        (("--project", "$(id)"), "--project"),
        (("--runtime-version", "a b"), "--runtime-version"),
        (("--env", "NO_SUCH_VARIABLE"), "this variable is not set in the environment"),
        (("--env", "A=B"), "expected the name of a variable"),
        (("--runs", "runs"), "expected a bucket"),
    ],
)
def test_invalid_tpu_options(checkout, options, message):
    assert message in checkout.launch("tpu-vm", *TPU, *options, "demo", "configs/tiny.py", code=1).stderr


@pytest.mark.parametrize("option", ["--autodelete", "--spot", "--reserved", "--direct", "--runtime-version=v2-alpha"])
def test_an_existing_tpu_is_neither_created_nor_deleted(checkout, option):
    words = ("--zone", "us-west4-a", "--runs", "gs://bucket/runs", "--existing", "my-tpu", option)
    refused = checkout.launch("tpu-vm", *words, "demo", "configs/tiny.py", code=1).stderr
    assert f"{option.split('=')[0]} does not apply to an existing TPU VM" in refused


@pytest.mark.parametrize(
    "words, message",
    [
        (("local", "--processes", "0", "demo", "configs/tiny.py"), "--processes must be from 1 to 64"),
        (("slurm", "--nodes", "0", "demo", "configs/tiny.py"), "--nodes must be positive"),
        (("slurm", "--sbatch", "gpu", "demo", "configs/tiny.py"), "expected an option of sbatch"),
        (("local", "--grace", "nan", "demo", "configs/tiny.py"), "--grace must be from 0"),
        (("slurm", "--grace", "-1", "demo", "configs/tiny.py"), "--grace must be from 0"),
        (("local", "Demo", "configs/tiny.py"), "'Demo' is not a valid job name"),
        (("local", "demo", "configs/none.py"), "configs/none.py is not in the commit"),
        (("local", "demo", "../elsewhere.py"), "so move it there"),
        (("stop", "demo"), "no job demo in "),
        (("logs", "--worker", "-1", "demo"), "numbered from 0"),
    ],
)
def test_invalid_arguments(checkout, words, message):
    assert message in checkout.launch(*words, code=1).stderr


def test_usage_errors_exit_with_2(checkout):
    assert "invalid choice" in checkout.launch("luanch", code=2).stderr
    assert "CONFIG" in checkout.launch("local", "demo", code=2).stderr
    for options in (("--existing", "my-tpu"), ("--spot", "--reserved")):
        words = ("tpu-vm", *TPU, *options, "demo", "configs/tiny.py")
        assert "not allowed with argument" in checkout.launch(*words, code=2).stderr


# --------------------------------------------------------------------------------------------------------------
# Commits


def test_uncommitted_changes_are_refused_or_ignored(checkout):
    (checkout.folder / "configs" / "tiny.py").write_text("experiment = 'changed'\n")
    (checkout.folder / "configs" / "new.py").touch()
    refused = checkout.launch("local", "demo", "configs/tiny.py", code=1).stderr
    assert "M configs/tiny.py" in refused and "?? configs/new.py" in refused and "--allow-dirty" in refused
    assert not checkout.state.exists()

    checkout.launch("local", "--allow-dirty", "demo", "configs/tiny.py")
    (launch,) = checkout.job("demo")["launches"]
    assert launch["dirty"] and launch["commit"] == checkout.git("rev-parse", "HEAD")
    code = checkout.state / "demo" / "code"
    assert (code / "configs" / "tiny.py").read_text() == "experiment = None\n"
    assert not (code / "configs" / "new.py").exists()
    assert f"{launch['commit'][:12]}+" in checkout.launch("list").stdout
    assert "not in the commit" in checkout.launch("local", "--allow-dirty", "demo", "configs/new.py", code=1).stderr


def test_a_record_contains_the_command_and_commit(checkout):
    checkout.launch("local", "demo", "configs/tiny.py", *AWKWARD, HF_TOKEN="hf_0123456789")
    job = checkout.job("demo")
    runs = str(checkout.folder / "runs")
    assert job["name"] == "demo" and job["backend"] == "local" and job["state"] == "done" and job["runs"] == runs
    (launch,) = job["launches"]
    assert launch["argv"] == ["local", "--state", str(checkout.state), "demo", "configs/tiny.py", *AWKWARD]
    named = ["--name", "demo", "--runs", runs]
    assert launch["command"] == ["train", "configs/tiny.py", "--distributed", *named, *AWKWARD]
    assert launch["commit"] == checkout.git("rev-parse", "HEAD") and not launch["dirty"]
    kept = [path for path in checkout.state.rglob("*") if path.is_file()]
    assert kept and not [path for path in kept if b"hf_0123456789" in path.read_bytes()]


def test_a_second_launch_runs_the_new_commit_and_extends_the_record(checkout):
    checkout.launch("local", "demo", "configs/tiny.py")
    (checkout.folder / "configs" / "tiny.py").write_text("experiment = 'second'\n")
    checkout.git("-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qam", "second")
    checkout.launch("local", "demo", "configs/tiny.py")
    first, second = checkout.job("demo")["launches"]
    assert first["commit"] != second["commit"] == checkout.git("rev-parse", "HEAD")
    assert (checkout.state / "demo" / "code" / "configs" / "tiny.py").read_text() == "experiment = 'second'\n"


def test_a_record_is_synced_before_it_is_renamed(tmp_path, monkeypatch):
    synced, real = [], os.fsync
    monkeypatch.setattr(jobs.os, "fsync", lambda file: synced.append(os.fstat(file)) or real(file))
    jobs.Job("demo", "local", "runs", {}, {}, folder=tmp_path).write(state="running")
    (record,) = tmp_path.iterdir()
    assert [(each.st_ino, each.st_size) for each in synced] == [(record.stat().st_ino, record.stat().st_size)]


def test_a_name_belongs_to_one_backend(checkout):
    checkout.launch("local", "demo", "configs/tiny.py")
    assert "demo is already a job on local" in checkout.launch("slurm", "demo", "configs/tiny.py", code=1).stderr


def test_the_error_names_an_invalid_record(checkout):
    (checkout.state / "demo").mkdir(parents=True)
    (checkout.state / "demo" / "job.json").write_text("{}")
    assert "demo/job.json is not a valid job record" in checkout.launch("stop", "demo", code=1).stderr


# --------------------------------------------------------------------------------------------------------------
# Dry runs


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_dry_run_only_prints_shell(checkout, backend):
    secret = "hf_0123456789"
    env = ("--env", "HF_TOKEN") if backend == "tpu-vm" else ()
    words = (backend, "--dry-run", *BACKENDS[backend], *env, "demo", "configs/tiny.py", *AWKWARD)
    done = checkout.launch(*words, PATH="/usr/bin:/bin", HF_TOKEN=secret)
    assert not checkout.state.exists() and not checkout.starts() and not done.stderr
    assert secret not in done.stdout
    assert subprocess.run(["bash", "-n"], input=done.stdout, text=True).returncode == 0
    known = ("git", "mkdir", "rm", "tar", "cat", "cp", "(", "wait", "sbatch", "gcloud", "docker", "kubectl")
    outside = done.stdout if backend == "local" else done.stdout.split("<<")[0]
    assert [line for line in outside.replace("a\nb", "a b").splitlines() if not line.startswith(known)] == []


def test_the_printed_shell_does_the_same_as_a_launch(checkout):
    printed = checkout.launch("local", "--dry-run", "--processes", "2", "demo", "configs/tiny.py", *AWKWARD).stdout
    subprocess.run(["bash", "-e"], input=printed, text=True, check=True, env=checkout.env, cwd=checkout.folder)
    by_hand = checkout.starts()
    checkout.launch("local", "--processes", "2", "demo", "configs/tiny.py", *AWKWARD)
    for start in ("0.0", "1.0"):
        one, other = by_hand[start], checkout.starts()[start.replace(".0", ".1")]
        assert one["argv"] == other["argv"] and one["folder"] == other["folder"] and one["file"] == other["file"]
        assert one["env"].keys() == other["env"].keys()


def test_dry_runs_of_the_other_verbs(checkout):
    checkout.launch("local", "demo", "configs/tiny.py")
    folder = checkout.state / "demo"
    assert checkout.launch("list", "--dry-run").stdout == ""
    assert shlex.split(checkout.launch("logs", "--dry-run", "demo").stdout)[-1] == str(folder / "logs" / "worker-0.log")
    assert checkout.launch("stop", "--dry-run", "demo").stdout == ""  # it is not running
    assert shlex.split(checkout.launch("delete", "--dry-run", "demo").stdout) == ["rm", "-r", "--", str(folder)]
    assert folder.exists()
