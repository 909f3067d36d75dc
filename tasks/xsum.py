"""XSum: summarize BBC articles in one sentence (Narayan et al. 2018), a task of prefix tuning (Li and Liang 2021).

`xsum` reads the output of the authors' scripts, `xsum-extracts-from-downloads/ID.data` and
`XSum-TRAINING-DEV-TEST-SPLIT-90-5-5.json`, in `$PROMPT_JAX_DATA/xsum`. Missing articles are skipped, since not all are
still available. `xsum_tfds` loads the same data with TFDS, which needs the same files and does not have topics.

The paper's extrapolation experiments split articles by topic, which is part of the URL. `xsum_news_to_sports` trains
and validates on news, and tests on sports. `xsum_within_news` trains and validates on world, UK and business news, and
tests on other news.
"""

import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path

from prompt_jax import add_task, text_source, tfds_source
from prompt_jax.data.files import data_folder
from prompt_jax.errors import DataError
from prompt_jax.task_format import TaskFormat

SPLITS = ("train", "validation", "test")
IDS = "XSum-TRAINING-DEV-TEST-SPLIT-90-5-5.json"
FORMAT = TaskFormat("{source}", metrics=("rouge_2", "rouge_1", "rouge_l"), input_length=512, target_length=60)

TRAINED_NEWS = frozenset(("world", "uk", "business"))
SECTION = re.compile(r"bbc\.(?:co\.uk|com)(?::\d+)?/(news|sport)/(?:\d+/)?([a-z]+)?")
# Buttons of the web page, which occur as lines in many extracts (TFDS's list).
BUTTONS = frozenset(
    (
        *("Share this with", "Email", "Facebook", "Messenger", "Twitter", "Pinterest", "WhatsApp", "Linkedin"),
        *("LinkedIn", "Copy this link", "These are external links and will open in a new window"),
    )
)


def examples(split: str, extrapolation: str | None = None) -> Iterator[tuple[str, str]]:
    """Yield (article, summary) for each pair of a split; with `extrapolation`, only articles of that experiment."""
    folder = data_folder("xsum")
    try:
        ids = json.loads((folder / IDS).read_text(encoding="utf-8"))[split]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{folder / IDS}: cannot be read ({error}); expected the ids of each split") from error
    for name in ids:
        path = folder / "xsum-extracts-from-downloads" / f"{name}.data"
        if path.is_file():
            url, summary, article = read_extract(path)
            if extrapolation is None or is_selected(url, split, extrapolation):
                yield article, summary


def read_extract(path: Path) -> tuple[str, str, str]:
    """Return (URL, summary, article) of a file, each on one line."""
    lines = path.read_text(encoding="utf-8").splitlines()
    _, *pieces = "\n".join(line for line in lines if line not in BUTTONS).split("[XSUM]")
    fields = dict(zip(pieces[::2], pieces[1::2], strict=False))
    try:
        url, summary, article = (" ".join(fields[name].split()) for name in ("URL", "INTRODUCTION", "RESTBODY"))
    except KeyError as error:
        raise DataError(f"{path}: no part {error}; expected [XSUM]URL[XSUM], INTRODUCTION and RESTBODY") from error
    return url, summary, article


def is_selected(url: str, split: str, extrapolation: str) -> bool:
    """Return whether an extrapolation experiment trains (or, in the test split, tests) on an article."""
    section, topic = topic_of(url)
    test = split == "test"
    if extrapolation == "news_to_sports":
        return section == ("sport" if test else "news")
    return section == "news" and topic is not None and (topic in TRAINED_NEWS) != test


def topic_of(url: str) -> tuple[str | None, str | None]:
    """Return (section, topic), e.g. `news` and `world` for `http://www.bbc.co.uk/news/world-europe-34872345`."""
    match = SECTION.search(url)
    return (match[1], match[2]) if match else (None, None)


def join_lines(dataset):
    """Put each article and summary of TFDS's rows on one line."""
    import tensorflow as tf

    def line(text):
        return tf.strings.strip(tf.strings.regex_replace(text, r"\s+", " "))

    return dataset.map(lambda row: {"source": line(row["document"]), "target": line(row["summary"])})


add_task("xsum", text_source(examples, SPLITS), FORMAT, target="target")
for _name in ("news_to_sports", "within_news"):
    _part = functools.partial(examples, extrapolation=_name)
    add_task(f"xsum_{_name}", text_source(_part, SPLITS), FORMAT, target="target")
add_task(
    "xsum_tfds",
    tfds_source("xsum:1.1.0", splits=SPLITS),
    FORMAT,
    target="target",
    preprocessors=[join_lines],
)
