"""A small tokenizer, and a registry that is restored after each test."""

import pytest

import sentencepieces
from prompt_jax.data.registry import restore_point
from reviews import SENTENCES


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return sentencepieces.tokenizer(tmp_path_factory.mktemp("tokenizer"), SENTENCES, 60, sentinels=4)


@pytest.fixture
def registry():
    """Unregister the tasks of a test after it."""
    restore = restore_point()
    yield
    restore()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("files")
