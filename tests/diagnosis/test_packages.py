"""Requirements that are not met, of invented packages."""

import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import prompt_jax
from prompt_jax.diagnosis import packages

ROOT = Path(__file__).parents[2]


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Return a function that makes the metadata of an installed package."""
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])

    def make(name: str, version: str, *needed: str, extras: tuple[str, ...] = ()) -> None:
        folder = tmp_path / f"{name}-{version}.dist-info"
        folder.mkdir()
        lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
        lines += [f"Provides-Extra: {extra}" for extra in extras] + [f"Requires-Dist: {each}" for each in needed]
        (folder / "METADATA").write_text("\n".join(lines) + "\n")

    return make


def test_unmet(install):
    install("zzlib", "1.5", "zzgpu==1.5; extra == 'gpu'", "zzall; extra != 'gpu'", "numpy>=9999", extras=("gpu",))
    assert packages.unmet(Requirement("zznone")) == ["zznone"]
    assert packages.unmet(Requirement("zzlib>=1")) == []
    assert packages.unmet(Requirement("zzlib>=2")) == ["zzlib>=2 (1.5 is installed)"]
    assert packages.unmet(Requirement("zzlib[gpu]")) == ["zzgpu"], "as jax[cuda13] without its plugin"
    install("zzgpu", "1.4")
    assert packages.unmet(Requirement("zzlib[gpu]>=1")) == ["zzgpu==1.5 (1.4 is installed)"]


def test_conflicts(install):
    """Those of packages that prompt_jax needs count too, but not those of packages that it does not need."""
    install("zzmid", "1.0", "zzlow>=2", "zzmid", "zzwin; sys_platform == 'win32'")
    install("zzlow", "1.0", "zznone")
    install("zzother", "1.0", "zznone")
    needed = [Requirement("zzmid"), Requirement("zzfirst")]
    assert set(packages.conflicts(needed)) == {("prompt-jax", "zzfirst"), ("zzmid", "zzlow>=2 (1.0 is installed)")}


def test_extras(install):
    install("zzhere", "1.0")
    every = {"": [], "a": [Requirement("zzhere")], "b": [Requirement("zznone"), Requirement("zznone")]}
    every["all"] = [Requirement("prompt-jax[a,b]"), Requirement("zzmore")]
    assert packages.missing_by_extra(every) == {"a": [], "b": ["zznone"], "all": ["zznone", "zzmore"]}


def test_a_checkout_names_its_extras():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    every = packages.requirements()
    assert set(every) == {"", *project["optional-dependencies"]}
    assert {each.name for each in every[""]} >= {"jax", "flax", "packaging"}
    missing = packages.missing_by_extra(every)
    assert "pytest" not in missing["test"] and ("wandb" in missing["wandb"]) == (find_spec("wandb") is None)


def test_an_installed_package_names_its_extras(install, tmp_path, monkeypatch):
    """Outside a checkout they come from the metadata."""
    monkeypatch.setattr(prompt_jax, "__file__", str(tmp_path / "prompt_jax" / "__init__.py"))
    install("prompt_jax", "7", "zznone", "zzx; extra == 'x'", "prompt-jax[x]; extra == 'all'", extras=("x", "all"))
    every = packages.requirements()
    assert {extra: [str(each.name) for each in some] for extra, some in every.items()} == {
        "": ["zznone"],
        "x": ["zzx"],
        "all": ["prompt-jax"],
    }
    assert packages.missing_by_extra(every) == {"x": ["zzx"], "all": ["zzx"]}
