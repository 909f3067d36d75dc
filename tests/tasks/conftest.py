"""Fixtures for the tests of tasks: a small SentencePiece model, and small TFDS records written without a network."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import sentencepieces
import tfds_records
from prompt_jax.checkpoints.tokenizer import Tokenizer

SENTENCES = [
    "passage: the cat sat on the mat. question: is the cat on the mat",
    "hypothesis: a dog barks loudly premise: an animal makes noise",
    "False True entailment contradiction neutral not_entailment negative positive",
    "unacceptable equivalent not_equivalent duplicate not_duplicate choice1 choice2",
    "What a good film, it was great fun! It's a bad product; I want 3 of my 25 dollars back.",
]


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return sentencepieces.tokenizer(tmp_path_factory.mktemp("tokenizer"), SENTENCES, 120, sentinels=3)


@pytest.fixture(scope="module")
def write_records(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str, dict[str, list[Any]]], None]]:
    """Return a function that writes a TFDS data set from the rows of each split. It is named as in `tfds.builder`."""
    import seqio

    root = tmp_path_factory.mktemp("tfds")
    seqio.set_tfds_data_dir_override(str(root))
    yield functools.partial(tfds_records.write, root)
    seqio.set_tfds_data_dir_override(None)
