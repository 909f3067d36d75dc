"""Files, tasks and examples: nothing is lost, changed or guessed on the way from a row to token ids."""

import contextlib
import copy
import csv
import dataclasses
import functools
import gzip
import io
import json
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sentencepieces
from prompt_jax.checkpoints.tokenizer import Tokenizer
from prompt_jax.data.files import data_folder, file_task, normalize_text, read_rows, text_fraction
from prompt_jax.data.load import LoadOptions, load_examples
from prompt_jax.data.registry import discover_tasks, find_task, task_names
from prompt_jax.data.text_tasks import add_task, as_seqio, text_source
from prompt_jax.errors import DataError, UserError
from prompt_jax.task_format import UNLABELED, TaskFormat

SMALL = settings(max_examples=50)
LABELS = ("bad", "good")
REVIEW = TaskFormat("review: {text}", LABELS, input_length=64, target_length=16)
SENTENCES = ["review: this film is good", "that one was bad: 0 1 2 3", "abcdefghijklmnopqrstuvwxyz <>unk"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return sentencepieces.tokenizer(tmp_path_factory.mktemp("tokenizer"), SENTENCES, 60, sentinels=4)


def write(path, content):
    raw = content if isinstance(content, bytes) else content.encode("utf-8")
    path.write_bytes(gzip.compress(raw) if path.name.endswith(".gz") else raw)
    return path


def read(path):
    return [row for _, row in read_rows(path)]


# ---- files


text = st.text(st.characters(codec="utf-8"), max_size=20)
cells = st.lists(st.tuples(text, text), min_size=1, max_size=5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("files")


@SMALL
@given(rows=cells, gz=st.sampled_from(["", ".gz"]), ascii=st.booleans())
def test_any_text_comes_back_from_jsonl(folder, rows, gz, ascii):
    lines = [json.dumps({"a": a, "b": b}, ensure_ascii=ascii) + "\n" for a, b in rows]
    path = write(folder / f"x.jsonl{gz}", "".join(lines))
    assert [(row["a"], row["b"]) for row in read(path)] == rows


@SMALL
@given(rows=cells, gz=st.sampled_from(["", ".gz"]))
def test_any_text_comes_back_from_csv(folder, rows, gz):
    out = io.StringIO(newline="")
    csv.writer(out).writerows([("a", "b"), *rows])
    path = write(folder / f"x.csv{gz}", out.getvalue())
    assert [(row["a"], row["b"]) for row in read(path)] == rows


@pytest.mark.filterwarnings("ignore:.* looks quoted")
@SMALL
@given(rows=cells, gz=st.sampled_from(["", ".gz"]), end=st.sampled_from(["\n", "\r\n"]))
def test_any_text_without_tabs_and_line_breaks_comes_back_from_tsv(folder, rows, gz, end):
    rows = [tuple(cell.translate({9: " ", 10: " ", 13: " "}) for cell in row) for row in rows]
    rows.insert(0, ('not "quoted', ""))  # no program writes this in a file with quoted cells
    path = write(folder / f"x.tsv{gz}", "".join(f"{a}\t{b}{end}" for a, b in [("a", "b"), *rows]))
    assert [(row["a"], row["b"]) for row in read(path)] == rows


@SMALL
@given(
    content=st.one_of(
        st.binary(max_size=60),
        st.text(st.sampled_from('{}[]":,\t\n\r ab1"\\'), max_size=60).map(str.encode),
    ),
    name=st.sampled_from(["x.jsonl", "x.csv", "x.tsv"]),
    gz=st.sampled_from(["", ".gz"]),
)
def test_whatever_a_file_holds_there_are_rows_or_a_data_error(folder, content, name, gz):
    path = folder / f"any-{name}{gz}"
    path.write_bytes(content)  # as .gz, nearly never a gzip file
    with contextlib.suppress(DataError):
        rows = read(path)
        assert rows and all(isinstance(row, dict) for row in rows)
    with contextlib.suppress(DataError):
        list(file_task("t", {"train": path}, TaskFormat("{a}", LABELS), target="b").examples("train"))


def test_a_byte_order_mark_and_blank_lines_are_no_data(tmp_path):
    for name, content in (
        ("x.csv", "\ufeffa,b\n\n1,2\n\n"),
        ("x.tsv", "\ufeffa\tb\n\n1\t2\n\n"),
        ("x.jsonl", '\ufeff{"a": "1", "b": "2"}\n\n'),
    ):
        assert read(write(tmp_path / name, content)) == [{"a": "1", "b": "2"}]


def test_a_quotation_mark_in_tsv_is_text(tmp_path):
    assert read(write(tmp_path / "x.tsv", 'a\tb\n"so"\tx\n"no\ty\n')) == [
        {"a": '"so"', "b": "x"},
        {"a": '"no', "b": "y"},
    ]


def test_csv_rows_are_numbered_by_the_line_they_begin_on(tmp_path):
    path = write(tmp_path / "x.csv", 'a,b\n"1\n2",3\n4,5\n')
    assert [number for number, _ in read_rows(path)] == [2, 4]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", '{"text": "a", "label": "good"}\n{"text": \n', r"x.jsonl:2: broken JSON.*one JSON object a line"),
        ("x.jsonl", '{"text": "a", "label": "good"}\n[1]\n', "x.jsonl:2: a JSON list; expected one JSON object"),
        ("x.jsonl", '{"text": "a"}\n', "x.jsonl:1: no column 'label'; expected it among 'text'"),
        ("x.jsonl", '{"text": null, "label": "good"}\n', "x.jsonl:1: column 'text' holds null; expected text"),
        ("x.jsonl", '{"text": ["a"], "label": "good"}\n', r"x.jsonl:1: column 'text' holds \[\"a\"\]"),
        ("x.jsonl", '{"text": "\\ud800", "label": "good"}\n', "x.jsonl:1: column 'text' holds half of a surrogate"),
        ("x.jsonl", "[" * 100_000, "x.jsonl:1: broken JSON"),
        ("x.jsonl", '{"text": ' + "9" * 5000 + "}", "x.jsonl:1: broken JSON"),
        ("x.csv", "text,label\na,good\nb\n", r"x.csv:3: 1 cells; expected 2 \(text, label\)"),
        ("x.csv", "text,label\na,good,b\n", "x.csv:2: 3 cells; expected 2"),
        ("x.csv", 'text,label\n"a,good\nb,bad\n', "x.csv:2: broken CSV"),
        ("x.csv", 'text,label\n"a"b,good\n', "x.csv:2: broken CSV"),
        ("x.csv", "text,text\na,good\n", "x.csv:1: a header line with the columns.*expected distinct names"),
        ("x.csv", "txt,label\na,good\n", "x.csv:2: no column 'text'; expected it among 'txt', 'label'"),
        ("x.tsv", "text\tlabel\na\tgood\t\n", "x.tsv:2: 3 cells; expected 2.*a tab or a line break has to be quoted"),
        ("x.tsv", "text\tlabel\na\tGood\n", "x.tsv:2: column 'label' holds the label 'Good'; expected one of 'bad'"),
        ("x.csv", "text,label\na,2\n", "x.csv:2: .*'2'; expected one of 'bad', 'good', or its number from 0 to 1"),
        ("x.csv", b"text,label\na,good\n\xff,bad\n", "x.csv:3: not UTF-8.*byte 0.*expected UTF-8"),
        ("x.jsonl", '{"text": "a"}'.encode("utf-16-le"), "x.jsonl:1: broken JSON"),
        ("x.csv", "text,label\na,good\n".encode("utf-16-le"), "x.csv:1: a header line with NUL.*byte order mark"),
        ("x.csv", "text,label\na,good\n".encode("utf-32"), "x.csv: UTF-32; expected UTF-8"),
        ("x.csv", "text,label\nä,good\n".encode("utf-16")[:-1], "x.csv, after line 1: not UTF-16"),
        ("x.csv", "text,label\nnaïve,good\n".encode("latin-1"), "x.csv:2: not UTF-8 .byte 0xef at character 3"),
        ("x.jsonl", '{"text": NaN, "label": "good"}\n', "x.jsonl:1: column 'text' holds NaN; expected text, a finite"),
        ("x.csv", "text,label\na," + "9" * 5000 + "\n", "x.csv:2: column 'label' holds the label '9{60}…'; expected"),
        ("x.csv", "text;label\na;good\n", "x.csv:1: a header line with semicolons and no commas; expected commas"),
        ("x.csv", '"text";"label"\n"a";"good"\n', "x.csv:1: a header line with semicolons and no commas"),
        ("x.csv", "text\tlabel\na\tgood\n", "x.csv:1: .* with tabs and no commas; expected commas, or the name .tsv"),
        ("x.tsv", "text,label\na,good\n", "x.tsv:1: .* with commas and no tabs; expected tabs, or the name .csv"),
        ("x.tsv", 'text\tlabel\n"a ""b"" c"\tgood\nd\n', "x.tsv:3: 1 cells; expected 2"),
        ("x.csv", "text,label\r\ra,good\rb\r", r"x.csv:4: 1 cells; expected 2 \(text, label\)"),
        ("x.csv", "", "x.csv: no rows; expected at least one after a header line"),
        ("x.csv", "text,label\n", "x.csv: no rows"),
        ("x.jsonl", "\n \n", "x.jsonl: no rows; expected at least one JSON object on a line"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_line(tmp_path, tokenizer, name, content, message):
    task = file_task("t", {"train": write(tmp_path / name, content)}, REVIEW)
    with pytest.raises(DataError, match=message):
        load_examples(task, tokenizer, "train", LoadOptions(64, 16))


@pytest.mark.parametrize("cut", [5, -3])
def test_a_damaged_gzip_file_is_a_data_error(tmp_path, cut):
    packed = gzip.compress(b"text,label\n" + b"a,good\n" * 1000)
    path = tmp_path / "x.csv.gz"
    path.write_bytes(packed[:cut])
    with pytest.raises(DataError, match="x.csv.gz: cannot be read after line"):
        read(path)


@pytest.mark.parametrize(
    ("names", "share", "message"),
    [
        ({"train": "none.csv"}, 0, "none.csv: no such file"),
        ({"train": "x.txt"}, 0, r"x.txt: expected a file named .jsonl, .csv or .tsv"),
        ({}, 0, "names no file"),
        ({"train": "x.csv"}, 1.0, "less than 1, not 1.0"),
        ({"train": "x.csv", "validation": "x.csv"}, 0.1, "none for validation"),
        ({"test": "x.csv"}, 0.1, "there are files for test"),
    ],
)
def test_files_that_make_no_task_are_refused(tmp_path, names, share, message):
    write(tmp_path / "x.csv", "text,label\na,good\n")
    with pytest.raises(DataError, match=message):
        file_task("t", {k: tmp_path / v for k, v in names.items()}, REVIEW, validation_share=share)


def labels_read(tmp_path, labels, values):
    path = write(tmp_path / "x.jsonl", "".join(json.dumps({"text": "a", "label": v}) + "\n" for v in values))
    return [target for _, target in file_task("t", {"test": path}, TaskFormat("{text}", labels)).examples("test")]


def test_labels_may_be_strings_or_class_numbers(tmp_path):
    values = ["good", "bad", 0, 1, "0", "1", -1, "-1"]
    expected = ["good", "bad", "bad", "good", "bad", "good", UNLABELED, UNLABELED]
    assert labels_read(tmp_path, LABELS, values) == expected
    assert labels_read(tmp_path, ("False", "True"), [True, False, 0]) == ["True", "False", "False"]


def test_numbers_are_labels_only_where_a_label_is_a_number(tmp_path):
    assert labels_read(tmp_path, ("1", "2"), [1, "2"]) == ["1", "2"]
    with pytest.raises(DataError, match=r"the label '0'; expected one of '1', '2'$"):
        labels_read(tmp_path, ("1", "2"), [1, 0])


def test_free_text_and_no_targets_at_all(tmp_path):
    path = write(tmp_path / "x.csv", "text,answer\na,so it is\nb,\n")
    free = file_task("t", {"test": path}, TaskFormat("{text}"), target="answer")
    assert list(free.examples("test")) == [("a", "so it is"), ("b", "")]
    unlabeled = file_task("t", {"test": path}, REVIEW, target=None)
    assert [target for _, target in unlabeled.examples("test")] == [UNLABELED] * 2


def test_a_held_out_share_is_a_function_of_the_texts(tmp_path):
    rows = [f"text {i},good" for i in range(200)]
    path = write(tmp_path / "x.csv", "\n".join(["text,label", *rows, *[row.upper() for row in rows[:50]]]))
    path.write_text(path.read_text().replace(",GOOD", ",good"))
    task = file_task("t", {"train": path}, REVIEW, validation_share=0.25)
    assert task.splits == ("train", "validation")
    train, held_out = ([inputs for inputs, _ in task.examples(split)] for split in ("train", "validation"))
    assert len(train) + len(held_out) == 250 and 30 < len(held_out) < 95
    assert not set(map(normalize_text, train)) & set(map(normalize_text, held_out))


def test_a_limit_draws_from_all_over_the_file(tmp_path, tokenizer):
    """The file is sorted by its labels, as files often are."""
    rows = [f"text {i},{'good' if i < 100 else 'bad'}" for i in range(200)]
    task = file_task("t", {"test": write(tmp_path / "x.csv", "\n".join(["text,label", *rows, ""]))}, REVIEW)

    def load(limit=None):
        return load_examples(task, tokenizer, "test", LoadOptions(64, 16, limit))

    few, whole = load(limit=60), load()
    assert len(few) == 60 and 20 < few.target_texts.count("good") < 40
    places = [whole.input_texts.index(text) for text in few.input_texts]
    assert places == sorted(set(places)) and few.input_texts == load(limit=60).input_texts
    assert load(limit=1000).input_texts == whole.input_texts


def test_normalized_texts_and_their_fractions():
    assert normalize_text("  It's GREAT —\tisn't it? ") == "it s great isn t it"
    assert normalize_text(":) ") == ":)" != normalize_text(":(")
    assert text_fraction("A b!") == text_fraction("a  B")
    fractions = np.array([text_fraction(str(i)) for i in range(2000)])
    assert fractions.min() >= 0 and fractions.max() < 1
    assert abs((fractions < 0.1).mean() - 0.1) < 0.03


# ---- examples


def review_file(tmp_path, rows=(("this film is good", "good"), ("that one was bad", "bad"), ("a", "good"))):
    return write(tmp_path / "r.tsv", "".join(f"{a}\t{b}\n" for a, b in (("text", "label"), *rows)))


def load(task, tokenizer, split="train", input_length=64, target_length=16, **options):
    return load_examples(task, tokenizer, split, LoadOptions(input_length, target_length, **options))


def test_a_file_becomes_token_ids(tmp_path, tokenizer):
    examples = load(file_task("reviews", {"train": review_file(tmp_path)}, REVIEW), tokenizer)
    assert (examples.name, examples.split, examples.format) == ("reviews", "train", REVIEW)
    assert examples.input_texts[0] == "review: this film is good"
    assert examples.inputs[0].dtype == np.int32
    assert examples.inputs[0].tolist() == [*tokenizer.encode("review: this film is good"), 1]
    assert examples.targets[1].tolist() == [*tokenizer.encode("bad"), 1]
    assert examples.truncated == {"inputs": 0, "targets": 0}


def test_a_users_file_needs_neither_seqio_nor_tensorflow(tmp_path, tokenizer, monkeypatch):
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


def test_scores_count_answers_outside_the_labels(tmp_path, tokenizer):
    examples = load(file_task("t", {"train": review_file(tmp_path)}, REVIEW), tokenizer)
    assert examples.score(["good", "good", "great"]) == pytest.approx({"accuracy": 1 / 3, "invalid": 1 / 3})
    with pytest.raises(ValueError, match="2 predictions for 3 examples"):
        examples.score(["good", "good"])


def test_a_split_that_is_not_there_is_named_with_those_that_are(tmp_path, tokenizer):
    task = file_task("t", {"train": review_file(tmp_path)}, REVIEW)
    with pytest.raises(DataError, match="'t' has no split 'validation'; it has train"):
        load(task, tokenizer, "validation")


def test_a_hold_out_without_examples_is_an_error(tmp_path, tokenizer):
    path = review_file(tmp_path, [("a", "good")])
    share = text_fraction("review: a") / 2  # the only text is above it
    with pytest.raises(DataError, match="'validation' of the task 't' has no examples"):
        load(file_task("t", {"train": path}, REVIEW, validation_share=share), tokenizer, "validation")


def test_labels_that_the_model_cannot_write_are_an_error(tmp_path, tokenizer):
    path = review_file(tmp_path, [("a", "böse")])
    with pytest.raises(DataError, match="'böse', which the model's tokenizer can only write as"):
        load(file_task("t", {"train": path}, TaskFormat("{text}", ("böse", "good"))), tokenizer)
    with pytest.raises(DataError, match=r"'good' .* has \d tokens with its end token; expected at most .* 1"):
        load(file_task("t", {"train": path}, TaskFormat("{text}", ("good",))), tokenizer, target_length=1)


# ---- seqio


@pytest.fixture
def registry():
    """Tasks registered during a test are gone after it."""
    import seqio

    before = set(seqio.TaskRegistry.names())
    yield seqio.TaskRegistry
    for name in set(seqio.TaskRegistry.names()) - before:
        seqio.TaskRegistry.remove(name)


def source(columns, splits=("train",)):
    import seqio
    import tensorflow as tf

    def dataset(split, shuffle_files):
        return tf.data.Dataset.from_tensor_slices(columns)

    return seqio.FunctionDataSource(dataset, splits=splits)


def test_a_registered_task_renders_strings_and_integers(registry, tokenizer):
    columns = {"text": ["good\nfilm", "bad ünk"], "year": [1999, 2021], "label": [1, -1]}
    add_task("t_years", source(columns), TaskFormat("{year}: {text}, {year}", LABELS))
    examples = load("t_years", tokenizer)
    assert examples.input_texts == ["1999: good\nfilm, 1999", "2021: bad ünk, 2021"]
    assert examples.target_texts == ["good", UNLABELED]
    assert examples.unlabeled == 1
    assert examples.inputs[1].tolist() == [*tokenizer.encode("2021: bad ünk, 2021"), 1]
    assert len(load("t_years", tokenizer, limit=1)) == 1


def test_preprocessors_come_before_the_template(registry, tokenizer):
    def lower(dataset):
        import tensorflow as tf

        return dataset.map(lambda row: {"text": tf.strings.lower(row["loud"]), "answer": "good"})

    add_task("t_lower", source({"loud": ["A B"]}), REVIEW, target="answer", preprocessors=[lower])
    assert load("t_lower", tokenizer).input_texts == ["review: a b"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"txt": ["a"], "label": ["good"]}, "no column 'text' in the source; expected it among txt, label"),
        ({"text": [0.5], "label": ["good"]}, "column 'text' of the source is float32; expected strings or integers"),
        ({"text": ["a"], "label": ["worse"]}, "example 0 of t_wrong, train, has the target 'worse'; expected one of"),
        ({"text": ["a"], "label": [2]}, "has the target '2'; expected one of 'bad', 'good'"),
    ],
)
def test_a_source_that_does_not_fit_its_format_is_an_error(registry, tokenizer, columns, message):
    add_task("t_wrong", source(columns), REVIEW)
    with pytest.raises(DataError, match=message):
        load("t_wrong", tokenizer)


def plain_task(vocabulary, texts=("this film", "good"), **options):
    """A seqio task such as a user may have, without a TaskFormat."""
    import seqio

    feature = seqio.Feature(vocabulary, add_eos=True)
    return seqio.Task(
        "t_plain",
        source=source({"inputs": [texts[0], "a"], "targets": [texts[1], "b"], "id": [7, 8], "note": [0.5, 1]}),
        output_features={"inputs": feature, "targets": feature},
        preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
        **options,
    )


@pytest.mark.parametrize("index", (1000, -1))
def test_ids_that_the_model_has_no_row_for_are_an_error(tokenizer, index):
    """JAX clamps them. Here of a task that makes its tokens itself; of texts the tokenizer says so."""
    import seqio

    task = plain_task(seqio.PassThroughVocabulary(size=0))

    def beyond(dataset):
        return dataset.map(lambda row: {**row, "targets": [index]})

    with pytest.raises(
        DataError, match=f"gives targets with the token id {index}; expected ids from 0 to 999, the rows"
    ):
        load(task.replace(preprocessors=[*task.preprocessors, beyond]), tokenizer)


def test_a_label_that_the_model_has_no_row_for_is_an_error(tmp_path, tokenizer):
    """A token that was added to the tokenizer, and not to the model, would be trained to accuracy 0."""
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


def test_a_plain_seqio_tasks_own_metrics_are_used(tokenizer):
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


def test_a_task_with_the_models_own_vocabulary_is_accepted(tokenizer):
    import seqio

    path = sentencepieces.model_file(tokenizer)
    examples = load(plain_task(seqio.SentencePieceVocabulary(str(path), extra_ids=4)), tokenizer)
    assert examples.inputs[0].tolist() == [*tokenizer.encode("this film"), 1]
    with pytest.raises(DataError, match=r"inputs of the task 't_plain' have a vocabulary that is not the model's"):
        load(plain_task(seqio.SentencePieceVocabulary(str(path), extra_ids=5)), tokenizer)
    with pytest.raises(DataError, match="ByteVocabulary"):
        load(plain_task(seqio.ByteVocabulary()), tokenizer)


def test_random_preprocessors_give_the_same_each_time(tokenizer):
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


def test_only_preprocessors_that_cannot_do_without_are_told_the_lengths(tokenizer):
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


def test_a_task_without_tokens_says_how_to_make_them(tokenizer):
    import seqio

    task = plain_task(seqio.PassThroughVocabulary(size=0)).replace(preprocessors=[lambda dataset: dataset.batch(2)])
    with pytest.raises(DataError, match=r"gives inputs of type .*; expected token ids \[T\]"):
        load(task, tokenizer)


def test_a_file_task_is_a_seqio_task_too(tmp_path, tokenizer):
    import seqio

    task = file_task("reviews", {"train": review_file(tmp_path)}, REVIEW)
    expected = load(task, tokenizer)
    again = load(as_seqio(task), tokenizer)
    assert again.input_texts == expected.input_texts and again.target_texts == expected.target_texts
    vocabulary = seqio.SentencePieceVocabulary(str(sentencepieces.model_file(tokenizer)), extra_ids=4)
    feature = seqio.Feature(vocabulary)
    bound = as_seqio(task).replace(output_features={"inputs": feature, "targets": feature})
    rows = bound.get_dataset({"inputs": 64, "targets": 16}, "train", shuffle=False).as_numpy_iterator()
    assert [row["targets"].tolist() for row in rows] == [ids.tolist() for ids in expected.targets]


# ---- discovery


TASKS = """
import seqio
from prompt_jax import add_task
from prompt_jax.task_format import TaskFormat
add_task("t_found", seqio.FunctionDataSource(lambda split, shuffle_files: None, splits=["train"]), TaskFormat("{x}"))
"""


def test_tasks_are_found_once_and_names_suggested(registry, tmp_path):
    write(tmp_path / "mine.py", TASKS)
    write(tmp_path / "_helper.py", "raise RuntimeError")
    assert "t_found" in discover_tasks(tmp_path)
    assert "t_found" in discover_tasks(tmp_path / "mine.py")
    assert find_task("t_found").task_format == TaskFormat("{x}")
    with pytest.raises(DataError, match="no task is called 't_fuond'; did you mean t_found"):
        find_task("t_fuond")


def test_without_a_folder_of_tasks_there_is_nothing_to_find(monkeypatch, tmp_path, registry):
    monkeypatch.chdir(tmp_path)
    before = task_names()
    assert discover_tasks() == before
    (tmp_path / "tasks").mkdir()
    write(tmp_path / "tasks" / "mine.py", TASKS)
    assert discover_tasks() == sorted([*before, "t_found"])
    with pytest.raises(DataError, match="elsewhere: no such file or directory"):
        discover_tasks(tmp_path / "elsewhere")


def test_a_broken_module_is_named_with_its_cause_and_leaves_nothing(registry, tmp_path):
    path = write(tmp_path / "broken.py", TASKS + "\n1 / 0\n")
    for _ in range(2):  # the second time for the same reason, not for a task that is there already
        with pytest.raises(DataError, match=r"broken.py: .*ZeroDivisionError: division by zero"):
            discover_tasks(tmp_path)
    assert "t_found" not in task_names()
    write(path, TASKS)
    assert "t_found" in discover_tasks(tmp_path)


def test_a_mixture_is_not_a_task(registry):
    import seqio

    add_task("t_part", source({"text": ["a"], "label": ["good"]}), REVIEW)
    seqio.MixtureRegistry.add("t_mixture", ["t_part"], default_rate=1)
    with pytest.raises(DataError, match="'t_mixture' is a mixture"):
        find_task("t_mixture")
    seqio.MixtureRegistry.remove("t_mixture")


# ---- several targets of one input

DESCRIBED = (
    *(("x 1", "this film is good"), ("x 2", "that one was bad"), ("x 1", "a good film"), ("x 3", "bad")),
    *(("x 2", "that was"), ("x 1", "good")),
)
TEXTS = TaskFormat("{text}", metrics=("bleu", "exact_match"), input_length=64, target_length=16)


def described_file(tmp_path):
    return write(tmp_path / "d.tsv", "".join(f"{a}\t{b}\n" for a, b in (("text", "label"), *DESCRIBED)))


def both_kinds(tmp_path, registry, task_format):
    """The same rows as a user's file and as a seqio task."""
    path = described_file(tmp_path)
    files = file_task("described", {"train": path, "validation": path, "test": path}, task_format)
    columns = {"text": [a for a, _ in DESCRIBED], "label": [b for _, b in DESCRIBED]}
    return files, add_task("described_seqio", source(columns, ("train", "test")), task_format)


def test_rows_of_one_input_and_other_notes_are_other_examples(tokenizer, registry):
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


def test_free_text_without_an_answer_is_not_scored(tmp_path, tokenizer):
    path = write(tmp_path / "x.csv", "text,answer\nx 1,so it is\nx 2,\n")
    examples = load(file_task("t", {"test": path}, TEXTS, target=None), tokenizer, "test")
    assert examples.unlabeled == 2
    with pytest.raises(DataError, match="t, test: 2 of 2 examples have no label, or no answer"):
        examples.score(["a", "b"])


def test_inputs_that_come_again_are_one_example_with_several_references(tmp_path, tokenizer, registry):
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


def test_training_has_a_row_for_each_pair(tmp_path, tokenizer, registry):
    for task in both_kinds(tmp_path, registry, TEXTS):
        examples = load(task, tokenizer, "train")
        assert list(zip(examples.input_texts, examples.target_texts, strict=True)) == list(DESCRIBED)
        assert examples.references == () and examples.expected == examples.target_texts


def test_metrics_of_single_answers_leave_rows_as_they_are(tmp_path, tokenizer, registry):
    for task in both_kinds(tmp_path, registry, dataclasses.replace(TEXTS, metrics=("exact_match",))):
        assert len(load(task, tokenizer, "test")) == 6
        chosen = load(task, tokenizer, "test", metrics=("chrf", "bleu"))
        assert len(chosen) == 3 and chosen.format.metrics == ("chrf", "bleu")
        assert list(chosen.score(["a", "b", "c"])) == ["chrf", "bleu"]


def test_a_limit_is_of_inputs_with_all_their_references(tmp_path, tokenizer):
    task = file_task("t", {"test": described_file(tmp_path)}, TEXTS)
    whole, few = load(task, tokenizer, "test"), load(task, tokenizer, "test", limit=2)
    places = [whole.input_texts.index(text) for text in few.input_texts]
    assert len(few) == 2 and few.references == tuple(whole.references[place] for place in places)


def test_draws_are_seeded_and_the_smaller_is_part_of_the_larger(tmp_path, tokenizer):
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
    with pytest.raises(DataError, match="'plain' has metrics of its own"):
        load(task, tokenizer, metrics=("bleu",))


def test_what_a_source_of_texts_raises_comes_through(tokenizer, registry):
    def broken(split):
        raise DataError(f"no {split} here")
        yield

    task = add_task("broken", text_source(broken, ("train",)), TaskFormat("{source}"), target="target")
    with pytest.raises(DataError, match=r"^no train here$"):
        load(task, tokenizer)


def test_the_folder_of_a_data_set(tmp_path, monkeypatch):
    monkeypatch.delenv("PROMPT_JAX_DATA", raising=False)
    with pytest.raises(DataError, match="set PROMPT_JAX_DATA to a folder with the data set in e2e/"):
        data_folder("e2e")
    monkeypatch.setenv("PROMPT_JAX_DATA", str(tmp_path))
    with pytest.raises(DataError, match="e2e: no such folder"):
        data_folder("e2e")
    (tmp_path / "e2e").mkdir()
    assert data_folder("e2e") == tmp_path / "e2e"
