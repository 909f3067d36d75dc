"""From tasks to token ids: no text is lost, changed or silently truncated."""

import copy
import dataclasses
import functools
import json
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prompt_jax.checkpoints.tokenizer import Tokenizer
from prompt_jax.data import stored_rows
from prompt_jax.data.files import file_task
from prompt_jax.data.load import LoadOptions, load_examples
from prompt_jax.data.registry import add_task
from prompt_jax.errors import DataError, UserError
from prompt_jax.task_format import TaskFormat
from reviews import REVIEW, load, plain_task, review_file, source, text_task, write

SMALL = settings(max_examples=50)


def test_a_limit_samples_the_whole_file(tmp_path, tokenizer):
    """The file is sorted by label, as files often are."""
    rows = [f"text {i},{'good' if i < 100 else 'bad'}" for i in range(200)]
    task = file_task("t", {"test": write(tmp_path / "x.csv", "\n".join(["text,label", *rows, ""]))}, REVIEW)

    def load(limit=None):
        return load_examples(task, tokenizer, "test", LoadOptions(64, 16, limit))

    few, whole = load(limit=60), load()
    assert len(few) == 60 and 20 < few.target_texts.count("good") < 40
    places = [whole.input_texts.index(text) for text in few.input_texts]
    assert places == sorted(set(places)) and few.input_texts == load(limit=60).input_texts
    assert load(limit=1000).input_texts == whole.input_texts


def test_a_file_becomes_token_ids(tmp_path, tokenizer):
    examples = load(file_task("reviews", {"train": review_file(tmp_path)}, REVIEW), tokenizer)
    assert (examples.name, examples.split, examples.format) == ("reviews", "train", REVIEW)
    assert examples.input_texts[0] == "review: this film is good"
    assert examples.inputs[0].dtype == np.int32
    assert examples.inputs[0].tolist() == [*tokenizer.encode("review: this film is good"), 1]
    assert examples.targets[1].tolist() == [*tokenizer.encode("bad"), 1]
    assert examples.truncated == {"inputs": 0, "targets": 0}


def test_a_file_needs_neither_seqio_nor_tensorflow(tmp_path, tokenizer, monkeypatch):
    for module in ("seqio", "tensorflow"):
        monkeypatch.setitem(sys.modules, module, None)  # importing it fails
    examples = load(file_task("t", {"test": review_file(tmp_path)}, REVIEW), tokenizer, "test")
    assert examples.score(["good", "bad", "good"]) == {"accuracy": 1.0, "invalid": 0.0}


@SMALL
@given(
    rows=st.lists(st.text(st.sampled_from("abc "), max_size=30), min_size=1, max_size=5),
    length=st.integers(1, 12),
)
def test_no_text_is_truncated_silently(folder, tokenizer, rows, length):
    path = write(folder / "t.jsonl", "".join(json.dumps({"x": row, "y": row}) + "\n" for row in rows))
    task = file_task("t", {"train": path}, TaskFormat("{x}", metrics=("exact_match",)), target="y")
    examples = load(task, tokenizer, input_length=length, target_length=length)
    whole = [[*tokenizer.encode(row), 1] for row in rows]
    for ids, kept in zip(whole, examples.inputs, strict=True):
        assert kept.tolist() == (ids if len(ids) <= length else [*ids[: length - 1], 1])
    cut = sum(len(ids) > length for ids in whole)
    assert examples.truncated == {"inputs": cut, "targets": cut}
    assert examples.input_texts == rows


def test_examples_on_disk_are_those_in_memory(tmp_path, tokenizer, registry):
    import seqio

    rows = [(f"text {i} " + "long " * (i % 7), "good" if i % 3 else "bad") for i in range(50)]
    tasks = [
        file_task("files", {"train": review_file(tmp_path, rows)}, REVIEW),
        text_task("t_registered", rows),
        plain_task(seqio.PassThroughVocabulary(size=0)),
    ]
    for task in tasks:
        for limit in (None, 9):
            memory, disk = (
                load(task, tokenizer, input_length=8, limit=limit, on_disk=on_disk) for on_disk in (False, True)
            )
            assert len(disk) == len(memory) == len(disk.inputs) and disk.truncated == memory.truncated
            assert disk.unlabeled == memory.unlabeled == 0
            for name in ("inputs", "targets", "input_texts", "target_texts"):
                ours, expected = getattr(disk, name), getattr(memory, name)
                assert not isinstance(ours, list)
                np.testing.assert_equal(list(ours), expected)


def test_examples_on_disk_are_not_in_memory(tmp_path, tokenizer, monkeypatch):
    """Neither while they are loaded nor afterwards. The same measure shows those in memory."""
    monkeypatch.setattr(stored_rows, "_BLOCK", 2**14)
    rows = [(f"text {i} " + "long " * 400, "good") for i in range(500)]
    task, size = file_task("t", {"train": review_file(tmp_path, rows)}, REVIEW), sum(len(text) for text, _ in rows)
    peaks = {}
    for on_disk in (False, True):
        load(task, tokenizer, input_length=1000, limit=2)  # caches
        tracemalloc.start()
        examples = load(task, tokenizer, input_length=1000, on_disk=on_disk)
        peaks[on_disk] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(examples) == 500
    assert peaks[False] > size and peaks[True] < size / 4


def test_an_unknown_split_is_an_error_that_names_the_splits(tmp_path, tokenizer):
    task = file_task("t", {"train": review_file(tmp_path)}, REVIEW)
    with pytest.raises(DataError, match="'t' has no split 'validation'; it has train"):
        load(task, tokenizer, "validation")


def test_labels_that_the_model_cannot_write_are_an_error(tmp_path, tokenizer):
    path = review_file(tmp_path, [("a", "böse")])
    with pytest.raises(DataError, match="'böse', which the model's tokenizer can only write as"):
        load(file_task("t", {"train": path}, TaskFormat("{text}", ("böse", "good"))), tokenizer)
    with pytest.raises(DataError, match=r"'good' .* has \d tokens with its end token; expected at most .* 1"):
        load(file_task("t", {"train": path}, TaskFormat("{text}", ("good",))), tokenizer, target_length=1)


@pytest.mark.parametrize("index", (1000, -1))
def test_ids_outside_the_embedding_table_are_an_error(tokenizer, index):
    """JAX would clamp them. This is a task with its own tokens; for text, the tokenizer raises the error."""
    import seqio

    task = plain_task(seqio.PassThroughVocabulary(size=0))

    def beyond(dataset):
        return dataset.map(lambda row: {**row, "targets": [index]})

    with pytest.raises(
        DataError, match=f"gives targets with the token id {index}; expected ids from 0 to 999, the rows"
    ):
        load(task.replace(preprocessors=[*task.preprocessors, beyond]), tokenizer)


def test_a_label_outside_the_embedding_table_is_an_error(tmp_path, tokenizer):
    """A token added to the tokenizer but not to the model would be trained to accuracy 0."""
    saved = copy.deepcopy(tokenizer.transformers)
    saved.add_tokens(["wonderful"])
    small = Tokenizer(saved, eos_id=1, end_ids=(), pad_id=0, rows=len(saved) - 1)
    task = file_task(
        "files",
        {"train": write(tmp_path / "x.jsonl", '{"text": "a", "label": "wonderful"}')},
        TaskFormat("{text}", ("wonderful", "bad")),
    )
    with pytest.raises(
        UserError, match=f"the token 'wonderful' with the id {len(saved) - 1}, .* has {len(saved) - 1} rows"
    ):
        load(task, small)


def test_a_plain_seqio_task_is_scored_by_equality(tokenizer):
    import seqio

    examples = load(plain_task(seqio.PassThroughVocabulary(size=0)), tokenizer)
    assert examples.format is None
    assert examples.input_texts == ["this film", "a"]
    assert [ids.tolist() for ids in examples.inputs] == [[*tokenizer.encode(x), 1] for x in ("this film", "a")]
    assert examples.score(["good", "a"]) == {"accuracy": 0.5}


def test_a_plain_seqio_task_keeps_its_metrics(tokenizer):
    import seqio

    def postprocess(answer, example, is_target):
        return (answer, int(example["id"]), is_target)

    def counts(targets, predictions):
        assert targets == [("good", 7, True), ("b", 8, True)]
        assert predictions == [("x", 7, False), ("y", 8, False)]
        return {"n": np.float32(2), "scalar": seqio.metrics.Scalar(3), "text": seqio.metrics.Text("not a number")}

    task = plain_task(seqio.PassThroughVocabulary(size=0), postprocess_fn=postprocess, metric_fns=[counts])
    assert load(task, tokenizer).score(["x", "y"]) == {"n": 2.0, "scalar": 3.0}


def test_metrics_on_scores_are_refused(tokenizer):
    import seqio

    def ranking(targets, scores):
        return {}

    task = plain_task(seqio.PassThroughVocabulary(size=0), metric_fns=[ranking])
    with pytest.raises(DataError, match=r"takes \(targets, scores\); expected \(targets, predictions\)"):
        load(task, tokenizer)


def test_metric_objects_are_refused(tokenizer):
    import seqio

    objects = [seqio.metrics.PassthroughLegacyMetric.from_metric_fn(lambda targets, predictions: {})]
    with pytest.raises(DataError, match="has metric_objs; expected metric_fns"):
        load(plain_task(seqio.PassThroughVocabulary(size=0), metric_objs=objects), tokenizer)


def test_random_preprocessors_are_reproducible(tokenizer):
    import seqio
    import tensorflow as tf

    @functools.partial(seqio.map_over_dataset, num_seeds=1)
    def random_prefix(row, seed):
        number = tf.strings.as_string(tf.random.stateless_uniform([], seed, 0, 10**6, tf.int32))
        return row | {"inputs": number}

    task = plain_task(seqio.PassThroughVocabulary(size=0))
    task = task.replace(preprocessors=[random_prefix, *task.preprocessors])
    first, second = load(task, tokenizer), load(task, tokenizer)
    assert first.input_texts == second.input_texts
    assert len(set(first.input_texts)) == 2


def test_only_preprocessors_that_require_lengths_get_them(tokenizer):
    import seqio

    told = []

    def needy(dataset, sequence_length):
        told.append(sequence_length)
        return dataset

    def content(dataset, sequence_length=None):
        told.append(sequence_length)
        return dataset

    task = plain_task(seqio.PassThroughVocabulary(size=0))
    for first in (content, needy):
        load(task.replace(preprocessors=[first, *task.preprocessors]), tokenizer, input_length=12, target_length=3)
    assert told == [None, {"inputs": 12, "targets": 3}]


def test_a_task_without_token_ids_is_an_error(tokenizer):
    import seqio

    task = plain_task(seqio.PassThroughVocabulary(size=0)).replace(preprocessors=[lambda dataset: dataset.batch(2)])
    with pytest.raises(DataError, match=r"gives inputs of type .*; expected token ids \[T\]"):
        load(task, tokenizer)


DESCRIBED = (
    *(("x 1", "this film is good"), ("x 2", "that one was bad"), ("x 1", "a good film"), ("x 3", "bad")),
    *(("x 2", "that was"), ("x 1", "good")),
)


TEXTS = TaskFormat("{text}", metrics=("bleu", "exact_match"), input_length=64, target_length=16)


def described_file(tmp_path):
    return write(tmp_path / "d.tsv", "".join(f"{a}\t{b}\n" for a, b in (("text", "label"), *DESCRIBED)))


def both_kinds(tmp_path, registry, task_format):
    """Return the same rows as a file and as a seqio task."""
    path = described_file(tmp_path)
    files = file_task("described", {"train": path, "validation": path, "test": path}, task_format)
    columns = {"text": [a for a, _ in DESCRIBED], "label": [b for _, b in DESCRIBED]}
    return files, add_task("described_seqio", source(columns, ("train", "test")), task_format)


def test_rows_with_equal_inputs_and_different_notes_stay_separate(tokenizer, registry):
    columns = {"text": [a for a, _ in DESCRIBED], "label": [b for _, b in DESCRIBED], "number": [1, 2, 1, 3, 2, 9]}
    add_task("described", source(columns, ("train", "test")), TEXTS, note="number")
    examples = load("described", tokenizer, "test")
    assert examples.input_texts == ["x 1", "x 2", "x 3", "x 1"] and examples.notes == ("1", "2", "3", "9")
    assert examples.references[0] == ("this film is good", "a good film") and examples.references[3] == ("good",)
    assert load("described", tokenizer).notes == ("1", "2", "1", "3", "2", "9")
    taken = examples.take([3, 0])
    assert taken.notes == ("9", "1")
    few = load("described", tokenizer, "test", limit=2)
    assert [examples.notes[examples.references.index(own)] for own in few.references] == list(few.notes)


def test_equal_inputs_are_merged_into_one_example_with_references(tmp_path, tokenizer, registry):
    for task in both_kinds(tmp_path, registry, TEXTS):
        examples = load(task, tokenizer, "test")
        assert examples.input_texts == ["x 1", "x 2", "x 3"], "in the order in which they first appear"
        assert examples.references == (
            ("this film is good", "a good film", "good"),
            ("that one was bad", "that was"),
            ("bad",),
        )
        assert examples.target_texts == ["this film is good", "that one was bad", "bad"]
        assert examples.targets[1].tolist() == [*tokenizer.encode("that one was bad"), 1]
        assert len(examples.inputs) == len(examples.targets) == len(examples) == 3
        assert examples.score(["Good", "that was", "good"])["exact_match"] == pytest.approx(2 / 3)


def test_training_examples_are_not_merged(tmp_path, tokenizer, registry):
    for task in both_kinds(tmp_path, registry, TEXTS):
        examples = load(task, tokenizer, "train")
        assert list(zip(examples.input_texts, examples.target_texts, strict=True)) == list(DESCRIBED)
        assert examples.references == () and examples.expected == examples.target_texts


def test_metrics_without_references_do_not_merge_rows(tmp_path, tokenizer, registry):
    for task in both_kinds(tmp_path, registry, dataclasses.replace(TEXTS, metrics=("exact_match",))):
        assert len(load(task, tokenizer, "test")) == 6
        chosen = load(task, tokenizer, "test", metrics=("chrf", "bleu"))
        assert len(chosen) == 3 and chosen.format.metrics == ("chrf", "bleu")
        assert list(chosen.score(["a", "b", "c"])) == ["chrf", "bleu"]


def test_a_limit_counts_merged_examples(tmp_path, tokenizer):
    task = file_task("t", {"test": described_file(tmp_path)}, TEXTS)
    whole, few = load(task, tokenizer, "test"), load(task, tokenizer, "test", limit=2)
    places = [whole.input_texts.index(text) for text in few.input_texts]
    assert len(few) == 2 and few.references == tuple(whole.references[place] for place in places)


def test_samples_are_seeded_and_nested(tmp_path, tokenizer):
    rows = [f"text {i},good" for i in range(100)]
    task = file_task("t", {"train": write(tmp_path / "x.csv", "\n".join(["text,label", *rows, ""]))}, REVIEW)
    draws = {
        (seed, limit): set(load(task, tokenizer, limit=limit, seed=seed).input_texts)
        for seed in (0, 1)
        for limit in (10, 30)
    }
    assert {len(draw) for draw in draws.values()} == {10, 30}
    assert draws[0, 10] < draws[0, 30] and draws[1, 10] < draws[1, 30] and draws[0, 10] != draws[1, 10]


def test_metrics_cannot_be_chosen_for_a_task_without_a_format(tokenizer, registry):
    import seqio

    task = seqio.Task(
        "plain",
        source=source({"text": ["a"], "label": ["b"]}),
        output_features=dict.fromkeys(("inputs", "targets"), seqio.Feature(seqio.PassThroughVocabulary(0))),
        preprocessors=[],
    )
    with pytest.raises(DataError, match="'plain' has its own metrics"):
        load(task, tokenizer, metrics=("bleu",))
