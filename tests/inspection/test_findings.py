"""Findings about a prompt: what is inspected with and without the base."""

import numpy as np

from directions import MODEL, TOKENS
from prompt_jax.inspection.findings import collect_findings
from prompt_jax.inspection.neighbors import inspect
from prompt_jax.models.prompt import Prefix, Prompt, VirtualTokens
from prompt_jax.prompt_files.io import PromptMetadata
from prompt_jax.task_format import TaskFormat

PROMPT = Prompt(VirtualTokens(TOKENS))


def test_labels_need_the_base_and_a_task_with_labels():
    task = PromptMetadata(format=TaskFormat("{x}", ("up", "right")))
    findings = collect_findings("p.npz", PROMPT, task, MODEL, k=2)
    assert findings.inspection == inspect(PROMPT, MODEL, 2)
    # By cosine: both and right, <pad> and right, right and both.
    assert findings.labels["cosine"].tokens == {"up": (), "right": (0, 1, 2)}
    assert findings.labels["cosine"].share == 3 / 6
    assert collect_findings("p.npz", PROMPT, PromptMetadata(), MODEL).labels == {}
    without = collect_findings("p.npz", PROMPT, task, None)
    assert without.inspection is None and without.labels == {}
    assert without.similarity["encoder_tokens"].shape == (3, 3)


def test_mean_norms_of_a_prefix():
    """Two slots of one head, of norms 5 and 0 in the first layer, and one unused slot."""
    keys = np.zeros((2, 3, 1, 2), np.float32)  # [L, P, G, K]
    keys[0, 0, 0], keys[:, 2] = [3, 4], 100
    prefix = Prefix(keys, 2 * keys, np.array([True, True, False]))
    norms = collect_findings("p.npz", Prompt(decoder_self=prefix), PromptMetadata(), None).slot_norms["decoder_self"]
    np.testing.assert_allclose(norms["keys"], [2.5, 0])
    np.testing.assert_allclose(norms["values"], [5, 0])
    assert collect_findings("p.npz", PROMPT, PromptMetadata(), None).slot_norms == {}
