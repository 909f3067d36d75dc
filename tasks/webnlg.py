"""WebNLG 2017: describe RDF triples in text (Gardent et al. 2017), a task of prefix tuning (Li and Liang 2021).

The tasks read the challenge's XML files in `$PROMPT_JAX_DATA/webnlg`: all `*.xml` in and below `train` and `dev`, and
`test/testdata_with_lex.xml`. TFDS only has later releases.

The input is ` | Aarhus_Airport : cityServed : "Aarhus, Denmark" | ...`. Every triple has a leading bar, in training and
testing. The paper's code formats the first test example differently. Training uses only texts marked as good.

The metrics are the official scorer's: lowercase ASCII text with spaces around symbols, and the first three references.

Five categories of the test set do not occur in training. `webnlg_seen` and `webnlg_unseen` are the two parts of the
test set, for `data.test_tasks`. The paper's S, U and A are the scores on these two and on `webnlg`.
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
    """Yield (triples, text) for each pair of a split; `seen` selects by whether training has the category."""
    folder = data_folder("webnlg")
    paths = sorted(folder.glob(FILES[split]))
    if not paths:
        raise DataError(f"{folder / FILES[split]}: no such file; expected the release of WebNLG 2017")
    for path in paths:
        for category, source, targets in entries(path, good=split == "train"):
            if seen is None or seen == (category in SEEN):
                yield from ((source, target) for target in targets)


def entries(path: Path, good: bool) -> Iterator[tuple[str, str, list[str]]]:
    """Yield (category, triples, texts) for each entry of a file; with `good`, only texts marked as good."""
    try:
        root = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        raise DataError(f"{path}: broken XML: {error}") from error
    for entry in root.iter("entry"):
        triples = [triple.text or "" for triple in entry.iterfind("modifiedtripleset/mtriple")]
        texts = [" ".join((lex.text or "").split()) for lex in entry.iterfind("lex") if not good or is_good(lex)]
        yield entry.get("category", ""), linearize(triples), [text for text in texts if text]


def is_good(lex: ElementTree.Element) -> bool:
    return lex.get("comment") == "good"


def linearize(triples: list[str]) -> str:
    """Return the input text of triples `subject | property | object`."""
    return "".join(" | " + " : ".join(part.strip() for part in triple.split("|", 2)) for triple in triples)


# The official METEOR needs Java, and TER is slow: --data.metrics webnlg_bleu webnlg_meteor webnlg_ter
FORMAT = TaskFormat("{source}", metrics=("webnlg_bleu", "chrf"), input_length=256, target_length=100)
add_task("webnlg", text_source(examples, tuple(FILES)), FORMAT, target="target")
for _name, _seen in (("webnlg_seen", True), ("webnlg_unseen", False)):
    _part = functools.partial(examples, seen=_seen)
    add_task(_name, text_source(_part, ("test",)), FORMAT, target="target")
