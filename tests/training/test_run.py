"""What a run in progress says about its members, its size and failed writes."""

import dataclasses
import errno
from types import SimpleNamespace

import pytest

from experiments import with_options
from prompt_jax.config.optimizer import OptimizerConfig
from prompt_jax.errors import SaveError
from prompt_jax.storage.locks import LockLost
from prompt_jax.training.run import MemberState, Run, RunProgress, describe
from prompt_jax.training.setup import prepare


def run(**fields) -> Run:
    """Return a run with some of its fields."""
    result = object.__new__(Run)
    for name, value in fields.items():
        setattr(result, name, value)
    return result


@pytest.mark.parametrize(
    ("prompts", "title"),  # the members of the prompts in best.npz
    [
        ([0], ""),
        ([0, 0], ""),
        ([0, 1], "member 1: "),
        ([0, 0, 1, 1], "member 1 (prompts 2 and 3 of best.npz): "),
        ([0, 0, 0, 1, 1, 1], "member 1 (prompts 3, 4 and 5 of best.npz): "),
    ],
)
def test_messages_name_a_member_and_its_prompts(prompts, title):
    of_members = [SimpleNamespace(number=i, member=SimpleNamespace(number=m)) for i, m in enumerate(prompts)]
    progress = RunProgress([MemberState() for _ in set(prompts)])
    assert run(progress=progress, setup=SimpleNamespace(prompts=of_members)).member_title(max(prompts)) == title


def test_failed_writes_name_the_file(experiment):
    """A folder that another process took over explains any failure."""
    full = OSError(errno.ENOSPC, "No space left on device", "metrics.jsonl")
    held = run(experiment=experiment, lock=SimpleNamespace(check=lambda: None))
    for error, message in ((full, "metrics.jsonl: No space"), (SaveError("checkpoint 3"), "^checkpoint 3$")):
        with pytest.raises(SaveError, match=message), held.saving():
            raise error
    with pytest.raises(ZeroDivisionError), held.saving():
        raise ZeroDivisionError

    def lost():
        raise LockLost("taken over")

    with (
        pytest.raises(LockLost, match="taken over"),
        run(experiment=experiment, lock=SimpleNamespace(check=lost)).saving(),
    ):
        raise full


def test_the_description_counts_parameters_and_examples(experiment, tiny):
    """Four virtual tokens of width 64, in float32."""
    setup = prepare(with_options(experiment, "data", input_length=5))
    progress = RunProgress([MemberState()], step=3)
    first, rate, *splits, last = describe(run(experiment=experiment, setup=setup, progress=progress)).splitlines()
    assert first == (f"run: {tiny.name}, 230,656 parameters, 256 of them trained (0.111%), 256 stored (0.00 MiB)")
    assert rate == "  learning rate 0.3, the default of soft_prompt"
    assert [line.split(":")[0].strip() for line in splits] == ["train", "validation", "test"]
    assert splits[0] == "  train: 40 examples of files, 40 inputs truncated"
    assert last == "  resuming at step 3 of 6"
    chosen = dataclasses.replace(experiment, optimizer=OptimizerConfig(learning_rate=0.1))
    assert "learning rate" not in describe(run(experiment=chosen, setup=setup, progress=progress))
