"""Questions from small files in MRQA's layout and from small real TFDS records, both written here."""

import gzip
import json
import string
from pathlib import Path

import pytest

from prompt_jax.data.load import LoadOptions, load_examples
from prompt_jax.data.registry import discover_tasks
from prompt_jax.errors import DataError

ROOT = Path(__file__).parents[2]
FILES = {  # as they are released
    "squad": "SQuAD",
    "textbook_qa": "TextbookQA",
    "bio_asq": "BioASQ",
    "race": "RACE",
    "relation_extraction": "RelationExtraction",
    "duo_rc": "DuoRC.ParaphraseRC",
    "drop": "DROP",
}
CAT = "The cat (Felis_catus), 3 kg,\nsat on a mat."
QUESTIONS = [  # passage, id, question, answers
    (CAT, "q1", "Where did it sit?", ["on a mat", "a mat.", "on a mat"]),
    (CAT, "q2", "What  weighs 3 kg?", ["The cat"]),
    ("A dog barks.", "q3", "Who?", ["dog", "A dog"]),
    ("A dog barks.", "q4", "Who?", ["none"]),  # asked twice, with another answer
]
SPACED = "The cat ( Felis_catus ) , 3 kg , sat on a mat ."
INPUTS = [
    f"question: Where did it sit ? context: {SPACED}",
    f"question: What weighs 3 kg ? context: {SPACED}",
    *["question: Who ? context: A dog barks ."] * 2,
]
REFERENCES = (("on a mat", "a mat ."), ("The cat",), ("dog", "A dog"), ("none",))


@pytest.fixture(scope="module", autouse=True)
def registered():
    discover_tasks(ROOT / "tasks" / "qa.py")


def lines(name="SQuAD"):
    """Write a file of MRQA: a header, then one passage per line."""
    passages = {passage: [] for passage, *_ in QUESTIONS}
    for passage, number, question, answers in QUESTIONS:
        passages[passage].append({"qid": number, "question": question, "answers": answers, "detected_answers": []})
    rows = [{"context": passage, "context_tokens": [], "qas": own} for passage, own in passages.items()]
    return [json.dumps(row) for row in ({"header": {"dataset": name, "split": "dev"}}, *rows)]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("PROMPT_JAX_DATA", str(tmp_path))
    for part in ("train", "dev"):
        (tmp_path / "mrqa" / part).mkdir(parents=True)
    return tmp_path / "mrqa"


def write(path, content):
    text = "".join(f"{line}\n" for line in content).encode()
    path.write_bytes(gzip.compress(text) if path.name.endswith(".gz") else text)


def load(name, split, tokenizer):
    return load_examples(name, tokenizer, split, LoadOptions(512, 64))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("end", [".jsonl.gz", ".jsonl"])
def test_questions_of_mrqas_files(folder, tokenizer, name, end):
    write(folder / "dev" / f"{FILES[name]}{end}", lines())
    examples = load(f"mrqa_{name}", "validation" if name == "squad" else "test", tokenizer)
    assert examples.input_texts == INPUTS
    assert examples.references == REFERENCES
    assert examples.target_texts == [own[0] for own in REFERENCES]


def test_training_has_the_first_answer_of_each_question(folder, tokenizer):
    write(folder / "train" / "SQuAD.jsonl.gz", lines())
    examples = load("mrqa_squad", "train", tokenizer)
    assert examples.input_texts == INPUTS and examples.references == ()
    assert examples.target_texts == [own[0] for own in REFERENCES]


def test_answers_are_scored_as_squad_does(folder, tokenizer):
    write(folder / "dev" / "RACE.jsonl", lines())
    examples = load("mrqa_race", "test", tokenizer)
    # mat: all of "a mat"; the cat: exactly; a big dog: 2 * 1 of 2 and 1 words, against either; one of none: nothing.
    scores = examples.score(["Mat!", "the cat", "a big dog", "nobody"])
    assert list(scores) == ["squad_f1", "exact_match"]
    assert scores == pytest.approx({"squad_f1": (1 + 1 + 2 / 3 + 0) / 4, "exact_match": 2 / 4})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (['{"header": {}}', '{"context": "a"}'], r"RACE.jsonl:2: not MRQA's JSON \(KeyError: 'qas'\)"),
        (['{"context": "a", "qas": [{"qid": "q", "answers": []}]}'], "RACE.jsonl:1: the question q has no answer"),
        (
            ['{"context": "a", "qas": [{"qid": "q", "question": "b", "answers": "yes"}]}'],
            'RACE.jsonl:1: the question q has the answers "yes"; expected a list of texts',
        ),
        (
            ['{"context": "a", "qas": [{"qid": "q", "question": "b", "answers": ["c", 3]}]}'],
            r'RACE.jsonl:1: the question q has the answers \["c", 3\]; expected a list of texts',
        ),
        (
            ['{"context": "a", "qas": [{"qid": "q", "question": null, "answers": ["c"]}]}'],
            "RACE.jsonl:1: column 'question' holds null; expected text",
        ),
        (
            ['{"context": "a", "qas": [{"question": "b", "answers": ["c"]}]}'],
            "RACE.jsonl:1: no column 'qid'; expected it among 'question', 'answers'",
        ),
        (['{"context": "a", "qas": [7]}'], r"RACE.jsonl:1: not MRQA's JSON \(TypeError"),
        (["{"], "RACE.jsonl:1: broken JSON"),
    ],
)
def test_malformed_files_are_named(folder, tokenizer, content, message):
    write(folder / "dev" / "RACE.jsonl", content)
    with pytest.raises(DataError, match=message):
        load("mrqa_race", "test", tokenizer)


def test_a_missing_file_is_named(folder, tokenizer, monkeypatch):
    with pytest.raises(DataError, match="DROP.jsonl.gz: no such file, nor .jsonl; expected the release of MRQA's data"):
        load("mrqa_drop", "test", tokenizer)
    monkeypatch.delenv("PROMPT_JAX_DATA")
    with pytest.raises(DataError, match="set PROMPT_JAX_DATA to a folder with the data set in mrqa/"):
        load("mrqa_drop", "test", tokenizer)


def mrqa_rows():
    """TFDS's rows, one per question."""
    nothing = {"tokens": [], "offsets": []}
    return [
        {"subset": "X", "context": passage, "context_tokens": nothing, "qid": number, "question": question}
        | {"question_tokens": nothing, "answers": answers, "detected_answers": []}
        for passage, number, question, answers in QUESTIONS
    ]


def test_questions_of_tfds(write_records, tokenizer):
    write_records("mrqa/squad:1.0.0", {"train": mrqa_rows()[1:2], "validation": mrqa_rows()})
    write_records("mrqa/drop:1.0.0", {"test": mrqa_rows()})
    squad = [
        {"id": number, "title": "x", "context": passage, "question": question}
        | {"answers": {"text": answers, "answer_start": [0] * len(answers)}}
        for passage, number, question, answers in QUESTIONS
    ]
    write_records("squad/v1.1:3.0.0", {"train": squad[1:2], "validation": squad})
    for name, split in (("mrqa_squad_v100", "validation"), ("mrqa_drop_v100", "test")):
        examples = load(name, split, tokenizer)
        assert examples.input_texts == INPUTS
        assert [tuple(dict.fromkeys(own)) for own in examples.references] == list(REFERENCES)
    examples = load("squad_v010_allanswers", "validation", tokenizer)
    assert examples.input_texts == INPUTS and examples.notes == ("q1", "q2", "q3", "q4")
    train = load("squad_v010_allanswers", "train", tokenizer)
    assert (train.input_texts, train.target_texts) == (INPUTS[1:2], ["The cat"])


def test_spaces_surround_all_but_ascii_letters_digits_and_underscores(folder, tokenizer):
    """T5's rule at the time of the paper: RE2's \\W, which matches accented letters."""
    text = "naïve e\u0301 _x_ №5 ½ ² 東京、हिन्दी! a—b…c €5 (d) “e” 'g's"
    row = {"context": text, "qas": [{"qid": "q", "question": "?", "answers": ["Zoë's"]}]}
    write(folder / "dev" / "RACE.jsonl", [json.dumps(row)])
    examples = load("mrqa_race", "test", tokenizer)
    kept = "".join(c if c in string.ascii_letters + string.digits + "_" else f" {c} " for c in text)
    assert examples.input_texts == [f"question: ? context: {' '.join(kept.split())}"]
    assert examples.references == (("Zo ë ' s",),)
