"""Question answering: SQuAD, and six other domains for domain shift (Lester et al. 2021, section 5).

`squad_v010_allanswers` is SQuAD 1.1 from TFDS: 87,599 training and 10,570 validation questions, as in the paper.

The other domains are from MRQA's shared task (Fisch et al. 2019): `mrqa_textbook_qa`, `mrqa_bio_asq`, `mrqa_race`,
`mrqa_relation_extraction`, `mrqa_duo_rc` and `mrqa_drop` only have a test split. `mrqa_squad`, a subset of SQuAD, has
train and validation. They read the released files `train/SQuAD.jsonl.gz` and `dev/NAME.jsonl.gz` (FILES; `.jsonl` works
too) in `$PROMPT_JAX_DATA/mrqa`. `mrqa_NAME_v100` loads the same data with TFDS.

The input is `question: ... context: ...`. As in T5 at the time of the paper, spaces surround every character except
ASCII letters, digits and underscores. So accented letters are separated as well. (Since April 2022, T5 separates only
ASCII punctuation. mT5 keeps letters and digits of all scripts.) The target is the first answer. In training it is the
only one; elsewhere the best of all answers counts. All questions of a passage count. The paper's script for MRQA's
files takes the first question of each passage.
"""

import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path

from prompt_jax import add_task, text_source, tfds_source
from prompt_jax.data.files import column_text, data_folder
from prompt_jax.data.rows import read_rows
from prompt_jax.errors import DataError
from prompt_jax.task_format import TaskFormat

FILES = {  # TFDS's name: the release's name
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
    """Yield (question, passage, answer, question id) for each answer; in training only for the first answer."""
    path = find_file("train" if split == "train" else "dev", FILES[name])
    for line, row in read_rows(path):
        if "header" in row:  # the first line
            continue
        where = f"{path}:{line}"
        try:
            for question in row["qas"]:
                answers, number = question["answers"], column_text(question, "qid", where)
                if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
                    given = json.dumps(answers)[:40]
                    raise DataError(f"{where}: the question {number} has the answers {given}; expected a list of texts")
                if not answers:
                    raise DataError(f"{where}: the question {number} has no answer; expected at least one")
                texts = [column_text(question, "question", where), column_text(row, "context", where)]
                for answer in answers[:1] if split == "train" else dict.fromkeys(answers):
                    yield (*map(add_spaces, [*texts, answer]), number)
        except (KeyError, TypeError) as error:
            raise DataError(f"{where}: not MRQA's JSON ({type(error).__name__}: {error})") from error


def find_file(part: str, name: str) -> Path:
    """Return the path of a file, compressed or not."""
    folder = data_folder("mrqa") / part
    for path in (folder / f"{name}.jsonl.gz", folder / f"{name}.jsonl"):
        if path.is_file():
            return path
    raise DataError(f"{folder / name}.jsonl.gz: no such file, nor .jsonl; expected the release of MRQA's data")


def one_row_per_answer(dataset):
    """Repeat each of TFDS's rows for each of its answers."""
    import tensorflow as tf

    def rows(columns):
        answers = columns["answers"]
        answers = answers["text"] if isinstance(answers, dict) else answers
        texts = {"question": columns["question"], "context": columns["context"]}
        texts["id"] = columns["id"] if "id" in columns else columns["qid"]
        return {name: tf.fill(tf.shape(answers), text) for name, text in texts.items()} | {"answer": answers}

    return dataset.map(rows).unbatch()


def add_spaces(text: str) -> str:
    """Put single spaces around every character except ASCII letters, ASCII digits and underscores."""
    text = re.sub(r"([^A-Za-z0-9_])", r" \1 ", text)
    return re.sub(r"[\t\n\f\r ]+", " ", text).strip("\t\n\v\f\r ")  # RE2's white space, as for TFDS's rows


def add_spaces_to_rows(dataset):
    """Apply `add_spaces` to TFDS's rows."""
    import tensorflow as tf

    def text(value):
        value = tf.strings.regex_replace(value, r"(\W)", r" \1 ")
        return tf.strings.strip(tf.strings.regex_replace(value, r"\s+", " "))

    return dataset.map(lambda row: row | {name: text(row[name]) for name in ("question", "context", "answer")})


for _name in FILES:
    _splits = ("train", "validation") if _name == "squad" else ("test",)
    _examples = functools.partial(examples, name=_name)
    _source = text_source(_examples, _splits, COLUMNS)
    add_task(f"mrqa_{_name}", _source, FORMAT, target="answer", note="id")
    add_task(
        f"mrqa_{_name}_v100",
        tfds_source(f"mrqa/{_name}:1.0.0", splits=_splits),
        FORMAT,
        target="answer",
        note="id",
        preprocessors=[one_row_per_answer, add_spaces_to_rows],
    )

add_task(
    "squad_v010_allanswers",
    tfds_source("squad/v1.1:3.0.0", splits=("train", "validation")),
    FORMAT,
    target="answer",
    note="id",
    preprocessors=[one_row_per_answer, add_spaces_to_rows],
)
