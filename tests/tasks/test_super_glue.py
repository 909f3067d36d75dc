"""SuperGLUE from handwritten rows in TFDS's raw format, and from small real TFDS records, without a network."""

from pathlib import Path

import pytest

from prompt_jax import data

ROOT = Path(__file__).parents[2]
ROWS = {
    "boolq": [
        {"question": "is the cat on the mat", "passage": "The cat sat on the mat.", "idx": 0, "label": 1},
        {"question": "is the cat loud", "passage": "The cat sat on the mat.", "idx": 1, "label": 0},
        {"question": "is it a dog", "passage": "A dog barks.", "idx": 2, "label": -1},
    ],
    "cb": [
        {"premise": "A dog barks.", "hypothesis": "a dog makes noise", "idx": 0, "label": 0},
        {"premise": "A dog barks.", "hypothesis": "a cat barks", "idx": 1, "label": 1},
        {"premise": "A dog barks.", "hypothesis": "the mat is good", "idx": 2, "label": 2},
    ],
    "rte": [
        {"premise": "A dog barks.", "hypothesis": "a dog makes noise", "idx": 0, "label": 0},
        {"premise": "A dog barks.", "hypothesis": "a cat barks", "idx": 1, "label": 1},
    ],
}
TEXTS = {
    "boolq": [
        ("passage: The cat sat on the mat. question: is the cat on the mat", "True"),
        ("passage: The cat sat on the mat. question: is the cat loud", "False"),
        ("passage: A dog barks. question: is it a dog", "<unk>"),
    ],
    "cb": [
        ("hypothesis: a dog makes noise premise: A dog barks.", "entailment"),
        ("hypothesis: a cat barks premise: A dog barks.", "contradiction"),
        ("hypothesis: the mat is good premise: A dog barks.", "neutral"),
    ],
    "rte": [
        ("hypothesis: a dog makes noise premise: A dog barks.", "entailment"),
        ("hypothesis: a cat barks premise: A dog barks.", "not_entailment"),
    ],
}


@pytest.fixture(scope="module", autouse=True)
def records(tmp_path_factory):
    """Real TFDS records: all rows as validation, the first as train, the last as test."""
    import seqio
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.sequential_writer import SequentialWriter

    root = str(tmp_path_factory.mktemp("tfds"))
    for name, rows in ROWS.items():
        builder = tfds.builder(f"super_glue/{name}:1.0.2", data_dir=root)
        Path(builder.data_dir).mkdir(parents=True)
        writer = SequentialWriter(builder.info, max_examples_per_shard=100)
        writer.initialize_splits(["train", "validation", "test"])
        writer.add_examples({"train": rows[:1], "validation": rows, "test": rows[-1:]})
        writer.close_all()
    seqio.set_tfds_data_dir_override(root)
    data.discover_tasks(ROOT / "tasks" / "super_glue.py")
    yield
    seqio.set_tfds_data_dir_override(None)


def load(name, split, tokenizer, **lengths):
    lengths = {"input_length": 512, "target_length": 32} | lengths
    return data.load_examples(f"super_glue_{name}_v102", tokenizer, split, **lengths)


@pytest.mark.parametrize("name", ROWS)
def test_records_become_the_texts_of_the_paper(name, tokenizer):
    examples = load(name, "validation", tokenizer)
    assert list(zip(examples.input_texts, examples.target_texts, strict=True)) == TEXTS[name]
    for text, ids in zip(examples.input_texts, examples.inputs, strict=True):
        assert ids.tolist() == [*tokenizer.encode(text), tokenizer.eos_id]


@pytest.mark.parametrize("name", ROWS)
def test_the_labels_are_in_the_order_of_tfds(name):
    import tensorflow_datasets as tfds

    features = tfds.builder(f"super_glue/{name}:1.0.2", data_dir="/nonexistent").info.features
    task_format = data.find_task(f"super_glue_{name}_v102").task_format
    assert list(task_format.labels) == features["label"].names
    assert set(task_format.columns) == set(features) - {"idx", "label"}


@pytest.mark.parametrize(("name", "prepared"), [("boolq", True), ("wic", False)])
def test_a_task_is_on_this_machine_once_tfds_has_prepared_it(name, prepared):
    """What a prompt file may have loaded without its user naming it: nothing that has to be downloaded."""
    import seqio

    source = seqio.TfdsDataSource(f"super_glue/{name}:1.0.2", splits=("train",))
    assert data.on_this_machine(seqio.Task(f"{name}_somewhere", source, output_features={})) is prepared


def test_cb_is_scored_by_the_mean_f1_of_its_classes_first(tokenizer):
    scores = load("cb", "validation", tokenizer).score(["entailment", "entailment", "noise"])
    assert list(scores) == ["mean_class_f1", "accuracy", "invalid"]
    assert scores == pytest.approx({"mean_class_f1": 2 / 9, "accuracy": 1 / 3, "invalid": 1 / 3})


def test_rte_is_scored_by_accuracy(tokenizer):
    scores = load("rte", "validation", tokenizer).score(["entailment", "entailment"])
    assert scores == {"accuracy": 0.5, "invalid": 0.0}


def test_examples_without_a_label_are_counted_and_not_scored(tokenizer):
    examples = load("boolq", "test", tokenizer)
    assert (len(examples), examples.unlabelled) == (1, 1)
    with pytest.raises(data.DataError, match="1 of 1 examples have no label"):
        examples.score(["True"])


def test_what_is_too_long_is_counted(tokenizer):
    examples = load("boolq", "validation", tokenizer, input_length=5)
    assert examples.truncated == {"inputs": 3, "targets": 0}
    assert all(len(ids) == 5 and ids[-1] == tokenizer.eos_id for ids in examples.inputs)


def test_a_task_bound_by_seqio_itself_gives_the_same_tokens(tokenizer, tmp_path):
    """The registered task is a whole seqio task: with a vocabulary it runs without this package."""
    import seqio

    (tmp_path / "model").write_bytes(tokenizer.model_proto)
    feature = seqio.Feature(seqio.SentencePieceVocabulary(str(tmp_path / "model"), extra_ids=tokenizer.extra_ids))
    task = data.find_task("super_glue_cb_v102").replace(output_features={"inputs": feature, "targets": feature})
    dataset = task.get_dataset({"inputs": 512, "targets": 32}, split="validation", shuffle=False)
    expected = load("cb", "validation", tokenizer)
    for row, inputs, targets in zip(dataset.as_numpy_iterator(), expected.inputs, expected.targets, strict=True):
        assert row["inputs"].tolist() == inputs.tolist()
        assert row["targets"].tolist() == targets.tolist()
