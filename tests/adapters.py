"""The fixtures' PEFT adapters as prompts, random prompts and texts, and comparisons for all families."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

import prompt_jax
from prompt_jax import Prompt, VirtualTokens
from prompt_jax.inference.decoding import generate_scored
from prompt_jax.models import family
from prompt_jax.models.prompt import Prefix, Site

PROMPTS = ("prompt", "p_tuning", "ensemble_0", "ensemble_1", "ensemble_2")
PREFIXES = ("prefix", "prefix_projection")


def peft_prompt(folder: Path) -> Prompt:
    """Read a PEFT adapter.

    Virtual tokens are [S P, D] for S `num_transformer_submodules`; the first P rows are the encoder's. A prefix is
    [P, 2 L D], with 2 L slots. In GPT-2, layer i's keys and values are in the slots 2 i and 2 i + 1. In the decoder of
    an encoder-decoder, they are in the slots 4 i and 4 i + 1, modulo 2 L.
    """
    config = json.loads((folder / "adapter_config.json").read_text())
    array = load_file(folder / "adapter_model.safetensors")["prompt_embeddings"]
    length, depth = config["num_virtual_tokens"], config["num_layers"]
    if config["peft_type"] != "PREFIX_TUNING":
        return Prompt(VirtualTokens(array[:length]))
    slots = array.reshape(length, 2 * depth, config["num_attention_heads"], -1)
    step = 2 if config["task_type"] == "CAUSAL_LM" else 4
    keys, values = (np.stack([slots[:, (step * i + k) % (2 * depth)] for i in range(depth)]) for k in range(2))
    return Prompt(decoder_self=Prefix(keys, values))


def forward_batch(reference: Any) -> dict[str, np.ndarray]:
    return _batch(reference, "forward")


def generate_batch(reference: Any) -> dict[str, np.ndarray]:
    return _batch(reference, "generate")


def _batch(reference: Any, purpose: str) -> dict[str, np.ndarray]:
    names = {"inputs": "input_ids", "inputs_mask": "attention_mask", "decoder_inputs": "decoder_input_ids"}
    stored = {ours: f"inputs/{purpose}/{theirs}" for ours, theirs in names.items()}
    batch = {ours: reference[name].astype(np.int32) for ours, name in stored.items() if name in reference}
    return {**batch, "inputs_mask": batch["inputs_mask"].astype(bool)}


def random_tokens(model: Any, slots: int, seed: int = 0, **fields: Any) -> Prompt:
    embeddings = np.random.default_rng(seed).normal(size=(slots, model.config.d_model)).astype(np.float32)
    return Prompt(VirtualTokens(embeddings, **fields))


def random_prefix(model: Any, slots: int, seed: int = 0, sites: tuple[Site, ...] = (), **fields: Any) -> Prompt:
    """Return a random prefix at the given sites, by default at all sites."""
    rng, shapes = np.random.default_rng(seed), family(model.config).sites(model.config)
    prefixes = {}
    for site in sites or shapes:
        layers, heads, width = shapes[site]
        keys, values = rng.normal(size=(2, layers, slots, heads, width)).astype(np.float32)
        prefixes[site] = Prefix(keys, values, **fields)
    return Prompt(**prefixes)


def random_text(model: Any, rows: int, length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(3, model.config.vocab_size, (rows, length)).astype(np.int32)


def whole(inputs: np.ndarray) -> dict[str, np.ndarray]:
    """Return a batch without padding."""
    return {"inputs": inputs, "inputs_mask": np.ones(inputs.shape, bool)}


def assert_close(actual: Any, expected: Any, tolerance: float = 1e-5) -> None:
    """Compare to 1e-5 of the largest value."""
    expected = np.asarray(expected)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def assert_rows_are_each_alone(model: Any, prompts: Sequence[Prompt], target_length: int) -> None:
    """Compare logits, generated tokens and scores of targets in a mixed batch with those of each row alone."""
    ids = np.array([2, 0, -1, 1], np.int32)
    batch = whole(random_text(model, 4, 6)) | {"decoder_inputs": random_text(model, 4, target_length, seed=1)}
    targets = np.array([[7, 8, 5], [9, 5, 0]], np.int32)

    def results(batch: dict[str, np.ndarray], prompt: Prompt | None) -> tuple[Any, Any, Any]:
        arguments = model.params, model.config, batch, prompt
        generated = generate_scored(*arguments, max_new_tokens=5, targets=(targets, targets > 0))
        return prompt_jax.forward(*arguments), generated.tokens, generated.targets

    mixed = results(batch | {"prompt_ids": ids}, prompt_jax.stack_prompts(prompts))
    for row, number in enumerate(ids):
        own = {name: value[row : row + 1] for name, value in batch.items()}
        alone = results(own, prompts[number] if number >= 0 else None)
        for part, expected in zip(mixed, alone, strict=True):
            assert_close(part[row], expected[0])
        np.testing.assert_array_equal(mixed[1][row], alone[1][0])
