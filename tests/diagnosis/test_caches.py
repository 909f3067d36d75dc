"""Sizes of the folders that are caches."""

import os

import pytest
from huggingface_hub import constants

from prompt_jax.diagnosis import caches as module
from prompt_jax.diagnosis.caches import caches


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Set all caches to folders that do not exist."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("PROMPT_JAX_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "own" / "compilations"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    return tmp_path


def test_folders(folders):
    (folders / "own" / "demo" / "deep").mkdir(parents=True)
    (folders / "own" / "demo" / "deep" / "model").write_bytes(bytes(1000))
    (folders / "own" / "compilations").mkdir()
    (folders / "own" / "compilations" / "program").write_bytes(bytes(10))
    (folders / "hub").mkdir()
    (folders / "hub" / "link").symlink_to(folders / "own")
    each = {cache.name: cache for cache in caches()}
    sizes = {"models of the Hub": 0, "packaged models": 1000, "compilations": 10, "data of TFDS": 0}
    assert {name: cache.size for name, cache in each.items()} == sizes, "compilations count once, links do not"
    assert all(cache.complete and cache.writable and cache.free > 0 for cache in each.values())
    assert (
        each["packaged models"].folder == str(folders / "own")
        and each["packaged models"].variable == "PROMPT_JAX_CACHE"
    )


def test_a_folder_that_is_a_file(folders):
    (folders / "hub").write_text("")
    assert [cache.writable for cache in caches()] == [False, True, True, True]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_not_writable(folders):
    (folders / "hub").mkdir(mode=0o500)
    assert not caches()[0].writable


def test_no_time_for_the_size(folders, monkeypatch):
    monkeypatch.setattr(module, "SECONDS", -1.0)
    assert not any(cache.complete for cache in caches())


def test_a_bucket(folders, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "gs://bucket/compilations")
    (cache,) = (cache for cache in caches() if cache.name == "compilations")
    assert cache.folder == "gs://bucket/compilations" and cache.writable and cache.free is None
