"""Models from Python packages: the cache of their conversions."""

from pathlib import Path

import pytest

from prompt_jax.checkpoints.packaged import cache_folder, check_version, convert_once
from prompt_jax.errors import MissingPackage


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """Return an empty cache."""
    monkeypatch.setenv("PROMPT_JAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def package() -> Path:
    return Path("package")


def test_a_model_is_converted_once(cache):
    def convert(source, folder):
        (folder / "config.json").write_text(str(source))

    folder = convert_once("model-1", package, convert)
    assert folder == cache / "model-1" and (folder / "config.json").read_text() == "package"
    assert convert_once("model-1", pytest.fail, pytest.fail) == folder


def test_a_failed_conversion_leaves_no_files(cache):
    def fail(source, folder):
        (folder / "config.json").write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        convert_once("model-1", package, fail)
    assert list(cache.iterdir()) == []


def test_two_conversions_at_once(cache):
    """While one process converts, another finishes; the first then uses the other's folder."""
    order = []

    def convert(source, folder):
        number = len(order)
        order.append(number)
        if number == 0:
            convert_once("model-1", package, convert)
        (folder / "config.json").write_text(str(number))

    folder = convert_once("model-1", package, convert)
    assert order == [0, 1]
    assert (folder / "config.json").read_text() == "1"
    assert list(cache.iterdir()) == [folder]


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("PROMPT_JAX_CACHE", "/own")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_folder() == Path("/own")
    monkeypatch.delenv("PROMPT_JAX_CACHE")
    assert cache_folder() == Path("/xdg/prompt_jax")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert cache_folder() == tmp_path / ".cache" / "prompt_jax"


def test_versions():
    from importlib.metadata import version

    check_version("the model", "numpy", version("numpy"), "pip install numpy")
    with pytest.raises(MissingPackage, match=r"the model needs numpy 0.1, not [\d.]+: pip install it"):
        check_version("the model", "numpy", "0.1", "pip install it")
    with pytest.raises(MissingPackage, match="the model needs the package no-such-package 0.1: pip install it"):
        check_version("the model", "no-such-package", "0.1", "pip install it")
