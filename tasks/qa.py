"""Questions about a passage: SQuAD, and six other domains to test on (Lester et al. 2021, section 5: domain shift).

`squad_v010_allanswers` is SQuAD 1.1 itself, from TFDS: 87,599 and 10,570 questions, as in the paper.

The data of MRQA's shared task (Fisch et al. 2019) are the domains `mrqa_textbook_qa`, `mrqa_bio_asq`, `mrqa_race`,
`mrqa_relation_extraction`, `mrqa_duo_rc` and `mrqa_drop`, which have a test split alone, and `mrqa_squad`, a subset of
SQuAD with the splits train and validation. They are read as they were released: `train/SQuAD.jsonl.gz` and
`dev/NAME.jsonl.gz` (FILES; also unpacked, `.jsonl`), in the folder `mrqa` of the one that the environment variable
PROMPT_JAX_DATA names. TFDS has the same as `mrqa_NAME_v100`.

A question becomes `question: ... context: ...`. Spaces surround every character that is not an ASCII letter, an ASCII
digit or an underscore, as in T5 at the time of the paper. This separates accented letters as well. (Since April 2022,
T5 separates ASCII punctuation only. mT5 keeps the letters and digits of all scripts.) The target is the first answer.
In training an example has no other (SQuAD has one), and is scored with the best of all answers elsewhere. All questions
of a passage count; the paper's script for MRQA's files takes the first one of each.
"""

import functools
import json
from collections.abc import Iterator
from pathlib import Path

import seqio
import tensorflow as tf

from prompt_jax import add_task, text_source
from prompt_jax.data.files import column_text, data_folder, read_rows
from prompt_jax.errors import DataError
from prompt_jax.task_format import TaskFormat

FILES = {  # in TFDS's spelling, and in the release's
    "squad": "SQuAD",
    "textbook_qa": "TextbookQA",
    "bio_asq": "BioASQ",
    "race": "RACE",
    "relation_extraction": "RelationExtraction",
    "duo_rc": "DuoRC.ParaphraseRC",
    "drop": "DROP",
}
COLUMNS = ("question", "context", "answer", "id")
FORMAT = TaskFormat(
    "question: {question} context: {context}", metrics=("squad_f1", "exact_match"), input_length=512, target_length=32
)


def examples(split: str, name: str) -> Iterator[tuple[str, ...]]:
    """Question, passage, answer and the question's id: for each answer, but in training for the first alone."""
    path = find_file("train" if split == "train" else "dev", FILES[name])
    for line, row in read_rows(path):
        if "header" in row:  # the first line
            continue
        where = f"{path}:{line}"
        try:
            for question in row["qas"]:
                answers, number = question["answers"], column_text(question, "qid", where)
                if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
                    found = json.dumps(answers)[:40]
                    raise DataError(f"{where}: the question {number} has the answers {found}; expected a list of texts")
                if not answers:
                    raise DataError(f"{where}: the question {number} has no answer; expected some")
                for answer in answers[:1] if split == "train" else dict.fromkeys(answers):
                    yield column_text(question, "question", where), column_text(row, "context", where), answer, number
        except (KeyError, TypeError) as error:
            raise DataError(f"{where}: not MRQA's JSON ({type(error).__name__}: {error})") from error


def find_file(part: str, name: str) -> Path:
    """The file of a set, packed or not."""
    folder = data_folder("mrqa") / part
    for path in (folder / f"{name}.jsonl.gz", folder / f"{name}.jsonl"):
        if path.is_file():
            return path
    raise DataError(f"{folder / name}.jsonl.gz: no such file, nor unpacked; expected MRQA's data as they were released")


def one_an_answer(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Rows of TFDS, each as many times as it has answers."""

    def rows(columns):
        answers = columns["answers"]
        answers = answers["text"] if isinstance(answers, dict) else answers
        texts = {"question": columns["question"], "context": columns["context"]}
        texts["id"] = columns["id"] if "id" in columns else columns["qid"]
        return {name: tf.fill(tf.shape(answers), text) for name, text in texts.items()} | {"answer": answers}

    return dataset.map(rows).unbatch()


def spaced(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Put spaces around all but ASCII letters, ASCII digits and underscores, and one where there are several."""

    def text(value):
        value = tf.strings.regex_replace(value, r"(\W)", r" \1 ")
        return tf.strings.strip(tf.strings.regex_replace(value, r"\s+", " "))

    return dataset.map(lambda row: row | {name: text(row[name]) for name in ("question", "context", "answer")})


for _name in FILES:
    _splits = ("train", "validation") if _name == "squad" else ("test",)
    _examples = functools.partial(examples, name=_name)
    _source = text_source(_examples, _splits, COLUMNS)
    add_task(f"mrqa_{_name}", _source, FORMAT, target="answer", note="id", preprocessors=[spaced])
    add_task(
        f"mrqa_{_name}_v100",
        seqio.TfdsDataSource(f"mrqa/{_name}:1.0.0", splits=_splits),
        FORMAT,
        target="answer",
        note="id",
        preprocessors=[one_an_answer, spaced],
    )

add_task(
    "squad_v010_allanswers",
    seqio.TfdsDataSource("squad/v1.1:3.0.0", splits=("train", "validation")),
    FORMAT,
    target="answer",
    note="id",
    preprocessors=[one_an_answer, spaced],
)
