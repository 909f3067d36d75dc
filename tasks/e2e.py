"""E2E: restaurants described from a table (Novikova, Dušek and Rieser 2017), for prefix tuning (Li and Liang 2021).

The data are the challenge's CSV files, `trainset.csv`, `devset.csv` and `testset_w_refs.csv`, in the folder `e2e` of
the one that the environment variable PROMPT_JAX_DATA names. TFDS has a cleaned version alone (`e2e_cleaned`), on which
scores are others.

A table becomes `name : Blue Spice | Type : coffee shop | area : city centre`. Its values and the texts are tokenized,
with spaces between words and signs, as in the prefix paper's data. Scores are higher so: BLEU of the development set's
first references, 60.0 as they are, is 60.6, since hyphens separate words.

The paper's test file was tokenized by another program than its training and validation files: it has `is n't` where
they have `isn 't`. All tables are the same as the paper's. So are 99.6 % of the validation texts and 99.1 % of the test
texts. The others differ in hyphens and in signs without a space, such as `£ 20-£25` and ` .Blue`.
"""

import re
from collections.abc import Iterator

from prompt_jax import add_task, text_source
from prompt_jax.data.files import data_folder, read_rows
from prompt_jax.errors import DataError
from prompt_jax.task_format import TaskFormat

FILES = {"train": "trainset.csv", "validation": "devset.csv", "test": "testset_w_refs.csv"}
KEYS = {"eatType": "Type", "priceRange": "price", "familyFriendly": "family friendly"}  # others stay
CONTRACTION = re.compile(r"n (['’´]t)(?!\S)")  # the end of `isn 't`, which is ` n't` in the test file
FIELD = re.compile(r"\s*([^\[\],]+?)\s*\[([^\]]*)\]\s*")


def examples(split: str) -> Iterator[tuple[str, str]]:
    """(table, text) of each pair of a split, in the order of its file."""
    path = data_folder("e2e") / FILES[split]
    for line, row in read_rows(path):
        try:
            text = tokenize(row["ref"])
            yield linearize(row["mr"]), CONTRACTION.sub(r" n\1", text) if split == "test" else text
        except KeyError as error:
            raise DataError(f"{path}:{line}: no column {error}; expected mr and ref") from error
        except ValueError as error:
            raise DataError(f"{path}:{line}: {error}") from error


def linearize(table: str) -> str:
    """A table `name[Blue Spice], eatType[coffee shop]` as the model reads it."""
    fields = list(FIELD.finditer(table))
    if not fields or ",".join(field[0] for field in fields) != table:
        raise ValueError(f"the table {table!r}; expected key[value], key[value]")
    return " | ".join(f"{KEYS.get(field[1], field[1])} : {tokenize(field[2])}" for field in fields)


def tokenize(text: str) -> str:
    """Spaces around signs, but not in a number, `...` or `'s`, nor after a hyphen that follows a space."""
    text = re.sub(r"([^\w\s.,-])\1*", r" \g<0> ", text)
    text = re.sub(r"(?<!\d)([.,])\1*|([.,])\2*(?!\d)", r" \g<0> ", text)
    text = re.sub(r"(\d *|\S)-", r"\1 - ", text)
    text = re.sub(r"(['’´]) (s|m|d|ll|re|ve|t)(?=\s)", r"\1\2", f"{text} ")
    return " ".join(text.split())


# METEOR, which needs Java: --data.metrics bleu nist coco_meteor coco_rouge_l cider
add_task(
    "e2e",
    text_source(examples, tuple(FILES)),
    TaskFormat("{source}", metrics=("bleu", "nist", "coco_rouge_l", "cider"), input_length=128, target_length=100),
    target="target",
)
