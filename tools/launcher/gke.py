"""TPU slices of Google Kubernetes Engine: a JobSet, applied with kubectl.

The cluster needs JobSet 0.10 or later, and Kueue for --queue. JobSet restarts the processes (`job_set.py`), so the
launcher does not watch the job.
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from typing import Any

from tools.launcher import checks, jobs
from tools.launcher.commands import Command, LaunchError, Step, TextFile, perform
from tools.launcher.job_set import CONTAINER, longest_name, manifest, parse_slice, to_yaml
from tools.launcher.jobs import Job

_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_SECRET = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_REPOSITORY = re.compile(r"[a-z0-9][a-z0-9.-]*(:\d+)?(/[a-z0-9]+([._-]+[a-z0-9]+)*)+")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--context", required=True, metavar="NAME", help="kubectl's name of the cluster, e.g. gke_PROJECT_ZONE_CLUSTER"
    )
    parser.add_argument("--topology", required=True, metavar="CHIP:SIZES", help="slice, e.g. v5e:4x4, v6e:16x16")
    parser.add_argument(
        "--image", required=True, metavar="REPOSITORY", help="e.g. us-docker.pkg.dev/PROJECT/IMAGES/prompt-jax"
    )
    parser.add_argument("--runs", required=True, metavar="gs://BUCKET/...", help="folder of all runs, on a bucket")
    parser.add_argument("--slices", type=int, default=1, metavar="N", help="number of slices (default 1)")
    capacity = parser.add_mutually_exclusive_group()
    capacity.add_argument("--spot", action="store_true", help="cheaper, but may be preempted (default: on demand)")
    capacity.add_argument("--reservation", metavar="NAME", help="use this reservation")
    capacity.add_argument("--flex-start", action="store_true", help="wait for capacity, and keep it for up to 7 days")
    parser.add_argument("--queue", metavar="NAME", help="wait in this queue of Kueue")
    parser.add_argument("--namespace", default="default", metavar="NAME", help="Kubernetes namespace")
    parser.add_argument("--secret", metavar="NAME", help="a Kubernetes Secret: its keys become variables")
    parser.add_argument("--cloud-build", action="store_true", help="build the image with Cloud Build, not with docker")


def check(options: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Return the folder of all runs and the options to record. Raises LaunchError."""
    checks.check_bucket(options.runs)
    part = parse_slice(options.topology)
    if options.slices < 1:
        raise LaunchError(f"--slices must be positive, not {options.slices}")
    if options.slices > 1 and part.hosts == 1:
        raise LaunchError(f"--slices {options.slices}: GKE connects only slices of several hosts, e.g. v5e:4x4")
    longest = longest_name(options.slices, part.hosts)
    if len(options.name) > longest:
        raise LaunchError(f"{options.name} is too long for the names of the pods: use at most {longest} characters")
    for option, pattern in (("namespace", _LABEL), ("queue", _LABEL), ("reservation", _LABEL), ("secret", _SECRET)):
        name = getattr(options, option)
        if name is not None and not pattern.fullmatch(name):
            raise LaunchError(f"--{option} {name!r}: expected lower-case letters, digits and hyphens")
    if not _REPOSITORY.fullmatch(options.image):
        raise LaunchError(
            f"--image {options.image!r}: expected a repository without a tag, such as "
            "us-docker.pkg.dev/my-project/images/prompt-jax; the tag is the commit"
        )
    recorded = ("context", "namespace", "topology", "slices", "image", "spot", "reservation", "flex_start", "queue")
    return options.runs.rstrip("/"), {name: getattr(options, name) for name in (*recorded, "secret")}


def kubectl(job: Job, *words: str) -> Command:
    return Command(
        ("kubectl", f"--context={job.options['context']}", f"--namespace={job.options['namespace']}", *words)
    )


def image(job: Job) -> str:
    """Return the name of the image with the committed code."""
    return f"{job.options['image']}:{job.commit[:12]}"


def build(job: Job, cloud_build: bool) -> list[Step]:
    """Return the steps that build the image from the job's code and push it."""
    if cloud_build:
        return [Command(("gcloud", "builds", "submit", f"--tag={image(job)}", "--timeout=1h", str(job.code)))]
    return [
        Command(("docker", "build", "--platform=linux/amd64", f"--tag={image(job)}", str(job.code))),
        Command(("docker", "push", image(job))),
    ]


def launch(job: Job, options: argparse.Namespace) -> int:
    """Apply the job's JobSet. Returns 0."""
    file = job.folder / "jobset.yaml"
    text = to_yaml(manifest(job, image(job), options.retries))
    steps = [*jobs.ship_code(job), *build(job, options.cloud_build), TextFile(file, text)]
    apply = kubectl(job, "apply", f"--filename={file}")
    if options.dry_run:
        perform([*steps, apply], dry_run=True)
        return 0
    job.folder.mkdir(parents=True, exist_ok=True)
    with job.locked():
        _check_same_cluster(job)
        previous = find(job)
        _check_ended(job, previous)
        perform([*steps, *([delete_job_set(job)] if previous else []), apply], dry_run=False)
        job.write(state="submitted", ids={"jobset": job.name})
    follow = f"follow it with python -m tools.launcher logs {job.name}"
    print(f"launcher: {job.name} is a JobSet of {job.options['context']}; {follow}", file=sys.stderr)
    return 0


def _check_same_cluster(job: Job) -> None:
    """Raise LaunchError if the job has, or may have, a JobSet elsewhere, which would be forgotten and billed."""
    if job.ids:
        before = jobs.read_job(job.folder.parent, job.name).options
        for option in ("context", "namespace"):
            if before[option] != job.options[option]:
                raise LaunchError(
                    f"{job.name} was launched with --{option} {before[option]}, not {job.options[option]}: launch it "
                    f"with the same option, or first run python -m tools.launcher delete {job.name}"
                )


def _check_ended(job: Job, found: dict[str, Any] | None) -> None:
    """Raise LaunchError if the JobSet is running or belongs to another job."""
    if found is None:
        return
    if not job.ids:
        raise LaunchError(
            f"{job.options['context']} has a JobSet {job.name} in the namespace {job.options['namespace']} that this "
            "launcher did not create: choose another name"
        )
    if not found.get("status", {}).get("terminalState"):
        raise LaunchError(f"{job.name} is {describe(found)}; stop it with python -m tools.launcher stop {job.name}")


def find(job: Job) -> dict[str, Any] | None:
    """Return the JobSet of a job as the cluster describes it, or None. Raises LaunchError if kubectl fails."""
    text = kubectl(job, "get", "jobset", job.name, "--ignore-not-found", "--output=json").output()
    try:
        found = json.loads(text or "null")
        if found is not None:
            found["spec"]["replicatedJobs"]
        return found
    except (ValueError, TypeError, KeyError) as error:
        raise LaunchError(f"kubectl printed no JobSet ({error!r}): {text[:200]}") from error


def describe(found: dict[str, Any]) -> str:
    """Return the state of a JobSet."""
    status = found.get("status", {})
    if status.get("terminalState") == "Completed":
        return "done"
    if status.get("terminalState") == "Failed":
        reasons = [each.get("message", "") for each in status.get("conditions", []) if each.get("type") == "Failed"]
        return ": ".join(["failed", *reasons])
    if found["spec"].get("suspend"):
        return "suspended, and waits for its queue"
    wanted = sum(each.get("replicas", 1) for each in found["spec"]["replicatedJobs"])
    ready = sum(each.get("ready", 0) for each in status.get("replicatedJobsStatus", []))
    restarts = status.get("restarts", 0)
    state = "running" if ready == wanted else f"starting, {ready} of {wanted} slices are ready"
    return f"{state}, restarted {restarts} times" if restarts else state


def delete_job_set(job: Job) -> Command:
    """Return the command that deletes the JobSet. It waits until the processes have saved and ended."""
    return kubectl(job, "delete", "jobset", job.name, "--ignore-not-found", "--cascade=foreground")


# --------------------------------------------------------------------------------------------------------------
# The other verbs


def states(known: Sequence[Job], dry_run: bool) -> dict[str, str]:
    """Return the states of jobs, by name."""
    result = {}
    for job in known:
        if dry_run:
            perform([kubectl(job, "get", "jobset", job.name)], dry_run=True)
            continue
        try:
            found = find(job) if job.ids else None
            result[job.name] = describe(found) if found else f"not on the cluster, last {job.state}"
        except LaunchError as error:
            result[job.name] = f"unknown: {error}"
    return result


def logs(job: Job, worker: int) -> Command:
    hosts, slices = parse_slice(job.options["topology"]).hosts, job.options["slices"]
    if worker >= hosts * slices:
        raise LaunchError(f"--worker {worker}: {job.name} has {hosts * slices} workers, numbered from 0")
    labels = {
        "jobset.sigs.k8s.io/jobset-name": job.name,
        "jobset.sigs.k8s.io/job-index": worker // hosts,
        "batch.kubernetes.io/job-completion-index": worker % hosts,
    }
    selector = ",".join(f"{name}={value}" for name, value in labels.items())
    return kubectl(job, "logs", f"--selector={selector}", f"--container={CONTAINER}", "--tail=-1", "--follow")


def stop(job: Job) -> list[Step]:
    return [delete_job_set(job)] if job.ids else []


def delete(job: Job) -> list[Step]:
    return [*stop(job), job.remove()]
