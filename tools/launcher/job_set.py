"""The JobSet of a job on Google Kubernetes Engine: a Kubernetes Job for each TPU slice, with one pod for each host.

GKE gives the pods TPU_WORKER_ID and TPU_WORKER_HOSTNAMES, and with several slices also MEGASCALE_COORDINATOR_ADDRESS,
MEGASCALE_NUM_SLICES and MEGASCALE_SLICE_ID. `jax.distributed.initialize` reads them.
"""

import dataclasses
import json
import math
import re
from typing import Any

from tools.launcher.commands import LaunchError
from tools.launcher.jobs import Job
from tools.launcher.restarts import PREEMPTED, RESTARTABLE

CONTAINER = "train"
_PREFIX = "cloud.google.com/"  # of GKE's labels and taints
REPLICATED_JOB = "slice"
GRACE = 60  # seconds from SIGTERM to SIGKILL
SPOT_GRACE = 25  # the most that GKE grants a pod on a spot node

# The node label of each chip, and the number of axes of its slices (Google's "Plan TPUs in GKE").
_CHIPS = {
    "v4": ("tpu-v4-podslice", 3),
    "v5e": ("tpu-v5-lite-podslice", 2),
    "v5p": ("tpu-v5p-slice", 3),
    "v6e": ("tpu-v6e-slice", 2),
    "7x": ("tpu7x", 3),
}
_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_SMALL = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")  # in larger slices of three axes, all sizes are multiples of 4


@dataclasses.dataclass(frozen=True)
class Slice:
    """A TPU slice.

    Attributes:
      accelerator: the nodes' label cloud.google.com/gke-tpu-accelerator.
      topology: the nodes' label cloud.google.com/gke-tpu-topology: chips along each axis.
      hosts: number of hosts.
      chips: number of chips of each host.
    """

    accelerator: str
    topology: str
    hosts: int
    chips: int


def parse_slice(name: str) -> Slice:
    """Return the slice with the planner's name, e.g. `v5e:4x4`. Raises LaunchError."""
    chip, _, topology = name.partition(":")
    if chip not in _CHIPS or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)+", topology):
        forms = ", ".join(f"{known}:{'x'.join('4' * axes)}" for known, (_, axes) in _CHIPS.items())
        raise LaunchError(f"--topology {name}: expected a chip and the sizes of a slice, such as {forms}")
    accelerator, axes = _CHIPS[chip]
    sizes = [int(size) for size in topology.split("x")]
    cubes = len(sizes) == 3 and all(size % 4 == 0 for size in sizes)
    if topology not in (_FLAT if axes == 2 else _SMALL) and not (axes == 3 and cubes):
        known = ", ".join(_FLAT) if axes == 2 else f"{', '.join(_SMALL)} and multiples of 4 such as 4x4x8"
        raise LaunchError(f"--topology {name}: {chip} has the slices {known}")
    total = math.prod(sizes)
    chips = total if axes == 2 and total <= 8 else 4
    return Slice(accelerator, topology, total // chips, chips)


def longest_name(slices: int, hosts: int) -> int:
    """Return the longest possible job name: its pods' names have at most 63 characters."""
    return 63 - len(f"-{REPLICATED_JOB}-{slices - 1}-{hosts - 1}-abcde")


def manifest(job: Job, image: str, retries: int) -> dict[str, Any]:
    """Return the JobSet of a job."""
    options = job.options
    part = parse_slice(options["topology"])
    metadata: dict[str, Any] = {"name": job.name, "namespace": options["namespace"]}
    if options["queue"]:
        metadata["labels"] = {"kueue.x-k8s.io/queue-name": options["queue"]}
    if part.hosts > 1:  # then a node pool is one slice, and must not be shared by two Jobs
        metadata["annotations"] = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
    template = {
        "parallelism": part.hosts,
        "completions": part.hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": _pod_rules()},
        "template": {"spec": _pod(job, part, image)},
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            **({"suspend": True} if options["queue"] else {}),  # Kueue resumes it
            "failurePolicy": {"maxRestarts": retries, "rules": _job_set_rules()},
            "replicatedJobs": [{"name": REPLICATED_JOB, "replicas": options["slices"], "template": {"spec": template}}],
        },
    }


# The rules act as restarts.py does. Preemptions restart the job without limit, lost and killed processes up to
# maxRestarts times, and other failures end it. JobSet tells failures apart by the Job's message: "Pod ... has condition
# DisruptionTarget matching FailJob rule at index 0" or "Container ... failed with exit code 75 matching FailJob rule at
# index 1".


def _pod_rules() -> list[dict[str, Any]]:
    counted = sorted(status for status in RESTARTABLE if status != PREEMPTED)
    return [
        {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        {"action": "FailJob", "onExitCodes": {"containerName": CONTAINER, "operator": "NotIn", "values": counted}},
    ]


def _job_set_rules() -> list[dict[str, Any]]:
    return [
        {
            "name": "preempted",
            "action": "RestartJobSetAndIgnoreMaxRestarts",
            "onJobFailureReasons": ["PodFailurePolicy"],
            "onJobFailureMessagePatterns": ["condition DisruptionTarget", f"exit code {PREEMPTED} "],
        },
        {"name": "error", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]},
    ]


def _pod(job: Job, part: Slice, image: str) -> dict[str, Any]:
    """Return the specification of a pod. GKE adds the toleration of TPU nodes."""
    options = job.options
    labels, taints = _capacity(options)
    labels = {"gke-tpu-accelerator": part.accelerator, "gke-tpu-topology": part.topology} | labels
    container: dict[str, Any] = {
        "name": CONTAINER,
        "image": image,
        # Kubernetes replaces $(NAME) in arguments by a variable, and $$ by $.
        "command": ["prompt-jax", *(word.replace("$", "$$") for word in job.command)],
        "resources": {"limits": {"google.com/tpu": part.chips}},
    }
    if options["secret"]:
        container["envFrom"] = [{"secretRef": {"name": options["secret"]}}]
    return {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": SPOT_GRACE if options["spot"] else GRACE,
        "nodeSelector": {f"{_PREFIX}{name}": value for name, value in labels.items()},
        **({"tolerations": [{"key": f"{_PREFIX}{name}", "operator": "Exists"} for name in taints]} if taints else {}),
        "containers": [container],
    }


def _capacity(options: dict[str, Any]) -> tuple[dict[str, str], list[str]]:
    """Return the labels of nodes with the chosen capacity, and the keys of the taints that they may have."""
    if options["spot"]:
        return {"gke-spot": "true"}, ["gke-spot", "gke-provisioning"]
    if options["flex_start"]:
        return {"gke-flex-start": "true"}, ["gke-flex-start", "gke-provisioning", "gke-queued"]
    if options["reservation"]:
        return {"reservation-name": options["reservation"], "reservation-affinity": "specific"}, ["reservation-name"]
    return {}, []


# --------------------------------------------------------------------------------------------------------------
# YAML

_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_./-]*")
_NOT_STRINGS = {"true", "false", "yes", "no", "on", "off", "y", "n", "null"}


def to_yaml(value: dict[str, Any]) -> str:
    """Return a dict of strings, numbers, booleans, lists and dicts as YAML."""
    return "".join(f"{line}\n" for line in _lines(value))


def _lines(value: Any) -> list[str]:
    if not (isinstance(value, (dict, list)) and value):
        return [_scalar(value)]
    lines = []
    if isinstance(value, list):
        for item in value:
            first, *rest = _lines(item)
            lines += [f"- {first}", *(f"  {line}" for line in rest)]
    else:
        for key, item in value.items():
            inner = _lines(item)
            if isinstance(item, (dict, list)) and item:
                lines += [f"{_scalar(key)}:", *(f"  {line}" for line in inner)]
            else:
                lines.append(f"{_scalar(key)}: {inner[0]}")
    return lines


def _scalar(value: Any) -> str:
    if isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in _NOT_STRINGS:
        return value
    text = json.dumps(value, ensure_ascii=False)
    return "".join(char if char.isprintable() else f"\\U{ord(char):08x}" for char in text)
