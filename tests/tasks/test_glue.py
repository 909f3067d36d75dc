"""GLUE from handwritten rows in TFDS's raw format, as small real TFDS records, without a network."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import sentencepieces
from adapters import random_tokens
from prompt_jax import PromptMetadata, load_model, save_prompt
from prompt_jax.cli import main
from prompt_jax.data.load import LoadOptions, load_examples
from prompt_jax.data.registry import discover_tasks, find_task
from prompt_jax.errors import DataError
from prompt_jax.prompt_files.io import ModelId

ROOT = Path(__file__).parents[2]


def pairs(first, second, count):
    """Rows with two text columns and each label once."""
    return [
        {first: f"A {first} of {label}.", second: f"The {second} <b> {label}", "label": label, "idx": label}
        for label in range(count)
    ]


SENTENCE = [{"sentence": f"What {label} fun", "label": label, "idx": label} for label in (0, 1)]
ROWS = {  # and the test split is the last of them without its label
    "cola": SENTENCE,
    "sst2": SENTENCE,
    "mrpc": pairs("sentence1", "sentence2", 2),
    "qqp": pairs("question1", "question2", 2),
    "stsb": [
        {"sentence1": "A dog.", "sentence2": "A cat.", "label": label, "idx": 0}
        for label in (0.0, 1.25, 3.79, 3.5, 2.5, 5.0, 0.09)
    ],
    "mnli": pairs("premise", "hypothesis", 3),
    "mnli_matched": pairs("premise", "hypothesis", 3),
    "mnli_mismatched": pairs("premise", "hypothesis", 3),
    "qnli": pairs("question", "sentence", 2),
    "rte": pairs("sentence1", "sentence2", 2),
    "wnli": pairs("sentence1", "sentence2", 2),
    "ax": [],
}
TEMPLATES = {  # of label i
    "cola": "sentence: What {i} fun",
    "sst2": "sentence: What {i} fun",
    "mrpc": "sentence1: A sentence1 of {i}. sentence2: The sentence2 <b> {i}",
    "qqp": "question1: A question1 of {i}. question2: The question2 <b> {i}",
    "mnli": "hypothesis: The hypothesis <b> {i} premise: A premise of {i}.",
    "qnli": "question: A question of {i}. sentence: The sentence <b> {i}",
}
TEMPLATES |= dict.fromkeys(("mnli_matched", "mnli_mismatched"), TEMPLATES["mnli"])
TEMPLATES |= dict.fromkeys(("rte", "wnli", "mrpc_from_qqp"), TEMPLATES["mrpc"]) | {"qqp_from_mrpc": TEMPLATES["qqp"]}
VERSIONS = {"v002": "1.0.0", "v200": "2.0.0"}


def unlabeled(row):
    return row | {"label": -1}


@pytest.fixture(scope="module", autouse=True)
def records(write_records):
    for version in VERSIONS.values():
        for name, rows in ROWS.items():
            splits = {"train": rows[:1], "validation": rows, "test": [unlabeled(row) for row in rows[-1:]]}
            if name == "ax":
                splits = {"test": [unlabeled(row) for row in ROWS["mnli"]]}
            if name in ("mnli_matched", "mnli_mismatched"):
                del splits["train"]
            if name == "mnli":
                matched, test = splits.pop("validation"), splits.pop("test")
                splits |= {"validation_matched": matched, "validation_mismatched": rows[:1]}
                splits |= {"test_matched": test, "test_mismatched": []}
            write_records(f"glue/{name}:{version}", splits)
    discover_tasks(ROOT / "tasks" / "glue.py")


def load(name, split, tokenizer, version="v002"):
    return load_examples(f"glue_{name}_{version}", tokenizer, split, LoadOptions(64, 32))


def labels_of(name):
    """In TFDS's order."""
    import tensorflow_datasets as tfds

    return tfds.builder(f"glue/{name}:2.0.0", data_dir="/nonexistent").info.features["label"].names


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", [name for name in TEMPLATES if "_from_" not in name])
def test_records_become_the_texts_of_t5(name, version, tokenizer):
    examples = load(name, "validation", tokenizer, version)
    labels = labels_of(name)
    assert list(examples.format.labels) == labels and len(labels) == len(ROWS[name])
    assert examples.input_texts == [TEMPLATES[name].format(i=i) for i in range(len(labels))]
    assert examples.target_texts == labels
    test = load(name, "test", tokenizer, version)
    assert test.target_texts == ["<unk>"] and test.unlabeled == 1


@pytest.mark.parametrize("name", ["cola", "mnli", "mrpc", "stsb"])
def test_each_task_has_a_training_split(name, tokenizer):
    assert len(load(name, "train", tokenizer)) == 1


def test_the_diagnostic_set_has_the_format_of_mnli(tokenizer):
    examples = load("ax", "test", tokenizer)
    assert examples.input_texts == [TEMPLATES["mnli"].format(i=i) for i in range(3)]
    assert examples.unlabeled == 3 and list(examples.format.labels) == labels_of("ax")


def test_similarities_are_numbers_rounded_to_a_fifth(tokenizer):
    examples = load("stsb", "validation", tokenizer)
    assert examples.input_texts == ["sentence1: A dog. sentence2: A cat."] * 7, "none of them is left out"
    assert examples.target_texts == ["0.0", "1.2", "3.8", "3.6", "2.4", "5.0", "0.0"]  # 2.5 is 12.5 fifths: to the even
    scores = examples.score([*examples.target_texts[:-1], "a lot"])
    assert list(scores) == ["pearson", "spearman"]
    exact = [float(text) for text in examples.target_texts]
    assert scores["pearson"] == pytest.approx(np.corrcoef(exact, [*exact[:-1], -1])[0, 1])
    test = load("stsb", "test", tokenizer)
    assert test.target_texts == ["<unk>"] and test.unlabeled == 1
    with pytest.raises(DataError, match="1 of 1 examples have no label, or no answer"):
        test.score(["3.8"])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cola", {"matthews": 0.5, "invalid": 0.5}),  # 1 hit of 2, where chance has half a hit
        ("sst2", {"accuracy": 0.5, "invalid": 0.5}),
        ("mrpc", {"f1": 0.0, "accuracy": 0.5, "invalid": 0.5}),
        ("mnli_mismatched", {"accuracy": 1 / 3, "invalid": 1 / 3}),
    ],
)
def test_scores_count_invalid_answers(name, expected, tokenizer):
    examples = load(name, "validation", tokenizer)
    scores = examples.score([examples.target_texts[0], "no label", examples.target_texts[0]][: len(examples)])
    assert list(scores) == list(expected) and scores == pytest.approx(expected)


@pytest.mark.parametrize(("target", "source"), [("mrpc", "qqp"), ("qqp", "mrpc")])
@pytest.mark.parametrize("split", ["validation", "test"])
def test_transfer_keeps_the_label_names_of_the_training_task(target, source, split, tokenizer):
    """The paper's code translates answers and scores them against the target task's labels, with the same result."""
    own = load(target, "validation", tokenizer)
    examples = load(f"{target}_from_{source}", split, tokenizer)
    assert examples.input_texts == own.input_texts and examples.inputs[0].tolist() == own.inputs[0].tolist()
    translated = dict(zip(labels_of(source), labels_of(target), strict=True))
    for answers in (examples.target_texts, examples.target_texts[::-1], [labels_of(source)[1]] * 2):
        assert examples.score(answers) == own.score([translated[answer] for answer in answers])
    assert examples.score(labels_of(target))["invalid"] == 1.0


def prompt_of(task, tokenizer, tiny_folder, folder):
    """Save a prompt for a task as `best.npz`, and return its model."""
    shutil.copytree(tiny_folder, folder / "model")
    for file in ("spiece.model", "tokenizer_config.json"):
        shutil.copy(sentencepieces.model_file(tokenizer).parent / file, folder / "model")
    model = load_model(str(folder / "model"))
    base = ModelId(model.name, None, model.fingerprint)
    said = PromptMetadata(base=base, task=task, format=find_task(task).task_format)
    save_prompt(folder / "best.npz", random_tokens(model, 3), said)
    return model


@pytest.mark.parametrize(("target", "source"), [("mrpc", "qqp"), ("qqp", "mrpc")])
def test_transfer_by_the_command_line(target, source, tokenizer, tiny_folder, tmp_path):
    """As in `configs/qqp.py` and `configs/mrpc.py`: the other task's validation split, the prompt's labels."""
    model = prompt_of(f"glue_{source}_v002", tokenizer, tiny_folder, tmp_path)
    other = f"glue_{target}_from_{source}_v002"
    paths = ["--model", model.name, "--tasks", str(ROOT / "tasks" / "glue.py"), "--out", str(tmp_path / "out")]
    assert main(["evaluate", str(tmp_path / "best.npz"), "--task", other, *paths]) == 0
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert scores["task"] == other and scores["examples"] == 2
    assert list(scores["members"][0]["scores"]) == ["f1", "accuracy", "invalid", "rank/f1", "rank/accuracy"]
    rows = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert [row["input"] for row in rows] == [TEMPLATES[target].format(i=i) for i in range(2)]
    assert [row["target"] for row in rows] == list(rows[0]["label_scores"]) == labels_of(source)


def test_the_split_with_answers_is_named(tokenizer, tiny_folder, tmp_path, capsys):
    """A benchmark's test split, the default of `evaluate`, has no answers."""
    model = prompt_of("glue_rte_v002", tokenizer, tiny_folder, tmp_path)
    argv = ["evaluate", str(tmp_path / "best.npz"), "--model", model.name, "--tasks", str(ROOT / "tasks" / "glue.py")]
    assert main(argv) == 1
    found = "glue_rte_v002, test: 1 of 1 examples have no label, or no answer"
    why = "because benchmarks keep those of the test split secret"
    assert f"{found}, {why}; give --split validation\n" in capsys.readouterr().err
    assert main([*argv, "--split", "validation"]) == 0
    (tmp_path / "own.jsonl").write_text(json.dumps({"sentence1": "A", "sentence2": "B", "label": -1}))
    assert main([*argv, "--data", str(tmp_path / "own.jsonl")]) == 1
    assert "own.jsonl, test: 1 of 1 examples have no label" in (err := capsys.readouterr().err) and "--split" not in err
    # The diagnostic set has no other split.
    assert main([*argv, "--task", "glue_ax_v002"]) == 1
    assert "3 of 3 examples have no label" in (err := capsys.readouterr().err) and "--split" not in err
