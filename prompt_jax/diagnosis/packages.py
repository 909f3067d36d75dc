"""Installed packages: their versions, and the requirements of prompt_jax that they do not meet."""

import importlib.metadata
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import prompt_jax

NAME = "prompt-jax"


def installed_version(package: str) -> str | None:
    """Return the version of a package, or None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def requirements() -> dict[str, list[Requirement]]:
    """Return the requirements of prompt_jax by extra; those of the package itself under "".

    A checkout's pyproject.toml has them too. It is read first, because an editable installation records those of the
    day when it was installed.
    """
    path = Path(prompt_jax.__file__).parents[1] / "pyproject.toml"
    project = tomllib.loads(path.read_text())["project"] if path.exists() else {}
    if project.get("name") == NAME:
        lists = {"": project["dependencies"], **project["optional-dependencies"]}
        every = {extra: [Requirement(text) for text in texts] for extra, texts in lists.items()}
        return {extra: [each for each in some if _applies(each)] for extra, some in every.items()}
    if installed_version(NAME) is None:
        return {"": []}
    extras = importlib.metadata.metadata(NAME).get_all("Provides-Extra") or []
    return {extra: list(_requirements_of(NAME, extra)) for extra in ("", *extras)}


def unmet(requirement: Requirement) -> list[str]:
    """Return what is missing or too old for a requirement and for its extras, such as `onnx` or `jax>=0.10.2 (0.9 is
    installed)`."""
    version = installed_version(requirement.name)
    if version is None:
        return [requirement.name]
    if not requirement.specifier.contains(version, prereleases=True):
        return [f"{requirement.name}{requirement.specifier} ({version} is installed)"]
    inner = (each for extra in requirement.extras for each in _requirements_of(requirement.name, extra))
    return [text for each in inner for text in unmet(each)]


def missing_by_extra(every: dict[str, list[Requirement]]) -> dict[str, list[str]]:
    """Return for each extra what it lacks. An extra that has all its packages has an empty list.

    Args:
      every: the result of `requirements`.
    """

    def expand(extra: str) -> Iterator[Requirement]:
        for requirement in every[extra]:
            if requirement.name == NAME:  # an extra that consists of others
                for other in requirement.extras:
                    yield from expand(other)
            else:
                yield requirement

    return {extra: _unique(text for each in expand(extra) for text in unmet(each)) for extra in every if extra}


def conflicts(needed: Iterable[Requirement]) -> Iterator[tuple[str, str]]:
    """Yield (package, what it lacks) for each requirement that is not met, in prompt_jax and in what it needs.

    Args:
      needed: the requirements of prompt_jax itself.
    """
    seen, waiting = {NAME}, [(NAME, list(needed))]
    while waiting:
        package, some = waiting.pop(0)
        for requirement in some:
            lacking = unmet(requirement)
            yield from ((package, text) for text in lacking)
            name = canonicalize_name(requirement.name)
            if not lacking and name not in seen:
                seen.add(name)
                waiting.append((name, list(_requirements_of(name, ""))))


def _requirements_of(package: str, extra: str) -> Iterator[Requirement]:
    """Yield what an installed package needs on this machine; with an extra, only what that adds."""
    for text in importlib.metadata.requires(package) or []:
        requirement = Requirement(text)
        if _applies(requirement, extra) and not (extra and _applies(requirement)):
            yield requirement


def _applies(requirement: Requirement, extra: str = "") -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _unique(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(texts))
