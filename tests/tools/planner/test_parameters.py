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


# As the Hub shows them, of the text model alone and with shared embeddings counted once.
PUBLISHED = {
    "meta-llama/Meta-Llama-3-8B": 8_030_261_248,
    "meta-llama/Meta-Llama-3-70B": 70_553_706_496,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "meta-llama/Llama-3.2-3B": 3_212_749_824,
    "Qwen/Qwen3-0.6B": 596_049_920,
    "Qwen/Qwen3-4B": 4_022_468_096,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "Qwen/Qwen3-14B": 14_768_307_200,
    "Qwen/Qwen3-32B": 32_762_123_264,
    "google/gemma-3-1b-pt": 999_885_952,
    "google/gemma-3-4b-pt": 3_880_263_168,
    "google/gemma-3-12b-pt": 11_766_034_176,
    "google/gemma-3-27b-pt": 27_009_346_304,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_are_the_published_ones(name):
    assert parameters.counts(name, None)[0] == PUBLISHED[name]


def test_a_prefix_of_grouped_queries_has_the_key_value_heads():
    """28 layers, keys and values, 8 heads of 128: PEFT's token_dim for this model is 1024."""
    _, trained, _ = parameters.counts("meta-llama/Llama-3.2-3B", PrefixTuning(length=10))
    assert trained == 10 * 28 * 2 * 1024


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
