"""Counts of parameters, against those that the papers print."""

import pytest

import parameters
from prompt_jax.config import PromptConfig


@pytest.mark.parametrize("name", parameters.PAPER)
def test_prompts_have_the_papers_share(name):
    total, share = parameters.PAPER[name]
    base, trained, stored = parameters.counts(name, PromptConfig())
    assert base + trained == total and stored == trained
    if not name.endswith("large"):  # where the paper's own numbers do not agree
        assert 100 * trained / total == pytest.approx(share, abs=1e-5)


def test_a_prefix_is_stored_without_its_mlp():
    prefix = PromptConfig(method="prefix", init="uniform", length=10)
    base, trained, stored = parameters.counts("openai-community/gpt2-medium", prefix)
    assert base == 354_823_168 and trained == stored == 10 * 24 * 2 * 1024
    # A table, a hidden layer and what comes out of it, as in the prefix paper.
    _, with_mlp, stored_of_mlp = parameters.counts(
        "openai-community/gpt2-medium", PromptConfig(method="prefix", init="uniform", length=10, mlp_width=512)
    )
    assert stored_of_mlp == stored
    assert with_mlp == 10 * 1024 + 1024 * 512 + 512 + 512 * 48 * 1024 + 48 * 1024


def test_a_full_model_is_stored_whole(capsys):
    assert parameters.counts("demo", PromptConfig(method="full")) == (76_961_152,) * 3
    assert parameters.main(["--models", "demo", "--lengths", "1", "5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(parameters.METHODS) + 1
    assert "| soft prompt, 1 | 512 | 76,961,664 |" in lines[2] and "| soft prompt, 5 | 2,560 |" in lines[3]
    assert "| prefix, 5 | " in lines[4]
    assert parameters.main(["--lengths", "0"]) == 1
    assert "--lengths must be positive, not 0" in capsys.readouterr().err
    assert parameters.main(["--models", "nowhere"]) == 1
    assert "model.name 'nowhere' is no folder" in capsys.readouterr().err
