"""SuperGLUE from handwritten rows in TFDS's raw format, and from small real TFDS records, without a network."""

import sys
from pathlib import Path

import numpy as np
import pytest

import sentencepieces
from prompt_jax.data.downloads import is_downloaded
from prompt_jax.data.load import LoadOptions, load_examples
from prompt_jax.data.registry import discover_tasks, find_task, mixture_rates, short_name
from prompt_jax.data.seqio_tasks import as_seqio
from prompt_jax.ensembles.evaluation import combine
from prompt_jax.ensembles.vote import comparison
from prompt_jax.errors import DataError
from prompt_jax.inference.evaluation import Evaluation

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
    "copa": [
        {"premise": "The cat sat.", "choice1": "It slept.", "choice2": "It ran.", "question": "effect", "idx": 0}
        | {"label": 1},
        {
            "premise": "The cat ran.",
            "choice1": "A dog.",
            "choice2": "A mat.",
            "question": "cause",
            "idx": 1,
            "label": 0,
        },
    ],
    "multirc": [
        {"paragraph": "<b>Sent 1: </b>A cat.<br><b>Sent 2: </b>A dog.<br>", "question": "Who?", "answer": answer}
        | {"idx": {"paragraph": paragraph, "question": question, "answer": i}, "label": label}
        for i, (paragraph, question, answer, label) in enumerate(
            [(0, 0, "A cat", 1), (0, 0, "<br>A mat</b>", 0), (0, 1, "A dog", 1), (1, 0, "Nobody", 0), (1, 0, "He", -1)]
        )
    ],
    "wic": [
        {"word": "bank", "sentence1": "A bank.", "sentence2": "The bank.", "idx": 0, "label": label}
        | {"start1": 2, "end1": 6, "start2": 4, "end2": 8}
        for label in (0, 1)
    ],
    "axg": [
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
    "copa": [
        ("choice1: It slept. choice2: It ran. premise: The cat sat. question: effect", "choice2"),
        ("choice1: A dog. choice2: A mat. premise: The cat ran. question: cause", "choice1"),
    ],
    "multirc": [
        ("question: Who? answer: A cat paragraph: Sent 1: A cat. Sent 2: A dog. ", "True"),
        ("question: Who? answer:  A mat paragraph: Sent 1: A cat. Sent 2: A dog. ", "False"),
        ("question: Who? answer: A dog paragraph: Sent 1: A cat. Sent 2: A dog. ", "True"),
        ("question: Who? answer: Nobody paragraph: Sent 1: A cat. Sent 2: A dog. ", "False"),
        ("question: Who? answer: He paragraph: Sent 1: A cat. Sent 2: A dog. ", "<unk>"),
    ],
    "wic": [("sentence1: A bank. sentence2: The bank. word: bank", label) for label in ("False", "True")],
}
TEXTS["axg"] = TEXTS["rte"]
SIMPLE = ("boolq", "cb", "copa", "rte", "axg")  # those whose template has all of their columns

ROWS["axb"] = [
    {"sentence1": "A dog barks.", "sentence2": text, "idx": 0, "label": label}
    for text, label in (("a dog makes noise", 0), ("a cat barks", 1))
]
TEXTS["axb"] = TEXTS["rte"]

PASSAGE = "Paul met Anna.\n@highlight\nThey talked\n@highlight\nAnd left!\n@highlight\nFor good"
RECORD = [  # query, answers, idx: the first two differ by nothing but their number
    ("@placeholder is a name", ["Anna", "Paul"], (0, 0)),
    ("@placeholder is a name", ["Paul"], (0, 1)),
    ("who is @placeholder", [], (1, 0)),
]
ROWS["record"] = [
    {"passage": PASSAGE, "query": query, "entities": ["Anna", "Paul"], "answers": answers}
    | {"idx": {"passage": passage, "query": number}}
    for query, answers, (passage, number) in RECORD
]

BOY = 'The boy laughed at the pony . "Good for him," he said. '
STONE = "Some day they might want to use it , but now"
WSC = [  # text, candidate, pronoun, its word, label
    ("Mark told Pete about himself , as he was proud .", "Mark", "he", 7, 1),
    ("Mark told Pete about himself , as he was proud .", "Pete", "he", 7, 0),
    (BOY, "The pony", "him", 8, 1),
    (STONE, "the stone", "it", 6, 1),  # of "use": one too low
    ("Anna saw the dog and fed it.", "the dog", "it", 6, -1),
]
ROWS["wsc"] = [
    {"text": text, "span1_text": candidate, "span2_text": pronoun, "span1_index": 0, "span2_index": word, "idx": i}
    | {"label": label}
    for i, (text, candidate, pronoun, word, label) in enumerate(WSC)
]

SPLITS = {name: {"test": ROWS[name]} for name in ("axb", "axg")}
SPLITS |= {name: {"train": ROWS[name], "validation": ROWS[name], "test": ROWS[name][-1:]} for name in ("record", "wsc")}


@pytest.fixture(scope="module", autouse=True)
def records(write_records):
    """Write TFDS records: all rows as validation, the first as train, the last as test."""
    for name, rows in ROWS.items():
        data_name = {"wsc": "wsc.fixed"}.get(name, name)
        splits = {"train": rows[:1], "validation": rows, "test": rows[-1:]}
        write_records(f"super_glue/{data_name}:1.0.2", SPLITS.get(name, splits))
    discover_tasks(ROOT / "tasks" / "super_glue.py")


def load(name, split, tokenizer, **lengths):
    lengths = {"input_length": 512, "target_length": 32} | lengths
    name = f"super_glue_{name}" if "_v102" in name else f"super_glue_{name}_v102"
    return load_examples(name, tokenizer, split, LoadOptions(**lengths))


@pytest.mark.parametrize("name", TEXTS)
def test_records_become_the_papers_texts(name, tokenizer):
    examples = load(name, "test" if name in SPLITS else "validation", tokenizer)
    assert list(zip(examples.input_texts, examples.target_texts, strict=True)) == TEXTS[name]
    for text, ids in zip(examples.input_texts, examples.inputs, strict=True):
        assert ids.tolist() == [*tokenizer.encode(text), tokenizer.eos_id]


@pytest.mark.parametrize("name", TEXTS)
def test_the_labels_are_in_the_order_of_tfds(name):
    import tensorflow_datasets as tfds

    features = tfds.builder(f"super_glue/{name}:1.0.2", data_dir="/nonexistent").info.features
    task_format = find_task(f"super_glue_{name}_v102").task_format
    assert list(task_format.labels) == features["label"].names
    if name in SIMPLE:
        assert list(task_format.columns) == sorted(set(features) - {"idx", "label"})


@pytest.mark.parametrize(("name", "prepared"), [("boolq", True), ("wsc", False)])
def test_a_task_is_downloaded_once_tfds_has_prepared_it(name, prepared):
    """A prompt file may load a task without being asked only if nothing has to be downloaded."""
    import seqio

    source = seqio.TfdsDataSource(f"super_glue/{name}:1.0.2", splits=("train",))
    assert is_downloaded(seqio.Task(f"{name}_somewhere", source, output_features={})) is prepared


def test_cb_is_scored_by_the_mean_f1_of_its_classes_first(tokenizer):
    scores = load("cb", "validation", tokenizer).score(["entailment", "entailment", "noise"])
    assert list(scores) == ["mean_class_f1", "accuracy", "invalid"]
    assert scores == pytest.approx({"mean_class_f1": 2 / 9, "accuracy": 1 / 3, "invalid": 1 / 3})


def test_rte_is_scored_by_accuracy(tokenizer):
    scores = load("rte", "validation", tokenizer).score(["entailment", "entailment"])
    assert scores == {"accuracy": 0.5, "invalid": 0.0}


def test_examples_without_a_label_are_counted_and_not_scored(tokenizer):
    examples = load("boolq", "test", tokenizer)
    assert (len(examples), examples.unlabeled) == (1, 1)
    with pytest.raises(DataError, match="1 of 1 examples have no label"):
        examples.score(["True"])


def test_truncated_inputs_are_counted(tokenizer):
    examples = load("boolq", "validation", tokenizer, input_length=5)
    assert examples.truncated == {"inputs": 3, "targets": 0}
    assert all(len(ids) == 5 and ids[-1] == tokenizer.eos_id for ids in examples.inputs)


def test_a_task_bound_by_seqio_itself_gives_the_same_tokens(tokenizer):
    """As a seqio task it is complete: with a vocabulary, seqio can run it."""
    import seqio

    file = str(sentencepieces.model_file(tokenizer))
    feature = seqio.Feature(seqio.SentencePieceVocabulary(file, extra_ids=tokenizer.sentinels))
    task = as_seqio(find_task("super_glue_cb_v102")).replace(output_features={"inputs": feature, "targets": feature})
    dataset = task.get_dataset({"inputs": 512, "targets": 32}, split="validation", shuffle=False)
    expected = load("cb", "validation", tokenizer)
    for row, inputs, targets in zip(dataset.as_numpy_iterator(), expected.inputs, expected.targets, strict=True):
        assert row["inputs"].tolist() == inputs.tolist()
        assert row["targets"].tolist() == targets.tolist()


def test_multirc_is_scored_over_all_answers_and_by_question(tokenizer):
    whole = load("multirc", "validation", tokenizer)
    with pytest.raises(DataError, match="1 of 5 examples have no label"):
        whole.score(["True"] * 5)
    examples = whole.take([0, 1, 2, 3])
    # True: 2 hits, 1 false alarm. Of the questions 0-0, 0-1 and 1-0 the first is not all right.
    scores = examples.score(["True", "True", "True", "False"])
    assert scores == pytest.approx({"f1": 0.8, "group_exact_match": 2 / 3, "invalid": 0.0})
    assert list(scores) == ["f1", "group_exact_match", "invalid"]
    again = examples.take([1, 2, 2]).score(["True", "True", "True"])
    assert again["group_exact_match"] == 0.5, "a resample has the groups of its rows"


def test_a_limit_keeps_questions_of_multirc_whole(tokenizer):
    whole = load("multirc", "validation", tokenizer)
    sizes = {note: whole.notes.count(note) for note in whole.notes}
    assert sizes == {"0-0": 2, "0-1": 1, "1-0": 2}
    kept = [load("multirc", "validation", tokenizer, limit=limit) for limit in (2, 3, 4, 9)]
    for examples, limit in zip(kept, (2, 3, 4, 9), strict=True):
        assert 1 <= len(examples) <= limit
        assert all(examples.notes.count(note) == sizes[note] for note in examples.notes)
    texts = [set(examples.input_texts) for examples in kept]
    assert texts[0] <= texts[1] <= texts[2] < texts[3]
    assert len(load("multirc", "validation", tokenizer, limit=1)) >= 1


def test_record_has_an_example_for_each_answer_in_training_and_for_each_query_elsewhere(tokenizer):
    passage = "Paul met Anna. They talked. And left! For good"
    names, who = (
        f"query: {query} entities: Anna, Paul passage: {passage}" for query in (RECORD[0][0], "who is @placeholder")
    )
    train = load("record", "train", tokenizer)
    assert list(zip(train.input_texts, train.target_texts, strict=True)) == [
        *((names, "Anna"), (names, "Paul"), (names, "Paul"), (who, "<unk>"))
    ]
    examples = load("record", "validation", tokenizer)
    assert examples.input_texts == [names, names, who]
    assert examples.references == (("Anna", "Paul"), ("Paul",), ("<unk>",))
    assert examples.unlabeled == 1 and load("record", "test", tokenizer).unlabeled == 1
    scores = examples.take([0, 1]).score(["the paul", "Paul A."])
    assert scores == pytest.approx({"squad_f1": (1 + 1) / 2, "exact_match": 1.0})
    scores = examples.take([0, 1]).score(["Anna Paul", "Anna"])
    assert scores == pytest.approx({"squad_f1": (2 / 3 + 0) / 2, "exact_match": 0.0})


def test_wsc_asks_for_the_referent(tokenizer):
    mark = "Mark told Pete about himself , as *he* was proud ."
    texts = [mark, mark, 'The boy laughed at the pony . "Good for *him* ," he said. ']
    texts += ["Some day they might want to use *it* , but now", "Anna saw the dog and fed *it* ."]
    targets = ["Mark", "Pete", "The pony", "the stone", "<unk>"]
    validation, train = (load("wsc", split, tokenizer) for split in ("validation", "train"))
    assert (validation.input_texts, validation.target_texts) == (texts, targets)
    assert (train.input_texts, train.target_texts) == ([mark, *texts[2:4]], ["Mark", "The pony", "the stone"])
    # The second candidate is wrong, so that an answer that does not name it is right.
    examples = validation.take([0, 1, 2, 3])
    assert examples.score(["mark", "Mark", "pony", "a stone"]) == {"referent_accuracy": 1.0}
    assert examples.score(["Pete", "Pete", "his pony", "it"]) == {"referent_accuracy": 0.25}
    assert load("wsc", "test", tokenizer).unlabeled == 1


def test_a_missing_pronoun_is_an_error(tokenizer):
    import tensorflow as tf

    task = find_task("super_glue_wsc_v102")
    row = {"text": "a b c", "span1_text": "a", "span2_text": "it", "span2_index": 1, "label": 1}
    with pytest.raises(tf.errors.InvalidArgumentError, match="no pronoun in"):
        list(task.preprocessors[0](tf.data.Dataset.from_tensors(row)))


def test_definite_pronouns_have_the_format_of_wsc(write_records, tokenizer):
    rows = [
        {"sentence": "Bob asked Tom if he can lend what he has.", "pronoun": "he", "candidates": ["Bob", "Tom"]}
        | {"label": 1},
        {"sentence": "Ann fed it, it ate.", "pronoun": "it", "candidates": ["the dog", "a cat"], "label": 0},
    ]
    write_records("definite_pronoun_resolution:1.1.0", {"train": rows, "test": rows[1:]})
    train, validation = (
        load_examples("dpr_v001_simple", tokenizer, split, LoadOptions(64, 32)) for split in ("train", "validation")
    )
    assert list(zip(train.input_texts, train.target_texts, strict=True)) == [
        ("Bob asked Tom if *he* can lend what he has.", "Tom"),
        ("Ann fed *it*, it ate.", "the dog"),
    ]
    assert validation.input_texts == train.input_texts[1:]


def test_a_metric_on_notes_is_refused_without_notes(tokenizer):
    with pytest.raises(DataError, match="'super_glue_boolq_v102' has no notes, which group_exact_match needs"):
        load("boolq", "validation", tokenizer, metrics=("group_exact_match",))


def test_the_benchmark_has_eight_tasks():
    path = str(ROOT / "tasks" / "super_glue.py")
    module = next(m for m in list(sys.modules.values()) if getattr(m, "__file__", None) == path)
    assert set(module.BENCHMARK) == set(module.FORMATS) - {"axb", "axg"}


def test_the_mixtures_rates_are_the_sizes_of_the_tasks(tokenizer):
    """The sizes of the paper's table 7; for ReCoRD all correct answers (T5). The short names are T5's."""
    sizes = {"boolq": 9427, "cb": 250, "copa": 400, "multirc": 27243, "record": 138854, "rte": 2490, "wic": 5428}
    expected = {f"super_glue_{name}_v102": size for name, size in (sizes | {"wsc": 259}).items()}
    assert mixture_rates("super_glue_v102") == expected
    assert mixture_rates("super_glue_with_dpr_v102") == expected | {"dpr_v001_simple": 1322}
    names = [*sizes, "wsc", "dpr"]
    assert [short_name(task) for task in (*expected, "dpr_v001_simple")] == names
    options = LoadOptions(64, 16, prepend="rte ")
    named = load_examples("super_glue_rte_v102", tokenizer, "validation", options)
    assert named.format.template == "rte hypothesis: {hypothesis} premise: {premise}"
    assert named.input_texts == [f"rte {text}" for text, _ in TEXTS["rte"]]
    assert [ids.tolist() for ids in named.inputs] == [tokenizer.input_ids(text) for text in named.input_texts]


def test_targets_may_begin_with_a_sentinel(tokenizer):
    own, examples = (load(name, "validation", tokenizer) for name in ("boolq", "boolq_v102_sentinel"))
    assert examples.input_texts == own.input_texts
    assert examples.format.labels == ("<extra_id_0> False", "<extra_id_0> True")
    assert examples.target_texts == ["<extra_id_0> True", "<extra_id_0> False", "<unk>"]
    first = tokenizer.vocab_size - 1
    assert examples.targets[0].tolist() == [first, *tokenizer.encode("True"), tokenizer.eos_id]
    assert tokenizer.decode(examples.targets[0]) == "<extra_id_0> True"
    scores = examples.take([0, 1]).score(["<extra_id_0> True", "<extra_id_0> Maybe"])
    assert scores == {"accuracy": 0.5, "invalid": 0.5}


def test_an_answer_counts_with_and_without_the_sentinel(tokenizer):
    """As in the prompt-tuning code, whose metrics see `text.removeprefix("<extra_id_0>").lstrip()`."""
    examples = load("boolq_v102_sentinel", "validation", tokenizer).take([0, 1])  # True, False
    for answers in (["True", "False"], ["<extra_id_0>True", " False"], ["<extra_id_0> True", "<extra_id_0> False"]):
        assert examples.score(answers) == {"accuracy": 1.0, "invalid": 0.0}
    assert examples.score(["False", "<extra_id_0> <extra_id_0> False"]) == {"accuracy": 0.0, "invalid": 0.5}
    # A vote counts both forms as one answer, which the first member that gave it speaks for.
    given = [
        ["True", "False"],
        ["<extra_id_0> True", "<extra_id_0> True"],
        ["<extra_id_0> False", "<extra_id_0> False"],
    ]
    result = combine([Evaluation(examples.score(own), own, None, np.zeros(2)) for own in given], examples)
    assert result.vote.predictions == ["True", "False"] and result.vote.scores["accuracy"] == result.oracle == 1.0
    assert result.agreement[0].tolist() == [1.0, 0.5, 0.5]
    assert result.confusion[0].tolist() == [[1, 0, 0], [0, 1, 0]]  # False, True
    same = comparison(examples.format.labels)
    assert same("<extra_id_0> True") == same("True") != same("true")
    # Without labels too.
    record = load("record_v102_sentinel", "validation", tokenizer)
    assert record.has_sentinel and not load("record", "validation", tokenizer).has_sentinel
    same = comparison((), record.has_sentinel)
    assert same("<extra_id_0> The Paul") == same("paul") != comparison(())("<extra_id_0> The Paul")


@pytest.mark.parametrize("name", ["record", "wsc"])
def test_metrics_of_free_text_do_not_see_the_sentinel(name, tokenizer):
    own, examples = (load(f"{name}{end}", "validation", tokenizer) for end in ("", "_v102_sentinel"))
    known = [i for i, text in enumerate(own.target_texts) if text != "<unk>"]
    own, examples = own.take(known), examples.take(known)
    assert examples.target_texts == [f"<extra_id_0> {text}" for text in own.target_texts]
    answers = ["the paul", "Mark x", "pony", "a stone"][: len(known)]
    expected = own.score(answers)
    assert examples.score([f"<extra_id_0> {answer}" for answer in answers]) == expected
    assert examples.score(answers) == expected and 0 < next(iter(expected.values())) < 1
