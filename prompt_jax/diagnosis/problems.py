"""Known incompatibilities and other problems of an installation."""

import dataclasses
import platform
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

from packaging.requirements import Requirement

from prompt_jax.diagnosis.caches import Cache
from prompt_jax.diagnosis.hub import HubAccess
from prompt_jax.diagnosis.machine import Probe

Severity = Literal["error", "warning"]


@dataclasses.dataclass(frozen=True)
class Problem:
    """Something that is wrong.

    Attributes:
      severity: whether it prevents work (`error`), or only restricts it.
      reason: what is wrong and why.
      remedy: what to do.
    """

    severity: Severity
    reason: str
    remedy: str


@dataclasses.dataclass(frozen=True)
class Incompatibility:
    """Versions that do not work together. It applies if all `versions` hold; `python` is a version like a package's."""

    versions: tuple[str, ...]
    problem: Problem


INCOMPATIBLE = (
    Incompatibility(
        ("jax>=0.11.1", "flax<0.12.9"),
        Problem("warning", "flax.nnx before 0.12.9 does not work with jax 0.11.1 and later", "pip install -U flax"),
    ),
    Incompatibility(
        ("jax>=0.11.2", "flax==0.12.9"),
        Problem("warning", "flax.nnx 0.12.9 does not work with jax 0.11.2 and later", "pip install -U flax"),
    ),
    Incompatibility(
        ("transformers>=5.24", "peft<=0.21.2"),
        Problem(
            "warning",
            "with transformers 5.24 and later, PEFT up to 0.21.2 generates wrong tokens with prompts and prefixes; "
            "prompt_jax does not use PEFT, so only comparisons with it are affected",
            "pip install transformers==5.23.0",
        ),
    ),
    Incompatibility(
        ("jax-cuda12-plugin", "jax-cuda13-plugin"),
        Problem(
            "warning",
            "JAX's plugins for CUDA 12 and for CUDA 13 are both installed, and only one is used",
            "pip uninstall jax-cuda12-plugin jax-cuda12-pjrt",
        ),
    ),
    Incompatibility(
        ("python>=3.14",),
        Problem(
            "warning",
            "packages of the extras demo and tasks do not exist for Python 3.14",
            "for these extras, use Python 3.11 to 3.13",
        ),
    ),
)


@dataclasses.dataclass(frozen=True)
class RemovedFlag:
    """An XLA flag that some versions of a package do not know. They end the process when they see it."""

    flag: str
    version: str


REMOVED_FLAGS = (RemovedFlag("xla_cpu_use_fusion_emitters", "jaxlib>=0.11.1"),)

_REMOVE_FLAG = "remove it from XLA_FLAGS"
_CUDA_PLUGINS = ("jax-cuda12-plugin", "jax-cuda13-plugin", "jax-cuda12-pjrt", "jax-cuda13-pjrt")


def incompatibilities(versions: Mapping[str, str]) -> Iterator[Problem]:
    """Yield the known incompatibilities of installed versions. Packages that are not installed are absent."""
    for row in INCOMPATIBLE:
        if all(_holds(text, versions) for text in row.versions):
            yield row.problem
    jaxlib = versions.get("jaxlib")
    for plugin in _CUDA_PLUGINS:
        if plugin in versions and jaxlib and _numbers(versions[plugin]) != _numbers(jaxlib):
            reason = f"{plugin} {versions[plugin]} does not fit jaxlib {jaxlib}; JAX ignores it and uses the CPU"
            yield Problem("warning", reason, "pip install -U '.[cuda]'")


def flag_problems(flags: str, versions: Mapping[str, str]) -> Iterator[Problem]:
    """Yield a problem for each flag in XLA_FLAGS that the installed versions do not know."""
    used = set(re.findall(r"--(\w+)", flags))
    for row in REMOVED_FLAGS:
        if row.flag in used and _holds(row.version, versions):
            reason = f"XLA_FLAGS has --{row.flag}, which {row.version} does not know; it ends the process"
            yield Problem("error", reason, _REMOVE_FLAG)


def package_problems(conflicts: Iterable[tuple[str, str]]) -> Iterator[Problem]:
    """Yield a problem for each requirement that is not met. Those of prompt_jax itself are errors."""
    for package, lacking in conflicts:
        is_ours = package == "prompt-jax"
        remedy = "pip install ." if is_ours else f"pip install -U {package} {re.split('[^A-Za-z0-9_.-]', lacking)[0]}"
        yield Problem("error" if is_ours else "warning", f"{package} needs {lacking}", remedy)


def device_problems(probe: Probe, present: set[str], environment: Mapping[str, str]) -> Iterator[Problem]:
    """Yield what is wrong with the devices.

    Args:
      probe: what JAX finds.
      present: what the system has, from `accelerators`.
      environment: the environment variables.
    """
    for name, error in probe.imports.items():
        yield Problem("error", f"{name} cannot be imported ({error.splitlines()[0]})", "pip install -U .")
    if probe.error is not None:
        if unknown := re.search(r"[Uu]nknown flags? in XLA_FLAGS: (.*)", probe.error):
            reported = {f"--{row.flag}" for row in REMOVED_FLAGS}  # by `flag_problems`
            if flags := [flag for flag in unknown[1].split() if flag.partition("=")[0] not in reported]:
                yield Problem("error", f"XLA_FLAGS has {' '.join(flags)}, which jaxlib does not know", _REMOVE_FLAG)
            return
        chosen = environment.get("JAX_PLATFORMS")
        wanted = f" of JAX_PLATFORMS={chosen}" if chosen else ""
        remedy = "unset JAX_PLATFORMS" if chosen else "run: python -c 'import jax; print(jax.devices())'"
        yield Problem("error", f"JAX finds no device{wanted} ({probe.error.splitlines()[0]})", remedy)
        return
    for platform_name in sorted(present - {device["platform"] for device in probe.devices}):
        if probe.devices:
            yield _unused(platform_name, environment)


def _unused(platform_name: str, environment: Mapping[str, str]) -> Problem:
    name, extra = {"gpu": ("an NVIDIA GPU", "cuda"), "tpu": ("a TPU", "tpu")}[platform_name]
    reason = f"this machine has {name}, but JAX does not use it"
    if chosen := environment.get("JAX_PLATFORMS"):
        return Problem("warning", f"{reason}, since JAX_PLATFORMS is {chosen}", "unset JAX_PLATFORMS")
    remedy = f"pip install '.[{extra}]'"
    if platform_name == "gpu" and environment.get("LD_LIBRARY_PATH"):
        remedy += "; if it is installed, unset LD_LIBRARY_PATH, which may name other CUDA libraries"
    return Problem("warning", reason, remedy)


def place_problems(hub: HubAccess, caches: Iterable[Cache]) -> Iterator[Problem]:
    """Yield what is wrong with the Hub and with the caches."""
    if hub.reachable is False:
        yield Problem(
            "warning",
            f"{hub.endpoint} cannot be reached ({hub.reason}); models in the cache and in folders work",
            "check the network and the proxy, or set HF_HUB_OFFLINE=1",
        )
    for cache in caches:
        if not cache.writable:
            reason = f"the folder {cache.folder} ({cache.name}) is not writable"
            yield Problem("warning", reason, f"set {cache.variable} to another folder")


def system_problems() -> Iterator[Problem]:
    """Yield what is wrong with the operating system."""
    if platform.system() == "Windows":
        yield Problem("error", "runs are locked with fcntl, which Windows does not have", "use Linux in WSL 2")


def _holds(text: str, versions: Mapping[str, str]) -> bool:
    requirement = Requirement(text)
    version = versions.get(requirement.name)
    return version is not None and requirement.specifier.contains(version, prereleases=True)


def _numbers(version: str) -> list[int]:
    """Return the numbers at the start of a version, which JAX compares."""
    match = re.match(r"[0-9]+(?:\.[0-9]+)*", version)
    return [int(number) for number in match[0].split(".")] if match else []
