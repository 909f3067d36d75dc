"""Tests of GKE: the manifest against the published schema, and launches with stand-ins for kubectl and docker."""

import json
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from jax._src.clusters import cloud_tpu_cluster

from doc_blocks import blocks
from launching import AWKWARD, Checkout
from tools.launcher import __main__, gke, jobs
from tools.launcher.commands import LaunchError
from tools.launcher.job_set import manifest, parse_slice, to_yaml
from tools.launcher.restarts import FINAL, PREEMPTED, RESTARTABLE

ROOT = Path(__file__).resolve().parents[3]
STAND_INS = Path(__file__).parent / "stand_ins"
CLUSTER = ("--context", "cluster", "--image", "us-docker.pkg.dev/p/r/image", "--runs", "gs://bucket/runs")
GKE = (*CLUSTER, "--topology", "v5e:4x4")
DEMO = ("demo", "configs/tiny.py")
COMMIT = "5449eed0123456789012345678901234567890ab"


def job_of(*words: str, name: str = "demo", overrides: tuple[str, ...] = ()) -> jobs.Job:
    """Return the job of a command line."""
    options = __main__._parser().parse_args(["gke", *CLUSTER, *words, name, "configs/tiny.py"])
    runs, recorded = gke.check(options)
    command = ["train", "configs/tiny.py", "--distributed", "--name", name, "--runs", runs, *overrides]
    return jobs.Job(name, "gke", runs, recorded, {}, launches=[{"commit": COMMIT, "command": command}])


def job_set(*words: str, **more: Any) -> dict[str, Any]:
    job = job_of(*words, **more)
    return manifest(job, gke.image(job), retries=10)


def job_spec(applied: dict[str, Any]) -> dict[str, Any]:
    return applied["spec"]["replicatedJobs"][0]["template"]["spec"]


def pod_spec(applied: dict[str, Any]) -> dict[str, Any]:
    return job_spec(applied)["template"]["spec"]


# --------------------------------------------------------------------------------------------------------------
# The schema

# The part of the custom resource definition jobsets.jobset.x-k8s.io (v1alpha2, JobSet 0.13) that manifests use. It
# contains the schemas of batch/v1 Jobs and of pods. "!" marks required fields, a tuple lists the allowed values, and
# {str: T} is a map. `metadata` is that of every Kubernetes object.
SCHEMA: dict[str, Any] = {
    "apiVersion!": ("jobset.x-k8s.io/v1alpha2",),
    "kind!": ("JobSet",),
    "metadata!": {"name!": str, "namespace": str, "labels": {str: str}, "annotations": {str: str}},
    "spec!": {
        "suspend": bool,
        "failurePolicy": {
            "maxRestarts": int,
            "rules": [
                {
                    "name!": str,
                    "action!": (
                        "FailJobSet",
                        "RestartJobSet",
                        "RestartJobSetAndIgnoreMaxRestarts",
                        "RestartJob",
                        "RestartJobAndIgnoreMaxRestarts",
                    ),
                    "onJobFailureReasons": [str],
                    "onJobFailureMessagePatterns": [str],
                }
            ],
        },
        "replicatedJobs": [
            {
                "name!": str,
                "replicas": int,
                "template!": {
                    "spec": {
                        "parallelism": int,
                        "completions": int,
                        "completionMode": str,
                        "backoffLimit": int,
                        "podFailurePolicy": {
                            "rules!": [
                                {
                                    "action!": str,
                                    "onExitCodes": {"containerName": str, "operator!": str, "values!": [int]},
                                    "onPodConditions": [{"type!": str, "status": str}],
                                }
                            ]
                        },
                        "template!": {
                            "spec": {
                                "restartPolicy": str,
                                "terminationGracePeriodSeconds": int,
                                "nodeSelector": {str: str},
                                "tolerations": [{"key": str, "operator": str}],
                                "containers!": [
                                    {
                                        "name!": str,
                                        "image": str,
                                        "command": [str],
                                        "envFrom": [{"secretRef": {"name": str}}],
                                        "resources": {"limits": {str: int}},
                                    }
                                ],
                            }
                        },
                    }
                },
            }
        ],
    },
}


def violations(value: Any, schema: Any, path: str = "") -> list[str]:
    """Return the paths at which a value is not of the schema."""
    if isinstance(schema, type):
        return [] if type(value) is schema else [path]
    if isinstance(schema, tuple):
        return [] if value in schema else [path]
    if isinstance(schema, list):
        each = enumerate(value) if isinstance(value, list) else ()
        return [bad for i, item in each for bad in violations(item, schema[0], f"{path}[{i}]")] if each else [path]
    if not isinstance(value, dict):
        return [path]
    if str in schema:
        return [bad for key, item in value.items() for bad in violations(item, schema[str], f"{path}.{key}")]
    fields = {name.rstrip("!"): kind for name, kind in schema.items()}
    missing = [f"{path}.{name[:-1]}" for name in schema if name.endswith("!") and name[:-1] not in value]
    unknown = [f"{path}.{name}" for name in value if name not in fields]
    known = [(f"{path}.{name}", item, fields[name]) for name, item in value.items() if name in fields]
    return missing + unknown + [bad for where, item, kind in known for bad in violations(item, kind, where)]


OPTIONS = [
    ("--topology", "v5e:4x4"),
    ("--topology", "v6e:2x4", "--spot", "--secret", "tokens"),
    ("--topology", "v5p:4x4x8", "--reservation", "my-reservation", "--namespace", "team"),
    ("--topology", "v6e:16x16", "--slices", "4", "--flex-start", "--queue", "team-queue"),
]


@pytest.mark.parametrize("options", OPTIONS, ids=" ".join)
def test_manifests_conform_to_the_published_schema(options):
    applied = yaml.safe_load(to_yaml(job_set(*options, overrides=tuple(AWKWARD))))
    assert violations(applied, SCHEMA) == []


@pytest.mark.parametrize(
    "change, where",
    [
        (lambda spec: spec.update(backofLimit=0), ".spec.replicatedJobs[0].template.spec.backofLimit"),
        (lambda spec: spec.update(completions="4"), ".spec.replicatedJobs[0].template.spec.completions"),
        (lambda spec: spec.update(backoffLimit=False), ".spec.replicatedJobs[0].template.spec.backoffLimit"),
        (lambda spec: spec.pop("template"), ".spec.replicatedJobs[0].template.spec.template"),
    ],
)
def test_the_schema_refuses_wrong_manifests(change, where):
    applied = job_set("--topology", "v5e:4x4")
    change(job_spec(applied))
    assert violations(applied, SCHEMA) == [where]


words = st.text(st.characters(codec="utf-8"), max_size=10)
values = st.recursive(
    words | st.integers() | st.booleans(),
    lambda each: st.lists(each, max_size=3) | st.dictionaries(words, each, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(words, values, max_size=3))
def test_yaml_is_read_back_as_it_was(value):
    assert yaml.safe_load(to_yaml(value)) == value


# --------------------------------------------------------------------------------------------------------------
# Slices, capacity, arguments


# Accelerator label, hosts and chips of a host, from Google's tables of TPU machine types.
@pytest.mark.parametrize(
    "name, accelerator, hosts, chips",
    [
        ("v4:2x2x1", "tpu-v4-podslice", 1, 4),
        ("v4:4x4x8", "tpu-v4-podslice", 32, 4),
        ("v5e:1x1", "tpu-v5-lite-podslice", 1, 1),
        ("v5e:2x2", "tpu-v5-lite-podslice", 1, 4),
        ("v5e:2x4", "tpu-v5-lite-podslice", 1, 8),
        ("v5e:4x4", "tpu-v5-lite-podslice", 4, 4),
        ("v5e:16x16", "tpu-v5-lite-podslice", 64, 4),
        ("v5p:2x2x2", "tpu-v5p-slice", 2, 4),
        ("v6e:4x8", "tpu-v6e-slice", 8, 4),
        ("7x:4x4x4", "tpu7x", 16, 4),
    ],
)
def test_a_slice_has_one_pod_for_each_host(name, accelerator, hosts, chips):
    applied = job_set("--topology", name)
    assert job_spec(applied)["parallelism"] == job_spec(applied)["completions"] == hosts
    assert pod_spec(applied)["containers"][0]["resources"]["limits"] == {"google.com/tpu": chips}
    labels = {"gke-tpu-accelerator": accelerator, "gke-tpu-topology": name.split(":")[1]}
    assert pod_spec(applied)["nodeSelector"] == {f"cloud.google.com/{key}": value for key, value in labels.items()}
    exclusive = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
    assert applied["metadata"].get("annotations") == (exclusive if hosts > 1 else None)


@pytest.mark.parametrize(
    "options, message",
    [
        (("--topology", "v5e"), "expected a chip and the sizes of a slice, such as v4:4x4x4, v5e:4x4"),
        (("--topology", "v3:4x4"), "expected a chip and the sizes"),
        (("--topology", "v5e:4x4x4"), "v5e has the slices 1x1, 2x2"),
        (("--topology", "v5e:4x2"), "v5e has the slices 1x1, 2x2"),
        (("--topology", "v5p:4x4"), "v5p has the slices 2x2x1"),
        (("--topology", "v5p:2x2x8"), "v5p has the slices 2x2x1"),
        (("--slices", "0"), "--slices must be positive"),
        (("--slices", "2", "--topology", "v5e:2x4"), "GKE connects only slices of several hosts"),
        (("--namespace", "Team"), "--namespace 'Team': expected lower-case letters"),
        (("--queue", "a b"), "--queue 'a b'"),
        (("--reservation", "projects/p/reservations/r"), "--reservation"),
        (("--secret", "HF_TOKEN"), "--secret"),
        (("--image", "us-docker.pkg.dev/p/r/image:latest"), "a repository without a tag"),
        (("--image", "image"), "a repository without a tag"),
        (("--runs", "runs"), "expected a bucket"),
    ],
)
def test_invalid_options(options, message):
    with pytest.raises(LaunchError, match=re.escape(message)):
        job_of("--topology", "v5e:4x4", *options)


def test_names_of_pods_have_at_most_63_characters():
    words = ("--topology", "v5e:16x16", "--slices", "100")
    with pytest.raises(LaunchError, match="use at most 45 characters"):
        job_of(*words, name="a" * 46)
    applied = job_set(*words, name="a" * 45)
    (replicated,) = applied["spec"]["replicatedJobs"]
    last = f"{replicated['replicas'] - 1}-{job_spec(applied)['completions'] - 1}"
    assert len(f"{'a' * 45}-{replicated['name']}-{last}-abcde") == 63


def test_capacity_is_selected_by_labels_of_nodes():
    def added(*words: str) -> dict[str, str]:
        plain, chosen = (pod_spec(job_set("--topology", "v5e:4x4", *each))["nodeSelector"] for each in ((), words))
        return dict(chosen.items() - plain.items())

    assert added("--spot") == {"cloud.google.com/gke-spot": "true"}
    assert added("--flex-start") == {"cloud.google.com/gke-flex-start": "true"}
    reservation = {"cloud.google.com/reservation-name": "r", "cloud.google.com/reservation-affinity": "specific"}
    assert added("--reservation", "r") == reservation
    with pytest.raises(SystemExit):
        job_of("--topology", "v5e:4x4", "--spot", "--flex-start")


@pytest.mark.parametrize(
    "options, taints",
    [
        ((), []),
        (("--spot",), ["gke-spot", "gke-provisioning"]),
        (("--flex-start",), ["gke-flex-start", "gke-provisioning", "gke-queued"]),
        (("--reservation", "r"), ["reservation-name"]),
    ],
)
def test_taints_of_the_chosen_capacity_are_tolerated(options, taints):
    tolerations = pod_spec(job_set("--topology", "v5e:4x4", *options)).get("tolerations", [])
    assert tolerations == [{"key": f"cloud.google.com/{taint}", "operator": "Exists"} for taint in taints]


def test_a_queued_job_is_suspended_until_kueue_admits_it():
    plain, queued = job_set("--topology", "v5e:4x4"), job_set("--topology", "v5e:4x4", "--queue", "team-queue")
    assert "suspend" not in plain["spec"] and queued["spec"]["suspend"] is True
    assert queued["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "team-queue"}


def test_arguments_arrive_unchanged():
    overrides = (*AWKWARD, "$(HOME)", "$$(HOME)", "$", "$$")
    (container,) = pod_spec(job_set("--topology", "v5e:4x4", overrides=overrides))["containers"]
    # How Kubernetes expands arguments: $$ becomes $, and $(NAME) the variable's value.
    expanded = [
        re.sub(r"\$\$|\$\((\w+)\)", lambda m: "$" if m[0] == "$$" else "expanded", word)
        for word in container["command"]
    ]
    named = ("--distributed", "--name", "demo", "--runs", "gs://bucket/runs")
    assert expanded == ["prompt-jax", "train", "configs/tiny.py", *named, *overrides]


def test_a_secret_is_named_and_not_contained():
    (container,) = pod_spec(job_set("--topology", "v5e:4x4", "--secret", "tokens"))["containers"]
    assert container["envFrom"] == [{"secretRef": {"name": "tokens"}}]


@pytest.mark.parametrize("slices", [1, 2])
def test_jax_finds_the_other_hosts(slices, monkeypatch):
    """With the variables that GKE gives a pod, JAX numbers the processes of all slices."""
    applied = job_set("--topology", "v5e:4x4", "--slices", str(slices))
    (replicated,) = applied["spec"]["replicatedJobs"]
    hosts = job_spec(applied)["completions"]
    cluster = cloud_tpu_cluster.GkeTpuCluster
    monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
    monkeypatch.setattr(cluster, "wait_for_coordinator", lambda *_: None)
    monkeypatch.setattr(cloud_tpu_cluster, "get_tpu_env_value", os.environ.get)  # without a metadata server
    numbers, addresses = [], set()
    for part in range(replicated["replicas"]):
        names = [f"demo-{replicated['name']}-{part}-{host}.demo" for host in range(hosts)]
        monkeypatch.setenv("TPU_WORKER_HOSTNAMES", ",".join(names))
        if slices > 1:
            monkeypatch.setenv("MEGASCALE_NUM_SLICES", str(replicated["replicas"]))
            monkeypatch.setenv("MEGASCALE_SLICE_ID", str(part))
            monkeypatch.setenv("MEGASCALE_COORDINATOR_ADDRESS", f"demo-{replicated['name']}-0-0.demo")
        for host in range(hosts):
            monkeypatch.setenv("TPU_WORKER_ID", str(host))
            assert cluster.is_env_present() and cluster.get_process_count() == slices * hosts
            numbers.append(cluster.get_process_id())
            addresses.add(cluster.get_coordinator_address(10, None))
    assert numbers == list(range(slices * hosts))
    assert {address.split(":")[0] for address in addresses} == {"demo-slice-0-0.demo"}


# --------------------------------------------------------------------------------------------------------------
# Restarts


def action(applied: dict[str, Any], status: int, disrupted: bool = False) -> str:
    """Return what JobSet does after a pod failed, by the documented rules of Job and JobSet."""
    reason, message = "BackoffLimitExceeded", "Job has reached the specified backoff limit"
    pod = "demo-slice-0-1-x2v75"
    for index, rule in enumerate(job_spec(applied)["podFailurePolicy"]["rules"]):
        what, codes = None, rule.get("onExitCodes")
        if codes and (status in codes["values"]) == (codes["operator"] == "In"):
            what = f"Container {codes['containerName']} for pod default/{pod} failed with exit code {status}"
        elif disrupted and {"type": "DisruptionTarget", "status": "True"} in rule.get("onPodConditions", []):
            what = f"Pod default/{pod} has condition DisruptionTarget"
        if what:
            reason, message = "PodFailurePolicy", f"{what} matching {rule['action']} rule at index {index}"
            break
    for rule in applied["spec"]["failurePolicy"]["rules"]:
        patterns = rule.get("onJobFailureMessagePatterns", [""])
        if reason in rule["onJobFailureReasons"] and any(re.search(pattern, message) for pattern in patterns):
            return rule["action"]
    return "RestartJobSet"


def test_restarts_follow_the_exit_statuses():
    applied = job_set("--topology", "v5e:4x4")
    assert action(applied, PREEMPTED) == "RestartJobSetAndIgnoreMaxRestarts"
    assert {action(applied, status, disrupted=True) for status in (*RESTARTABLE, 1)} == {action(applied, PREEMPTED)}
    counted = RESTARTABLE.keys() - {PREEMPTED}
    assert {status for status in range(1, 256) if action(applied, status) == "RestartJobSet"} == counted
    final = {status for status in range(1, 256) if action(applied, status) == "FailJobSet"}
    assert final == set(range(1, 256)) - RESTARTABLE.keys() and final > FINAL.keys() - {0}
    assert job_spec(applied)["backoffLimit"] == 0 and pod_spec(applied)["restartPolicy"] == "Never"
    assert applied["spec"]["failurePolicy"]["maxRestarts"] == 10


# --------------------------------------------------------------------------------------------------------------
# Launches


class Cluster:
    """The state of the kubectl stand-in, and a checkout that uses it."""

    def __init__(self, checkout: Checkout, folder: Path):
        self.checkout, self.folder = checkout, folder
        folder.mkdir()
        self.write(jobset=None, status={}, calls=[])
        checkout.env |= {"CLUSTER": str(folder), "PATH": f"{STAND_INS}:{os.environ['PATH']}"}

    @property
    def state(self) -> dict[str, Any]:
        return json.loads((self.folder / "state.json").read_text())

    def write(self, **state: Any) -> None:
        before = self.state if (self.folder / "state.json").exists() else {}
        (self.folder / "state.json").write_text(json.dumps(before | state))

    def finish(self, state: str, message: str = "") -> None:
        status = {"terminalState": state, "conditions": [{"type": state, "status": "True", "message": message}]}
        self.write(jobset=self.state["jobset"] | {"status": status})

    def calls(self, verb: str) -> list[list[str]]:
        return [call for call in self.state["calls"] if verb in call]

    def launch(self, *words: str, code: int = 0):
        return self.checkout.launch("gke", *GKE, *words, *DEMO, code=code)


@pytest.fixture
def cluster(checkout, tmp_path):
    return Cluster(checkout, tmp_path / "cluster")


def test_a_launch_builds_the_image_and_applies_the_manifest(cluster):
    done = cluster.launch("--namespace", "team")
    tag = f"us-docker.pkg.dev/p/r/image:{cluster.checkout.git('rev-parse', 'HEAD')[:12]}"
    built, pushed = (cluster.folder / "docker").read_text().splitlines()
    code = cluster.checkout.state / "demo" / "code"
    assert built == f"build --platform=linux/amd64 --tag={tag} {code}" and pushed == f"push {tag}"
    applied = cluster.state["jobset"]
    assert pod_spec(applied)["containers"][0]["image"] == tag and applied["metadata"]["namespace"] == "team"
    assert "demo is a JobSet of cluster" in done.stderr and cluster.checkout.job("demo")["state"] == "submitted"
    assert all(call[:2] == ["--context=cluster", "--namespace=team"] for call in cluster.state["calls"])


def test_cloud_build_needs_no_docker(cluster):
    printed = cluster.launch("--dry-run", "--cloud-build").stdout
    assert "gcloud builds submit --tag=us-docker.pkg.dev/p/r/image:" in printed and "docker build" not in printed


def test_the_printed_shell_does_the_same_as_a_launch(cluster):
    printed = cluster.checkout.launch("gke", "--dry-run", *GKE, *DEMO, *AWKWARD).stdout
    assert not cluster.state["calls"] and not cluster.checkout.state.exists()
    subprocess.run(
        ["bash", "-e"], input=printed, text=True, check=True, env=cluster.checkout.env, cwd=cluster.checkout.folder
    )
    by_hand = cluster.state["jobset"]
    cluster.write(jobset=None)
    cluster.checkout.launch("gke", *GKE, *DEMO, *AWKWARD)
    assert cluster.state["jobset"] == by_hand


def test_a_running_job_is_not_launched_again(cluster):
    cluster.launch()
    refused = cluster.launch(code=1).stderr
    assert "demo is starting, 0 of 1 slices are ready; stop it with python -m tools.launcher stop demo" in refused
    cluster.finish("Failed")
    cluster.launch()
    assert len(cluster.calls("apply")) == 2 and len(cluster.calls("delete")) == 1


def test_a_job_set_of_others_stays(cluster):
    cluster.launch()
    shutil.rmtree(cluster.checkout.state)
    assert "this launcher did not create: choose another name" in cluster.launch(code=1).stderr
    cluster.finish("Completed")
    assert "this launcher did not create" in cluster.launch(code=1).stderr and not cluster.calls("delete")


def test_another_cluster_is_refused_until_the_job_is_deleted(cluster):
    cluster.launch()
    refused = cluster.launch("--context", "other", code=1).stderr
    assert "demo was launched with --context cluster, not other" in refused
    assert "--namespace default, not team" in cluster.launch("--namespace", "team", code=1).stderr
    cluster.checkout.launch("delete", "demo")
    cluster.launch("--context", "other")


def test_list_shows_the_state_of_the_job_set(cluster):
    def shown() -> str:
        return cluster.checkout.launch("list").stdout.rsplit("  ", 1)[1].strip()

    cluster.launch()
    assert shown() == "starting, 0 of 1 slices are ready"
    ready = {"replicatedJobsStatus": [{"name": "slice", "ready": 1}], "restarts": 2}
    cluster.write(jobset=cluster.state["jobset"] | {"status": ready})
    assert shown() == "running, restarted 2 times"
    suspended = cluster.state["jobset"]
    cluster.write(jobset=suspended | {"spec": suspended["spec"] | {"suspend": True}})
    assert shown() == "suspended, and waits for its queue"
    cluster.finish("Failed", "jobset failed due to FailJobSet")
    assert shown() == "failed: jobset failed due to FailJobSet"
    cluster.finish("Completed")
    assert shown() == "done"
    cluster.write(jobset=None)
    assert shown() == "not on the cluster, last submitted"
    (cluster.folder / "state.json").write_text("broken")
    assert "unknown: ended with 1: kubectl" in cluster.checkout.launch("list").stdout


def test_logs_are_those_of_a_slice_and_host(cluster):
    cluster.launch("--slices", "2")
    assert cluster.checkout.launch("logs", "--worker", "6", "demo").stdout == (
        "the log of jobset.sigs.k8s.io/jobset-name=demo,jobset.sigs.k8s.io/job-index=1,"
        "batch.kubernetes.io/job-completion-index=2\n"
    )
    assert "demo has 8 workers" in cluster.checkout.launch("logs", "--worker", "8", "demo", code=1).stderr


def test_stop_and_delete(cluster):
    cluster.launch()
    cluster.checkout.launch("stop", "demo")
    assert cluster.state["jobset"] is None
    assert cluster.calls("delete")[0][2:] == ["delete", "jobset", "demo", "--ignore-not-found", "--cascade=foreground"]
    cluster.launch()
    cluster.checkout.launch("delete", "demo")
    assert cluster.state["jobset"] is None and not (cluster.checkout.state / "demo").exists()


def test_nothing_is_applied_if_the_image_cannot_be_built(cluster):
    docker = cluster.folder / "bin" / "docker"
    docker.parent.mkdir()
    docker.write_text("#!/bin/bash\nexit 1\n")
    docker.chmod(0o755)
    path = f"{docker.parent}:{cluster.checkout.env['PATH']}"
    done = cluster.checkout.launch("gke", *GKE, *DEMO, code=1, PATH=path)
    assert "docker build" in done.stderr and cluster.state["jobset"] is None
    assert not (cluster.checkout.state / "demo" / "job.json").exists()


def test_the_error_shows_an_answer_that_is_not_a_job_set(monkeypatch):
    job = job_of("--topology", "v5e:4x4")
    for answer in ("No resources", "[1]", "{}"):
        monkeypatch.setattr(gke.Command, "output", lambda _, answer=answer: answer)
        with pytest.raises(LaunchError, match="kubectl printed no JobSet"):
            gke.find(job)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_the_real_kubectl_accepts_the_arguments(tmp_path):
    """Only the connection fails: nothing listens on the port."""
    server = {"server": "http://127.0.0.1:9"}
    config = {
        "clusters": [{"name": "c", "cluster": server}],
        "contexts": [{"name": "cluster", "context": {"cluster": "c"}}],
    }
    (tmp_path / "config").write_text(json.dumps({"apiVersion": "v1", "kind": "Config", **config}))
    (tmp_path / "jobset.yaml").write_text(to_yaml(job_set("--topology", "v5e:4x4")))
    job = job_of("--topology", "v5e:4x4")
    job.ids = {"jobset": "demo"}
    wrong = gke.kubectl(job, "get", "jobset", "--no-such-flag")
    apply = gke.kubectl(job, "apply", f"--filename={tmp_path / 'jobset.yaml'}")
    get = gke.kubectl(job, "get", "jobset", job.name, "--ignore-not-found", "--output=json")
    errors = []
    for command in (wrong, apply, get, gke.logs(job, 0), gke.delete_job_set(job)):
        env = os.environ | {"KUBECONFIG": str(tmp_path / "config"), "HOME": str(tmp_path)}
        errors.append(subprocess.run(command.argv, env=env, capture_output=True, text=True).stderr)
    assert "unknown flag: --no-such-flag" in errors[0]
    assert all("127.0.0.1:9" in error and "unknown flag" not in error for error in errors[1:]), errors


# --------------------------------------------------------------------------------------------------------------
# The image and the documentation


def test_the_image_has_what_a_tpu_vm_has():
    text = (ROOT / "Dockerfile").read_text()
    worker = (ROOT / "tools" / "launcher" / "worker.sh").read_text()
    (python,) = re.findall(r"^FROM python:([\d.]+)-slim$", text, re.M)
    assert f"--python {python} " in worker and re.findall(r"uv==[\d.]+", text) == re.findall(r"uv==[\d.]+", worker)
    extras = re.findall(r"--extra (\w+)", text)
    assert f"'./code[{','.join(extras)}]'" in worker and "--constraint requirements.lock" in text
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(extras) <= known.keys()
    copied = [name for line in re.findall(r"^COPY (.+) \S+$", text, re.M) for name in line.split()]
    assert copied and all((ROOT / name).exists() for name in copied)


def test_the_documented_dry_run_is_what_is_printed(monkeypatch, capsys):
    (block,) = [each for each in blocks(ROOT / "docs" / "tpu_pods.md") if "tools.launcher gke --dry-run" in each.text]
    command, _, output = re.sub(r"\\\n\s*", "", block.text).removeprefix("$ ").partition("\n")
    (commit,) = set(re.findall(r"\b[0-9a-f]{40}\b", output))
    monkeypatch.setattr(jobs, "_commit", lambda allow_dirty: (commit, False))
    monkeypatch.setattr(jobs, "_committed_path", lambda config, commit: config)
    monkeypatch.setattr(jobs, "state_folder", lambda: Path("/home/me/.local/state/prompt_jax/jobs"))
    monkeypatch.setattr(jobs, "ROOT", Path("/home/me/prompt_jax"))
    assert __main__.main(command.split()[3:]) == 0
    assert capsys.readouterr().out == output


@pytest.mark.parametrize("name", ["v5e:4x4", "v5p:4x4x8"])
def test_topologies_are_named_as_in_the_planner(name):
    from tools.planner.chips import CHIPS

    chip, sizes = name.split(":")
    assert len(sizes.split("x")) == CHIPS[chip].axes and parse_slice(name).topology == sizes
