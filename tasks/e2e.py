"""E2E: describe restaurants from tables (Novikova, Dušek and Rieser 2017), a task of prefix tuning (Li and Liang 2021).

`e2e` reads the challenge's files `trainset.csv`, `devset.csv` and `testset_w_refs.csv` in `$PROMPT_JAX_DATA/e2e`. TFDS
only has a cleaned version (`e2e_cleaned`), on which scores differ.

The input is `name : Blue Spice | Type : coffee shop | area : city centre`. As in the prefix-tuning paper's data, values
and texts are tokenized: spaces separate words and symbols. This raises scores, since hyphens separate words: the first
references of the development set have a BLEU of 60.6 instead of 60.0.

The paper's test file was tokenized by another program than its training and validation files: it has `is n't` instead
of `isn 't`. All tables equal the paper's. So do 99.6 % of the validation texts and 99.1 % of the test texts. The others
differ in hyphens and in symbols without a space, such as `£ 20-£25` and ` .Blue`.
"""

import re
from collections.abc import Iterator

from prompt_jax import add_task, text_source
from prompt_jax.data.files import data_folder
from prompt_jax.data.rows import read_rows
from prompt_jax.errors import DataError
from prompt_jax.task_format import TaskFormat

FILES = {"train": "trainset.csv", "validation": "devset.csv", "test": "testset_w_refs.csv"}
KEYS = {"eatType": "Type", "priceRange": "price", "familyFriendly": "family friendly"}  # other keys stay unchanged
CONTRACTION = re.compile(r"n (['’´]t)(?!\S)")  # in `isn 't`, which the test file writes `is n't`
FIELD = re.compile(r"\s*([^\[\],]+?)\s*\[([^\]]*)\]\s*")


def examples(split: str) -> Iterator[tuple[str, str]]:
    """Yield (table, text) for each pair of a split, in the order of its file."""
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
    """Return the input text of a table such as `name[Blue Spice], eatType[coffee shop]`."""
    fields = list(FIELD.finditer(table))
    if not fields or ",".join(field[0] for field in fields) != table:
        raise ValueError(f"the table {table!r}; expected key[value], key[value]")
    return " | ".join(f"{KEYS.get(field[1], field[1])} : {tokenize(field[2])}" for field in fields)


def tokenize(text: str) -> str:
    """Put spaces around symbols, except within numbers, `...` and `'s`, and after a hyphen that follows a space."""
    text = re.sub(r"([^\w\s.,-])\1*", r" \g<0> ", text)
    text = re.sub(r"(?<!\d)([.,])\1*|([.,])\2*(?!\d)", r" \g<0> ", text)
    text = re.sub(r"(\d *|\S)-", r"\1 - ", text)
    text = re.sub(r"(['’´]) (s|m|d|ll|re|ve|t)(?=\s)", r"\1\2", f"{text} ")
    return " ".join(text.split())


# To add METEOR, which needs Java: --data.metrics bleu nist coco_meteor coco_rouge_l cider
add_task(
    "e2e",
    text_source(examples, tuple(FILES)),
    TaskFormat("{source}", metrics=("bleu", "nist", "coco_rouge_l", "cider"), input_length=128, target_length=100),
    target="target",
)
