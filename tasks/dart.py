"""DART: describe open-domain triples in text (Nan et al. 2021), a task of prefix tuning (Li and Liang 2021).

`dart` reads the released files `$PROMPT_JAX_DATA/dart/dart-v1.1.1-full-{train,dev,test}.json`. `dart_tfds` loads the
same data with TFDS.

The input is `Mars Hill College : joined : 1973 | ...`, with relations in lowercase. Each annotation is an example.

The metrics are the official scorer's: lowercase text with spaces around symbols, and the first three references of an
entry. A few entries have equal triples. `dart` scores each entry, as the official scorer does. TFDS does not tell
entries apart, so `dart_tfds` merges entries with equal triples.
"""

import json
from collections.abc import Iterator

from prompt_jax import add_task, text_source, tfds_source
from prompt_jax.data.files import data_folder
from prompt_jax.errors import DataError
from prompt_jax.task_format import TaskFormat

FILES = {split: f"dart-v1.1.1-full-{name}.json" for split, name in (("train", "train"), ("validation", "dev"))}
FILES["test"] = "dart-v1.1.1-full-test.json"

# The official METEOR needs Java, and TER is slow: --data.metrics dart_bleu dart_meteor dart_ter
FORMAT = TaskFormat("{source}", metrics=("dart_bleu", "chrf"), input_length=256, target_length=100)


def examples(split: str) -> Iterator[tuple[str, str, str]]:
    """Yield (triples, text, entry number) for each annotation of a split, in the order of its file."""
    path = data_folder("dart") / FILES[split]
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        for number, entry in enumerate(entries):
            source = linearize(entry["tripleset"])
            yield from ((source, annotation["text"], str(number)) for annotation in entry["annotations"])
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; expected the release of DART 1.1.1") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not DART's JSON ({type(error).__name__}: {error})") from error


def linearize(triples: list[list[str]]) -> str:
    """Return the input text of a list of triples."""
    return " | ".join(f"{subject} : {relation.lower()} : {value}" for subject, relation, value in triples)


def from_table(dataset):
    """Apply `linearize` to TFDS's rows, which have a flat list of the parts of all triples."""
    import tensorflow as tf

    def row(columns):
        triples = tf.reshape(columns["input_text"]["table"]["content"], [-1, 3])
        relations = tf.strings.lower(triples[:, 1], encoding="utf-8")
        parts = tf.stack([triples[:, 0], relations, triples[:, 2]], axis=1)
        source = tf.strings.reduce_join(tf.strings.reduce_join(parts, axis=1, separator=" : "), separator=" | ")
        return {"source": source, "target": columns["target_text"]}

    return dataset.map(row)


_source = text_source(examples, tuple(FILES), ("source", "target", "entry"))
add_task("dart", _source, FORMAT, target="target", note="entry")
add_task(
    "dart_tfds",
    tfds_source("dart:0.1.0", splits=tuple(FILES)),
    FORMAT,
    target="target",
    preprocessors=[from_table],
)
