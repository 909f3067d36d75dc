"""Math problems from small files in the releases' layouts, written here."""

import json
from pathlib import Path

import pytest

from prompt_jax.data.load import LoadOptions, load_examples
from prompt_jax.data.registry import discover_tasks
from prompt_jax.errors import DataError

ROOT = Path(__file__).parents[2]
OPTIONS = LoadOptions(input_length=448, target_length=320)


@pytest.fixture(scope="module", autouse=True)
def registered():
    discover_tasks(ROOT / "tasks" / "metamath.py")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("PROMPT_JAX_DATA", str(tmp_path))
    folder = tmp_path / "metamath"
    folder.mkdir()
    rows = [
        {"type": "GSM_Rephrased", "query": "What is 1 + 1?", "response": "1 + 1 = 2\nThe answer is: 2"},
        {"type": "GSM_SV", "query": "long " * 300, "response": "The answer is: 3"},
    ]
    (folder / "MetaMathQA-395K.json").write_text(json.dumps(rows))
    for name in ("train", "test"):
        lines = [{"question": f"{name} {i}?", "answer": f"It is {i}.\n#### {i}"} for i in range(60)]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def test_splits_are_those_of_pefts_benchmark(folder, tiny):
    train, validation, test = (
        load_examples("metamath", tiny.tokenizer, split, OPTIONS) for split in ("train", "validation", "test")
    )
    assert train.input_texts == ["Question: What is 1 + 1? Think step by step.\nAnswer:"], "the long one is left out"
    assert train.target_texts == ["1 + 1 = 2\nThe answer is: 2"]
    assert len(validation) == 50 and all("train " in text for text in validation.input_texts)
    # np.random.seed(0); np.random.shuffle(np.arange(60)) begins with 26.
    assert validation.input_texts[0] == "Question: train 26? Think step by step.\nAnswer:"
    assert len(test) == 60 and test.score([f"The answer is: {i % 30}" for i in range(60)]) == {"final_answer": 0.5}


def test_missing_and_broken_files_are_errors(folder, tiny):
    (folder / "MetaMathQA-395K.json").write_text('{"query": 1}')
    with pytest.raises(DataError, match="expected a list of objects"):
        load_examples("metamath", tiny.tokenizer, "train", OPTIONS)
    (folder / "test.jsonl").unlink()
    with pytest.raises(DataError, match=r"test.jsonl; tasks/metamath.py says where to get it"):
        load_examples("metamath", tiny.tokenizer, "test", OPTIONS)
