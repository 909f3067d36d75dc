"""`prompt-jax doctor`."""

import dataclasses
import os
import platform
import textwrap
from collections import Counter
from collections.abc import Iterator
from typing import Any, ClassVar

from prompt_jax.cli.common import print_escaped
from prompt_jax.report.terminal import Activity

# Packages whose versions are shown. The others are shown if they are installed.
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "huggingface-hub", "numpy")
_OTHERS = ("peft", "torch", "jax-cuda12-plugin", "jax-cuda13-plugin", "jax-cuda12-pjrt", "jax-cuda13-pjrt", "libtpu")

# Environment variables that change what runs, and hold no secret.
VARIABLES = (
    *("JAX_PLATFORMS", "JAX_ENABLE_X64", "JAX_DEFAULT_MATMUL_PRECISION", "XLA_FLAGS", "LIBTPU_INIT_ARGS"),
    *("XLA_PYTHON_CLIENT_PREALLOCATE", "XLA_PYTHON_CLIENT_MEM_FRACTION", "CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH"),
    *("HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "TFDS_DATA_DIR", "WANDB_MODE"),
    *("PROMPT_JAX_CACHE", "PROMPT_JAX_DATA"),
)


@dataclasses.dataclass(frozen=True)
class Doctor:
    """Check the installation: versions, devices, extras, caches, access to the Hub, and known incompatibilities.

    The exit status is 1 if a problem prevents work."""

    examples: ClassVar[tuple[str, ...]] = ("prompt-jax doctor",)

    json: bool = False
    """Print JSON, for bug reports and scripts."""


def run(args: Doctor) -> int:
    from prompt_jax.storage.json_text import json_text

    with Activity("checking the installation"):
        findings = diagnose()
    print_escaped(json_text(findings, indent=2) if args.json else "\n".join(_text(findings)))
    return 1 if any(problem["severity"] == "error" for problem in findings["problems"]) else 0


def diagnose() -> dict[str, Any]:
    """Return everything that `--json` prints."""
    from prompt_jax.diagnosis import machine, packages, problems
    from prompt_jax.diagnosis.caches import caches
    from prompt_jax.diagnosis.hub import HubProbe

    devices, hub = machine.DeviceProbe(), HubProbe()  # both take seconds, at the same time as the rest
    required = packages.requirements()
    names = (*PACKAGES, *_OTHERS)
    versions = {name: version for name in names if (version := packages.installed_version(name)) is not None}
    versions["python"] = platform.python_version()
    conflicts, folders = list(packages.conflicts(required[""])), caches()
    access, probe = hub.result(), devices.result()
    detected = [
        *problems.system_problems(),
        *problems.package_problems(conflicts),
        *problems.incompatibilities(versions),
        *problems.flag_problems(os.environ.get("XLA_FLAGS", ""), versions),
        *problems.device_problems(probe, machine.accelerators(), os.environ),
        *problems.place_problems(access, folders),
    ]
    return {
        "versions": {packages.NAME: packages.installed_version(packages.NAME), **versions},
        "host": dataclasses.asdict(machine.host()),
        "devices": probe.devices,
        "extras": {
            extra: {"missing": missing, "install": f"pip install '.[{extra}]'"}
            for extra, missing in packages.missing_by_extra(required).items()
        },
        "caches": [dataclasses.asdict(folder) for folder in folders],
        "hub": dataclasses.asdict(access),
        "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "problems": [dataclasses.asdict(problem) for problem in detected],
    }


# --------------------------------------------------------------------------------------------------------------
# Text


def _text(findings: dict[str, Any]) -> Iterator[str]:
    """Yield the lines for a terminal: a column of names, and the findings."""
    versions, host, hub = findings["versions"], findings["host"], findings["hub"]
    version = "not installed" if versions["prompt-jax"] is None else versions["prompt-jax"]
    yield from _rows("prompt-jax", [f"{version}, with Python {versions['python']} on {host['system']}"])
    listed = [f"{name} {versions[name]}" for name in versions if name not in ("prompt-jax", "python")]
    yield from _rows("packages", textwrap.wrap(", ".join(listed), 88))
    yield from _rows("devices", [*_device_lines(findings["devices"])])
    memory = [_gigabytes(host["memory"])] if host["memory"] else []
    memory += [f"{_gigabytes(host['available'])} available"] if host["available"] else []
    yield from _rows("host", [", ".join([f"{host['cores']:g} cores", *memory])])
    yield from _rows("extras", [*_extra_lines(findings["extras"])])
    yield from _rows("caches", [*_cache_lines(findings["caches"])])
    access = {True: "reachable", False: "not reachable", None: "not asked, since HF_HUB_OFFLINE is set"}
    token = {True: "there is a token", False: "no token", None: "token not known"}
    yield from _rows("Hub", [f"{hub['endpoint']}, {access[hub['reachable']]}, {token[hub['token']]}"])
    yield from _rows("variables", [f"{name}={value}" for name, value in findings["environment"].items()])
    yield ""
    if not findings["problems"]:
        yield "No problem found."
    for problem in findings["problems"]:
        yield from textwrap.wrap(f"{problem['severity']}: {problem['reason']}", 100, subsequent_indent="  ")
        yield from textwrap.wrap(f"remedy: {problem['remedy']}", 100, initial_indent="  ", subsequent_indent="    ")


def _rows(title: str, lines: list[str]) -> Iterator[str]:
    for number, line in enumerate(lines):
        yield f"{title if number == 0 else '':<12}{line}"


def _device_lines(devices: list[dict[str, Any]]) -> Iterator[str]:
    if not devices:
        yield "none"
    for (name, kind, memory), count in Counter(tuple(device.values()) for device in devices).items():
        size = f", {_gigabytes(memory)} each" if memory else ""
        yield f"{count} x {name}" + (f" ({kind})" if kind != name else "") + size


def _extra_lines(extras: dict[str, Any]) -> Iterator[str]:
    width = max(map(len, extras), default=0) + 2
    for name, extra in extras.items():
        missing = extra["missing"]
        shown = ", ".join(missing[:4]) + (f" and {len(missing) - 4} more" if len(missing) > 4 else "")
        yield f"{name:<{width}}" + (f"missing {shown}: {extra['install']}" if missing else "installed")


def _cache_lines(caches: list[dict[str, Any]]) -> Iterator[str]:
    for cache in caches:
        size = ("" if cache["complete"] else "at least ") + _gigabytes(cache["size"])
        free = f", {_gigabytes(cache['free'])} free" if cache["free"] is not None else ""
        yield f"{cache['name']:<19}{cache['folder']} ({size}{free}{'' if cache['writable'] else ', not writable'})"


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
