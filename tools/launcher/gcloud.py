"""The TPU of a job as a resource of Google Cloud: requests, states, deletion and billing, with gcloud."""

import contextlib
import dataclasses
import json
import re
import sys
from collections.abc import Iterator
from typing import Any

from tools.launcher.commands import Command, LaunchError
from tools.launcher.jobs import Job

# Errors after which a request is worth repeating.
TRANSIENT = re.compile(r"capacity|RESOURCE_EXHAUSTED|UNAVAILABLE|INTERNAL|DEADLINE_EXCEEDED|ABORTED|ALREADY_EXISTS")

_DELETE = "python -m tools.launcher delete"

# States of a queued resource or a node that no longer lead to a usable TPU.
_DEAD = {"FAILED", "SUSPENDING", "SUSPENDED", "PREEMPTED", "TERMINATED", "STOPPED", "STOPPING", "HIDDEN", "HIDING"}


def existing(job: Job) -> str | None:
    """Return the name of the TPU VM that the job uses and did not create, or None. Old records lack the option."""
    return job.options.get("existing")


def node(job: Job) -> str:
    """Return the name of the job's TPU."""
    return existing(job) or job.name


def gcloud(job: Job, *words: str) -> Command:
    project = [f"--project={job.options['project']}"] if job.options["project"] else []
    return Command(("gcloud", "compute", "tpus", *words, f"--zone={job.options['zone']}", *project))


def create_tpu(job: Job) -> Command:
    """Return the command that requests the TPU. The node has the job's name."""
    accelerator, runtime = f"--accelerator-type={job.options['accelerator']}", job.options["runtime_version"]
    more = [f"--{tier}" for tier in ("spot", "reserved") if job.options[tier]] + ["--quiet"]
    if job.options["direct"]:
        return gcloud(job, "tpu-vm", "create", job.name, accelerator, f"--version={runtime}", *more)
    names = (job.name, f"--node-id={job.name}")
    return gcloud(job, "queued-resources", "create", *names, accelerator, f"--runtime-version={runtime}", *more)


def delete_tpu(job: Job) -> Command:
    """Return the command that deletes the TPU and its request, which ends billing."""
    if job.options["direct"]:
        return gcloud(job, "tpu-vm", "delete", job.name, "--quiet")
    return gcloud(job, "queued-resources", "delete", job.name, "--force", "--quiet")


def list_nodes(job: Job) -> Command:
    return gcloud(job, "tpu-vm", "list", "--format=json")


def list_requests(job: Job) -> Command:
    return gcloud(job, "queued-resources", "list", "--format=json")


def queries(job: Job) -> list[Command]:
    """Return the commands that query the TPU's state."""
    # The request comes first: in the other order, a TPU that became ready in between would seem to be lost.
    return [list_nodes(job)] if job.options["direct"] or existing(job) else [list_requests(job), list_nodes(job)]


@dataclasses.dataclass(frozen=True)
class DeleteIfPresent:
    """The step that deletes a TPU if it exists."""

    job: Job

    def shell(self) -> str:
        return delete_tpu(self.job).shell()

    def run(self) -> None:
        if not tpu_state(self.job).absent:
            delete_tpu(self.job).run()


@dataclasses.dataclass(frozen=True)
class TpuState:
    """The state of a job's TPU at Google Cloud.

    Attributes:
      request: state of the job's queued resource; None if there is none.
      node: state of the TPU; None if there is none.
      workers: number of the TPU's workers.
    """

    request: str | None
    node: str | None
    workers: int = 0

    @property
    def ready(self) -> bool:
        return self.node == "READY" and self.request in ("ACTIVE", None)

    @property
    def absent(self) -> bool:
        return self.request is None and self.node is None

    @property
    def dead(self) -> bool:
        """Whether it can no longer become ready. An active request without a node has lost its node."""
        return bool({self.request, self.node} & _DEAD) or (self.request == "ACTIVE" and self.node is None)

    def __str__(self) -> str:
        return ", ".join(state for state in (self.request, self.node) if state) or "no TPU"


def tpu_state(job: Job) -> TpuState:
    """Query the state of a job's TPU. Raises LaunchError if gcloud fails."""
    *requests, nodes = [query.output() for query in queries(job)]
    request = find_resource(requests[0], job.name) if requests else None
    found = find_resource(nodes, node(job))
    return TpuState(
        request.get("state", {}).get("state", "UNKNOWN") if request else None,
        found.get("state", "UNKNOWN") if found else None,
        len(found.get("networkEndpoints", [])) if found else 0,
    )


def find_resource(listing: str, name: str) -> dict[str, Any] | None:
    """Return the resource `name` of gcloud's JSON list, or None. Raises LaunchError if it is not such a list."""
    try:
        resources = {each["name"].split("/")[-1]: each for each in json.loads(listing or "[]")}
    except (ValueError, TypeError, KeyError) as error:
        raise LaunchError(f"gcloud printed no list of resources ({error}): {listing[:200]}") from error
    return resources.get(name)


# --------------------------------------------------------------------------------------------------------------
# Billing


def report(text: str) -> None:
    print(f"launcher: {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def billing_at_exit(job: Job) -> Iterator[None]:
    """Print what still exists and is billed, however the block ends."""
    try:
        yield
    finally:
        print_billing(job)


def print_billing(job: Job) -> None:
    """Print what still exists of a job's TPU and is billed, or that this is unknown if the query is interrupted."""
    try:
        text = billing(job)
    except (KeyboardInterrupt, SystemExit):
        report(_unknown(job, "interrupted"))
        raise
    report(text)


def billing(job: Job) -> str:
    """Describe what still exists of a job's TPU and is billed."""
    return remaining_resources(job) or f"no TPU of {job.name} remains, and nothing is billed"


def remaining_resources(job: Job) -> str | None:
    """Describe what exists, or may exist, of a job's TPU; None if nothing does."""
    try:
        state = tpu_state(job)
    except LaunchError as error:
        return _unknown(job, error)
    if state.absent:
        return None
    billed = "STILL EXISTS AND IS BILLED" if state.node else "still requested, and billed once it exists"
    advice = "the launcher does not delete it" if existing(job) else f"delete it with {_DELETE} {job.name}"
    return f"{billed}: {_describe(job)} ({state}); {advice}"


def _unknown(job: Job, reason: object) -> str:
    return (
        f"COULD NOT CHECK whether {_describe(job)} still exists and is billed: {reason}\n"
        f"  check with: {list_nodes(job).shell()}"
    )


def _describe(job: Job) -> str:
    return f"{job.options['accelerator'] or 'TPU VM'} {node(job)} in {job.options['zone']}"
