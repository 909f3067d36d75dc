"""Tests of parameter counts against those in the papers."""

import pytest

from prompt_jax.methods.full import FullTuning
from prompt_jax.methods.multitask import MultitaskPromptTuning
from prompt_jax.methods.prefix import PrefixTuning
from prompt_jax.methods.soft_prompt import PromptTuning
from tools.planner import parameters


@pytest.mark.parametrize("name", parameters.PAPER)
def test_counts_are_those_of_the_paper(name):
    total, share = parameters.PAPER[name]
    base, trained, stored = parameters.counts(name, PromptTuning())
    assert base + trained == total and stored == trained
    if not name.endswith("large"):  # the paper's numbers disagree with each other
        assert 100 * trained / total == pytest.approx(share, abs=1e-5)


def test_a_prefix_is_stored_without_its_mlp():
    prefix = PrefixTuning(init="uniform", length=10)
    base, trained, stored = parameters.counts("openai-community/gpt2-medium", prefix)
    assert base == 354_823_168 and trained == stored == 10 * 24 * 2 * 1024
    # An input table, a hidden layer and an output layer, as in the prefix paper.
    _, with_mlp, stored_of_mlp = parameters.counts(
        "openai-community/gpt2-medium", PrefixTuning(init="uniform", length=10, mlp_width=512)
    )
    assert stored_of_mlp == stored
    assert with_mlp == 10 * 1024 + 1024 * 512 + 512 + 512 * 48 * 1024 + 48 * 1024


def test_multitask_prompts_are_trained_for_all_tasks_and_stored_for_each():
    length, width, tasks = 10, 512, parameters.TASKS
    for kind, own, stored_length in (
        ("add", length * width, length),
        ("concatenate", 4 * width, length + 4),
        ("project", width * width + width, length),
    ):
        task_length = 4 if kind == "concatenate" else None
        prompt = MultitaskPromptTuning(length=length, task_part=kind, task_length=task_length)
        _, trained, stored = parameters.counts("demo", prompt)
        assert tasks == 8 and trained == length * width + tasks * own and stored == stored_length * width


def test_prompt_design_trains_and_stores_nothing(capsys):
    assert parameters.counts("demo", None) == (76_961_152, 0, 0)
    assert parameters.main(["--models", "demo"]) == 0
    assert "|  | prompt design | 0 | 76,961,152 | 0.00000 % | 0.00 |  |  |" in capsys.readouterr().out.splitlines()


def test_a_full_model_is_stored_whole(capsys):
    assert parameters.counts("demo", FullTuning()) == (76_961_152,) * 3
    assert parameters.main(["--models", "demo", "--lengths", "1", "5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(parameters.METHODS) + 1
    assert "| soft prompt, 1 | 512 | 76,961,664 |" in lines[2] and "| soft prompt, 5 | 2,560 |" in lines[3]
    assert "| multitask (add), 8 tasks, 5 | " in lines[4] and "| prefix, 5 | " in lines[7]
    assert parameters.main(["--lengths", "0"]) == 1
    assert "--lengths must be positive, not 0" in capsys.readouterr().err
    assert parameters.main(["--models", "nowhere"]) == 1
    assert "model.name 'nowhere' is neither a folder" in capsys.readouterr().err
