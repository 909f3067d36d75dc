"""Members of an ensemble: reading them, their names, and which prompts may vote together."""

from pathlib import Path

import numpy as np
import pytest

from prompt_jax import Prompt, VirtualTokens, save_ensemble, save_prompt
from prompt_jax.ensembles.members import (
    LoadedPrompt,
    MemberError,
    check_distinct,
    check_one_base,
    check_one_task,
    member_names,
    prompt_file,
    read_members,
    warn_of_lengths,
)
from prompt_jax.errors import UserError
from prompt_jax.prompt_files.io import ModelId, PromptMetadata
from prompt_jax.task_format import TaskFormat

PROMPT = Prompt(VirtualTokens(np.ones((2, 4), np.float32)))


def loaded(name: str, **fields) -> LoadedPrompt:
    return LoadedPrompt(Path(name), None, PROMPT, PromptMetadata(**fields))


def test_members_of_files_and_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_prompt("one.npz", PROMPT, PromptMetadata(settings={"train.seed": 3}))
    save_ensemble("run/best.npz", [PROMPT] * 2, [PromptMetadata(settings={"train.seed": seed}) for seed in (7, 8)])
    members = read_members([Path("one.npz"), Path("run")])
    assert [(member.path, member.number) for member in members] == [
        (Path("one.npz"), None),
        (Path("run/best.npz"), 0),
        (Path("run/best.npz"), 1),
    ]
    assert member_names(members) == [
        "one.npz, seed 3",
        "run/best.npz, member 0, seed 7",
        "run/best.npz, member 1, seed 8",
    ]
    assert member_names(members[1:]) == ["seed 7", "seed 8"]


def test_a_run_without_an_evaluation_has_no_prompt(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    assert prompt_file(tmp_path) == tmp_path, "any other folder is unchanged"
    (tmp_path / "config.json").touch()
    with pytest.raises(UserError, match="has no best.npz yet; the run writes it at its first evaluation"):
        prompt_file(tmp_path)


def test_no_file_counts_twice(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).touch()
    check_distinct([tmp_path / "a", tmp_path / "b"])
    with pytest.raises(MemberError, match="a is named twice"):
        check_distinct([tmp_path / "a", tmp_path / "b", tmp_path / "a"])
    (tmp_path / "link").symlink_to(tmp_path / "a")
    with pytest.raises(MemberError, match="a and .*link are one file"):
        check_distinct([tmp_path / "a", tmp_path / "link"])


def test_members_share_a_base():
    """A member that does not say its base may have any."""
    small, large = (loaded(name, base=ModelId(name, None, f"sha256:{name}")) for name in ("small", "large"))
    check_one_base([small, loaded("unknown"), small])
    with pytest.raises(MemberError, match=r"small was trained on small \(sha256:small\), large on large"):
        check_one_base([small, loaded("unknown"), large])


def test_members_share_a_task():
    given = {"task_given": False, "template_given": False, "labels_given": False}
    first = loaded("a", task="films", format=TaskFormat("{text}", ("no", "yes")))
    check_one_task([first, loaded("unknown"), loaded("b", format=TaskFormat("{text}", ("yes", "no")))], **given)
    for other, option, message in (
        (
            loaded("b", task="books"),
            "task_given",
            r"films \(the labels no, yes\); b was trained on books",
        ),
        (loaded("b", format=TaskFormat("{text}")), "labels_given", "b answers with any text: members of one vote"),
        (
            loaded("b", format=TaskFormat("{film}", ("no", "yes"))),
            "template_given",
            "b was trained with the template '{film}': all members need the same template",
        ),
    ):
        with pytest.raises(MemberError, match=message):
            check_one_task([first, other], **given)
        check_one_task([first, other], **{**given, option: True})


def test_the_first_lengths_are_used():
    members = [loaded(name, format=TaskFormat("{x}", target_length=length)) for name, length in (("a", 4), ("b", 8))]
    warn_of_lengths(members[:1] * 2)
    with pytest.warns(UserWarning, match="b was trained with at most 512 tokens of input and 8 .* of a, 512"):
        warn_of_lengths(members)
