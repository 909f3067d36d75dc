"""Math problems: MetaMathQA for training, GSM8K for validation and test, as in PEFT's benchmark.

`metamath` reads three released files in `$PROMPT_JAX_DATA/metamath`:

- `MetaMathQA-395K.json`, from https://huggingface.co/datasets/meta-math/MetaMathQA (Yu et al. 2023);
- `train.jsonl` and `test.jsonl` of GSM8K, from https://github.com/openai/grade-school-math (Cobbe et al. 2021).

As in PEFT's `method_comparison/MetaMathQA`, a problem and its solution have at most 1,300 characters, 50 problems of
GSM8K's training file, drawn with NumPy's seed 0, are the validation split, and all 1,319 of its test file are the test
split. The score is the share of solutions with the right number. Unlike PEFT's, the loss counts the solution only.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from prompt_jax import add_task, text_source
from prompt_jax.data.files import column_text, data_folder
from prompt_jax.data.rows import read_rows
from prompt_jax.errors import DataError
from prompt_jax.task_format import TaskFormat

CHARACTERS, VALIDATION = 1300, 50
COLUMNS = ("query", "response")
FORMAT = TaskFormat(
    "Question: {query} Think step by step.\nAnswer:", metrics=("final_answer",), input_length=448, target_length=320
)


def examples(split: str) -> Iterator[tuple[str, str]]:
    """Yield problems and solutions."""
    if split == "train":
        for query, response in _metamath(_file("MetaMathQA-395K.json")):
            if len(f"{query} {response}") <= CHARACTERS:
                yield query, response
        return
    path = _file("test.jsonl" if split == "test" else "train.jsonl")
    rows = [
        (column_text(row, "question", f"{path}:{line}"), column_text(row, "answer", f"{path}:{line}"))
        for line, row in read_rows(path)
    ]
    if split == "test":
        yield from rows
        return
    order = np.arange(len(rows))
    np.random.RandomState(0).shuffle(order)
    for number in order[:VALIDATION]:
        yield rows[number]


def _metamath(path: Path) -> Iterator[tuple[str, str]]:
    try:
        rows = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: broken JSON ({error}); expected a list of objects") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path}: expected a list of objects with the fields query and response")
    for number, row in enumerate(rows):
        where = f"{path}: item {number}"
        yield column_text(row, "query", where), column_text(row, "response", where)


def _file(name: str) -> Path:
    path = data_folder("metamath") / name
    if not path.is_file():
        raise DataError(f"no file {path}; tasks/metamath.py says where to get it")
    return path


_source = text_source(examples, ("train", "validation", "test"), COLUMNS)
add_task("metamath", _source, FORMAT, target="response")
