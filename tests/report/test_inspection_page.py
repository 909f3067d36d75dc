"""The pages of inspections, by their headings and plots. `tests/cli/test_inspect.py` tests them on real prompts."""

import numpy as np
import pytest

from directions import MODEL, TOKENS
from pages import Page
from prompt_jax.inspection.ablation import Ablation
from prompt_jax.inspection.findings import collect_findings
from prompt_jax.models.delta import Delta
from prompt_jax.models.prompt import Prefix, Prompt, VirtualTokens
from prompt_jax.prompt_files.io import PromptMetadata
from prompt_jax.report.inspection_page import write_inspection, write_similarity
from run_folders import EVIL

PROMPT = Prompt(VirtualTokens(TOKENS))


def page_of(tmp_path, findings, model=MODEL) -> Page:
    write_inspection(tmp_path / "page.html", findings, model)
    return Page((tmp_path / "page.html").read_text(encoding="utf-8"))


def test_two_prompts(tmp_path):
    ablation = Ablation("9 examples", 18, 0.5, np.array([0.75, 0.5, 0.25]))
    findings = [
        collect_findings(EVIL, PROMPT, PromptMetadata(), MODEL, ablation=ablation),
        collect_findings("second", PROMPT, PromptMetadata(), MODEL),
    ]
    page = page_of(tmp_path, findings)
    assert EVIL in page.words and "second" in page.words
    plots = page.labeled("svg")
    assert plots.count("Cosine similarity of the prompts") == 1
    assert plots.count("Norm of each virtual token beside the vocabulary's norms") == 2
    assert plots.count("Cosines, encoder_tokens") == 2
    assert len(page_of(tmp_path, findings[1:]).labeled("svg")) == 3, "norms, cosines and the projection"


def test_without_virtual_tokens_or_base(tmp_path):
    prefix = Prompt(decoder_self=Prefix(*np.ones((2, 2, 3, 1, 2), np.float32)))
    for prompt, model in ((prefix, MODEL), (PROMPT, None), (Delta({"embedding": TOKENS}), MODEL)):
        page = page_of(tmp_path, [collect_findings("p", prompt, PromptMetadata(), model)], model)
        assert "Norm of each virtual token beside the vocabulary's norms" not in page.labeled("svg")


def test_prompts_of_different_parts_are_not_compared(tmp_path):
    prefix = Prompt(decoder_self=Prefix(*np.ones((2, 2, 3, 1, 2), np.float32)))
    findings = [collect_findings("p", prompt, PromptMetadata(), None) for prompt in (PROMPT, prefix)]
    with pytest.raises(ValueError):
        write_inspection(tmp_path / "page.html", findings, None)
    assert not (tmp_path / "page.html").exists()


def test_similarities_of_tasks(tmp_path):
    means = np.array([[1, 0.9, 0.1], [0.9, 1, 0.2], [0.1, 0.2, 1]])
    write_similarity(tmp_path / "page.html", ["a", EVIL, "c"], means, means / 2, ["d.npz: damaged"])
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert EVIL in page.words and "d.npz: damaged" in page.words
    titles = ["Cosine similarity of the prompts' mean tokens", "Mean cosine of the prompts' tokens"]
    assert page.labeled("svg") == titles
