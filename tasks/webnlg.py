"""WebNLG 2017: texts from RDF triples (Gardent et al. 2017), as prefix tuning has it (Li and Liang 2021).

The data are the challenge's XML files, in the folder `webnlg` of the one that the environment variable PROMPT_JAX_DATA
names: all `*.xml` in and below `train` and `dev`, and `test/testdata_with_lex.xml`. TFDS has later releases alone.

Triples become ` | Aarhus_Airport : cityServed : "Aarhus, Denmark" | ...`: each with a bar in front, in training and
in testing alike, which the paper's code has otherwise for the first test example. Training takes texts marked good.

The metrics are those of the official scorer: texts in lower case and ASCII with spaces around signs, and the first
three references.

The test set has five categories that training does not have. `webnlg_seen` and `webnlg_unseen` are its two parts, for
`data.test_tasks`: the paper's S, U and A are the scores on these and on `webnlg`.
"""

import functools
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

from prompt_jax import add_task, text_source
from prompt_jax.data.files import data_folder
from prompt_jax.errors import DataError
from prompt_jax.task_format import TaskFormat

FILES = {"train": "train/**/*.xml", "validation": "dev/**/*.xml", "test": "test/testdata_with_lex.xml"}
SEEN = frozenset(
    (
        *("Airport", "Astronaut", "Building", "City", "ComicsCharacter"),
        *("Food", "Monument", "SportsTeam", "University", "WrittenWork"),
    )
)


def examples(split: str, seen: bool | None = None) -> Iterator[tuple[str, str]]:
    """(triples, text) of each pair of a split; `seen` chooses entries by whether training has their category."""
    folder = data_folder("webnlg")
    paths = sorted(folder.glob(FILES[split]))
    if not paths:
        raise DataError(f"{folder / FILES[split]}: no such file; expected WebNLG 2017 as it was released")
    for path in paths:
        for category, source, targets in entries(path, good=split == "train"):
            if seen is None or seen == (category in SEEN):
                yield from ((source, target) for target in targets)


def entries(path: Path, good: bool) -> Iterator[tuple[str, str, list[str]]]:
    """Category, triples and texts of each entry of a file; with `good`, those texts alone that are marked so."""
    try:
        root = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        raise DataError(f"{path}: broken XML: {error}") from error
    for entry in root.iter("entry"):
        triples = [triple.text or "" for triple in entry.iterfind("modifiedtripleset/mtriple")]
        texts = [" ".join((lex.text or "").split()) for lex in entry.iterfind("lex") if not good or marked_good(lex)]
        yield entry.get("category", ""), linearize(triples), [text for text in texts if text]


def marked_good(lex: ElementTree.Element) -> bool:
    return lex.get("comment") == "good"


def linearize(triples: list[str]) -> str:
    """Triples `subject | property | object` as the model reads them."""
    return "".join(" | " + " : ".join(part.strip() for part in triple.split("|", 2)) for triple in triples)


# The official METEOR needs Java, and TER is slow: --data.metrics webnlg_bleu webnlg_meteor webnlg_ter
FORMAT = TaskFormat("{source}", metrics=("webnlg_bleu", "chrf"), input_length=256, target_length=100)
add_task("webnlg", text_source(examples, tuple(FILES)), FORMAT, target="target")
for _name, _seen in (("webnlg_seen", True), ("webnlg_unseen", False)):
    _part = functools.partial(examples, seen=_seen)
    add_task(_name, text_source(_part, ("test",)), FORMAT, target="target")
