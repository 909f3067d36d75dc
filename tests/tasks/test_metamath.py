"""Math problems from small files in the releases' layouts, written here."""

import dataclasses
import json
from pathlib import Path

import pytest

import jax_processes
from prompt_jax import experiment as experiments
from prompt_jax.config.model import ModelConfig
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


@pytest.mark.slow
def test_a_small_edition_of_pefts_benchmark(folder, tmp_path, smollm2_model_folder):
    """configs/metamath.py with SmolLM2 and five sums, which the prefix learns by heart."""
    sums = [(2, 3), (4, 4), (1, 6), (5, 1), (3, 6)]
    questions = [f"What is {a} plus {b}?" for a, b in sums]
    solved = [
        {"query": q, "response": f"{a} + {b} = {a + b}\nThe answer is: {a + b}"}
        for q, (a, b) in zip(questions, sums, strict=True)
    ]
    (folder / "MetaMathQA-395K.json").write_text(json.dumps(solved))
    for name in ("train", "test"):
        lines = [
            {"question": q, "answer": f"Add them.\n#### {a + b}"} for q, (a, b) in zip(questions, sums, strict=True)
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    whole = experiments.load_experiment(ROOT / "configs" / "metamath.py")
    train = dataclasses.replace(whole.train, steps=15, eval_every=15, checkpoint_every=15, batch_size=5)
    small = dataclasses.replace(
        whole,
        runs=tmp_path / "runs",
        model=ModelConfig(str(smollm2_model_folder)),
        data=dataclasses.replace(whole.data, input_length=64, target_length=32),
        optimizer=dataclasses.replace(whole.optimizer, warmup_steps=2),
        train=train,
    )
    jax_processes.run(small, 1, 1, "--tasks", str(ROOT / "tasks" / "metamath.py"), XLA_FLAGS="")
    summary = json.loads((small.folder / "summary.json").read_text())
    (test,) = summary["tests"]
    assert test["before"]["final_answer"] < 0.7 < test["scores"][0]["final_answer"], "it is 0.4, then 1"
    answers = [json.loads(line) for line in (small.folder / "predictions.jsonl").read_text().splitlines()]
    assert len(answers) == 5 and all("\nThe answer is: " in answer["prediction"] for answer in answers)
