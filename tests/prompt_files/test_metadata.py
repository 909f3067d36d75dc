"""Metadata in a file."""

import dataclasses
import json
import math

import numpy as np
import pytest

from prompt_jax import PromptFormatError, PromptMetadata, load_prompt
from prompt_jax.prompt_files.metadata import find_task_mismatch, metadata_from_array, metadata_to_json
from stored_prompts import GOOD, METADATA


def test_duplicate_names_in_the_metadata_are_an_error(tmp_path):
    text = json.dumps({"format_version": 1, "step": 1})[:-1] + ', "step": 2}'
    np.savez(tmp_path / "p.npz", encoder_tokens=np.asarray(GOOD, np.float32), metadata=np.array(text))
    with pytest.raises(PromptFormatError, match="'step' comes twice"):
        load_prompt(tmp_path / "p.npz")


def test_metadata_is_read_as_written():
    again = metadata_from_array("p.npz", np.array(metadata_to_json("p.npz", METADATA)))
    assert again == METADATA
    scores = {"accuracy": 0.5, "loss": math.nan}
    text = metadata_to_json("p.npz", PromptMetadata(scores=scores, settings={"a": [1, None]}))
    assert json.loads(text)["scores"] == {"accuracy": 0.5}, "scores that are not finite are left out"
    assert metadata_from_array("p.npz", np.array(text)).settings == {"a": [1, None]}
    with pytest.raises(PromptFormatError, match=r"p.npz: the setting 'a' is inf; expected a text, a finite number"):
        metadata_to_json("p.npz", PromptMetadata(settings={"a": math.inf}))


def test_members_of_different_tasks_cannot_vote():
    """A member without a task may have any."""
    films, books, unknown = (PromptMetadata(task=task) for task in ("films", "books", None))
    assert find_task_mismatch([films, unknown, films]) is None and find_task_mismatch([]) is None
    assert find_task_mismatch([unknown, films, unknown, books]) == (1, 3)
    assert find_task_mismatch([films, dataclasses.replace(films, format=METADATA.format)]) == (0, 1)
