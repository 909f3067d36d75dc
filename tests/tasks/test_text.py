"""The pretraining tasks on small text files: content, determinism, and errors."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

import sentencepieces
from prompt_jax import load_model
from prompt_jax.data import denoising
from prompt_jax.data.batches import TrainBatches
from prompt_jax.data.files import read_documents
from prompt_jax.data.load import LoadOptions, load_examples
from prompt_jax.data.registry import discover_tasks
from prompt_jax.errors import DataError

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    "the cat sat on the mat and the dog barks\nloudly at the cat",
    "a passage about a dog: it makes noise",
    "x",
    " ".join(f"it was great fun {i}" for i in range(25)),
]


@pytest.fixture(scope="module", autouse=True)
def registered():
    discover_tasks(ROOT / "tasks" / "text.py")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    sentences = [*DOCUMENTS, "0 1 2 3 4 5 6 7 8 9"]
    return sentencepieces.tokenizer(tmp_path_factory.mktemp("tokenizer"), sentences, 80, sentinels=10)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("PROMPT_JAX_DATA", str(tmp_path))
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "train-1.txt").write_text(f"{DOCUMENTS[0]}\n\n \n{DOCUMENTS[1]}\n")
    rows = "".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS[2:])
    (tmp_path / "text" / "train-2.jsonl.gz").write_bytes(gzip.compress(rows.encode()))
    (tmp_path / "text" / "validation.txt").write_text(DOCUMENTS[0])
    return tmp_path / "text"


def load(name, tokenizer, split="train", input_length=30, target_length=30, **options):
    return load_examples(name, tokenizer, split, LoadOptions(input_length, target_length, **options))


def text_of(examples, first_sentinel):
    """Reconstruct the text of each example from input and target."""
    for inputs, targets in zip(examples.inputs, examples.targets, strict=True):
        assert inputs[-1] == targets[-1] == 1
        spans = np.split(targets[:-1], np.flatnonzero(targets[:-1] > first_sentinel - 10))[1:]
        spans = {int(span[0]): span[1:].tolist() for span in spans}
        yield [j for i in inputs[:-1].tolist() for j in spans.pop(i, [i])]
        assert spans == {}


def test_blank_lines_separate_documents(folder, tmp_path):
    assert list(read_documents(folder / "train-1.txt")) == DOCUMENTS[:2]
    assert list(read_documents(folder / "train-2.jsonl.gz")) == DOCUMENTS[2:]
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"\n \n"))
    with pytest.raises(DataError, match=r"a.txt.gz: no text; expected documents"):
        list(read_documents(tmp_path / "a.txt.gz"))
    (tmp_path / "a.txt").write_bytes(b"a\n\xff\n")
    with pytest.raises(DataError, match=r"a.txt:2: not UTF-8"):
        list(read_documents(tmp_path / "a.txt"))
    with pytest.raises(DataError, match=r"a.md: expected a file named .txt, .jsonl, .csv or .tsv, with or without .gz"):
        list(read_documents(tmp_path / "a.md"))


def test_span_corruption_covers_all_text(folder, tokenizer):
    examples = load("span_corruption", tokenizer)
    ids = [i for text in DOCUMENTS for i in tokenizer.encode(text)]
    texts = list(text_of(examples, tokenizer.vocab_size - 1))
    assert [i for text in texts for i in text] == ids
    size = denoising.max_text_length(30)
    assert [len(text) for text in texts[:-1]] == [size] * (len(ids) // size)
    assert {len(row) for row in examples.inputs[:-1]} == {30}
    assert examples.truncated == {"inputs": 0, "targets": 0}
    assert "<extra_id_0>" in examples.input_texts[0] and examples.target_texts[0].startswith("<extra_id_0>")


def test_prefix_lm_does_not_cross_documents(folder, tokenizer):
    size = len(tokenizer.encode(DOCUMENTS[0])) - 1
    examples = load("prefix_lm", tokenizer, input_length=size, target_length=size + 5)
    pieces = [ids[i : i + size] for ids in map(tokenizer.encode, DOCUMENTS) for i in range(0, len(ids), size)]
    expected = [piece for piece in pieces if len(piece) > 1]
    actual = [
        [*inputs[:-1].tolist(), *targets[:-1].tolist()]
        for inputs, targets in zip(examples.inputs, examples.targets, strict=True)
    ]
    assert actual == expected and len(expected) < len(pieces), "a piece of one token is left out"
    assert len({len(row) for row in examples.inputs}) > 3
    assert all(row[-1] == tokenizer.eos_id and len(row) > 1 for row in examples.inputs + examples.targets)
    assert examples.truncated == {"inputs": 0, "targets": 0}


@pytest.mark.parametrize("name", ["span_corruption", "prefix_lm"])
def test_the_seed_determines_the_examples(folder, tokenizer, name):
    first, again, other = (load(name, tokenizer, seed=seed) for seed in (0, 0, 1))
    assert first.target_texts == again.target_texts != other.target_texts
    cut = load(name, tokenizer, seed=0, limit=5)
    assert set(cut.target_texts) <= set(first.target_texts)
    # As with other data, batches resume from an earlier position, on newly made examples.
    batches = [TrainBatches(own, 4, 0, (16, 32), tokenizer.pad_id, tokenizer.pad_id) for own in (first, again)]
    for _ in range(3):
        next(batches[0])
    batches[1].seek(batches[0].position)
    for ours, theirs in zip(next(batches[0]).values(), next(batches[1]).values(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert batches[0].fingerprint == batches[1].fingerprint


@pytest.mark.parametrize(
    ("name", "lengths", "message"),
    [
        ("span_corruption", (30, 5), "targets of up to 8, and target_length is 5; expected target_length 8"),
        ("span_corruption", (2, 30), "at least 3 tokens, and may have 2; expected a larger input_length"),
        ("span_corruption", (300, 300), r"need 17 sentinels, but token \d+ of the model is .*expected a smaller"),
        ("prefix_lm", (1, 30), "input_length and target_length must be at least 2, not 1"),
    ],
)
def test_invalid_lengths_are_refused(folder, tokenizer, name, lengths, message):
    with pytest.raises(DataError, match=message):
        load(name, tokenizer, input_length=lengths[0], target_length=lengths[1])


@pytest.mark.parametrize("name", ["span_corruption", "prefix_lm"])
def test_models_other_than_t5_are_refused(folder, tiny_folders, name):
    for family in ("gpt2", "bart"):
        tokenizer = load_model(str(tiny_folders[family])).tokenizer
        with pytest.raises(DataError, match=f"the task '{name}' makes its own tokens.*; expected a T5, or"):
            load(name, tokenizer)


@pytest.mark.parametrize("kind", ["md", "folder"])
def test_files_of_another_kind_are_refused(folder, tokenizer, kind):
    (folder / "train-0").mkdir() if kind == "folder" else (folder / "train.md").write_text("x")
    with pytest.raises(DataError, match=r"train\S+: expected a file named .txt, .jsonl, .csv or .tsv, with or"):
        load("prefix_lm", tokenizer)


def test_missing_files_are_named(folder, tokenizer, monkeypatch):
    (folder / "validation.txt").unlink()
    with pytest.raises(DataError, match=r"text: no file validation\*; expected .txt or .jsonl files"):
        load("prefix_lm", tokenizer, "validation")
    monkeypatch.delenv("PROMPT_JAX_DATA")
    with pytest.raises(DataError, match="set PROMPT_JAX_DATA to a folder with the data set in text/"):
        load("prefix_lm", tokenizer)
