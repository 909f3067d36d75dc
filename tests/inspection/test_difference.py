"""Differences between two prompts, by hand."""

import dataclasses

import numpy as np
import pytest

from prompt_jax.config.data import DataConfig
from prompt_jax.experiment import Experiment
from prompt_jax.inspection.difference import config_lines, member_lines, part_difference, prompt_lines
from prompt_jax.methods.soft_prompt import PromptTuning
from prompt_jax.models.delta import Delta
from prompt_jax.models.prompt import Prefix, Prompt, VirtualTokens
from prompt_jax.prompt_files.io import PromptMetadata

TOKENS = np.array([[3, 4], [0, 1]], np.float32)


def test_a_part_by_hand():
    moved = TOKENS.copy()
    moved[1] = [1, 0]
    difference = part_difference(VirtualTokens(TOKENS), VirtualTokens(moved))
    assert difference.sizes == ((2, 2), (2, 2)) and difference.norms == pytest.approx((26**0.5, 26**0.5))
    assert difference.norm == pytest.approx(2**0.5) and (difference.largest, difference.where) == (1, 1)
    np.testing.assert_allclose(difference.cosines, [1, 0])


def test_unused_slots_do_not_count():
    padded = np.concatenate([np.full((1, 2), 9, np.float32), TOKENS])
    assert part_difference(VirtualTokens(TOKENS), VirtualTokens(padded, np.array([False, True, True]))) is None
    longer = part_difference(VirtualTokens(TOKENS), VirtualTokens(padded))
    assert longer.sizes == ((2, 2), (3, 2)) and longer.norm is longer.cosines is None


def test_a_slot_of_a_prefix_is_all_layers():
    keys = np.ones((3, 2, 1, 1), np.float32)  # [L, P, G, K]
    values = keys.copy()
    values[2, 1] = 5
    difference = part_difference(Prefix(keys, keys), Prefix(keys, values))
    assert (difference.largest, difference.where, difference.norm) == (4, 1, 4)
    np.testing.assert_allclose(difference.cosines, [1, (5 + 5) / (6**0.5 * (5 + 25) ** 0.5)])


def test_metadata_and_parts_of_one_prompt_only():
    first = Prompt(VirtualTokens(TOKENS)), PromptMetadata(step=3, settings={"train.seed": 1})
    second = Prompt(decoder_self=Prefix(*np.ones((2, 1, 1, 1, 2), np.float32))), PromptMetadata(step=4)
    assert [line.split() for line in prompt_lines(first, second)] == [
        ["settings.train.seed", "1", "-"],
        ["step", "3", "4"],
        ["encoder_tokens:", "only", "the", "first", "has", "it"],
        ["decoder_self:", "only", "the", "second", "has", "it"],
    ]
    assert prompt_lines(first, first) == []


def test_changes_of_the_base():
    pairs = [
        (Delta(leaves), PromptMetadata())
        for leaves in ({"a": TOKENS, "b": TOKENS}, {"a": TOKENS * 2, "b": TOKENS[:1], "c": TOKENS})
    ]
    assert prompt_lines(*pairs) == [
        "  base/a: norm of the difference 5.099; the largest is 4",  # the norm of TOKENS is the root of 26
        "  base/b: [2, 2], and [1, 2]",
        "  base/c: only the second has it",
    ]


def test_configurations():
    first = Experiment(data=DataConfig(task="films"), prompt=PromptTuning(length=3))
    second = dataclasses.replace(first, prompt=PromptTuning(length=5))
    assert [line.split() for line in config_lines(first, second)] == [["prompt.length", "3", "5"]]


def test_members_are_compared_by_number():
    one = (Prompt(VirtualTokens(TOKENS)), PromptMetadata())
    (first, second, rest) = member_lines([one, one], [one, one, one])
    assert first == ("member 0", []) and second == ("member 1", [])
    assert rest == ("2 and 3 members", ["  the numbers that both have were compared"])
