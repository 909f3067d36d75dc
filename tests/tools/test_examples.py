"""Tests of the examples that use an exported prompt without this project: in NumPy, and in Hugging Face's PyTorch."""

import ast
import importlib.util
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import prompt_jax
from adapters import assert_close, random_prefix, random_text, random_tokens, whole
from prompt_jax.prompt_files.io import save_prompt
from prompt_jax.prompt_files.metadata import PromptMetadata

EXAMPLES = Path(__file__).parents[2] / "tools" / "examples"


def example(name: str):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_examples_are_short_and_do_not_import_this_project(path):
    text = path.read_text()
    assert len(text.splitlines()) < 60
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import | ast.ImportFrom)]
    actual = {name.name for node in nodes for name in node.names} | {getattr(node, "module", "") for node in nodes}
    assert not any(name.startswith(("prompt_jax", "jax")) for name in actual)


def test_numpy_alone(fixtures, tmp_path):
    folder = fixtures / "t5_v11" / "base"
    model = prompt_jax.load_model(str(folder))
    prompt, ids, answer = random_tokens(model, 6), random_text(model, 1, 40), [7, 3, 9]
    save_prompt(tmp_path / "prompt.npz", prompt)
    batch = whole(ids) | {"decoder_inputs": np.array([[0, *answer]], np.int32)}
    expected = prompt_jax.forward(model.params, model.config, batch, prompt)[0]
    stored = np.load(tmp_path / "prompt.npz", allow_pickle=False)["encoder_tokens"]
    weights = load_file(folder / "model.safetensors")
    assert_close(example("use_prompt_in_numpy").logits(weights, stored, ids[0], answer), expected)


@pytest.mark.interop
@pytest.mark.parametrize(
    "name, kind",
    [
        ("t5_v11", "before"),
        ("t5_v11", "after"),
        ("bart", "before"),
        ("bart", "after"),
        ("gpt2", "before"),
        ("gpt2", "prefix"),
    ],
)
def test_pytorch(fixtures, tmp_path, name, kind):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    folder = str(fixtures / name / "base")
    model, causal = prompt_jax.load_model(folder), name == "gpt2"
    prompt = random_prefix(model, 5) if kind == "prefix" else random_tokens(model, 5, placement=kind)
    save_prompt(tmp_path / "prompt.npz", prompt, PromptMetadata(placement=kind if kind != "prefix" else "before"))
    ids = random_text(model, 1, 12)
    batch, answer = whole(ids), {}
    if not causal:
        batch["decoder_inputs"] = np.array([[model.config.start_id, 7, 3, 9]], np.int32)
        answer = {"decoder_input_ids": torch.tensor(batch["decoder_inputs"]).long()}
    expected = prompt_jax.forward(model.params, model.config, batch, prompt)[0]
    kinds = transformers.AutoModelForCausalLM if causal else transformers.AutoModelForSeq2SeqLM
    theirs = kinds.from_pretrained(folder).eval()
    with torch.no_grad():
        given = example("use_prompt_in_pytorch").inputs(theirs, tmp_path / "prompt.npz", torch.tensor(ids).long())
        actual = theirs(**given, **answer).logits[0, -len(expected) :]
    assert_close(actual.numpy(), expected)
