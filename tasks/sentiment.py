"""Sentiment of sentences from four domains, rated by people: movie reviews, product reviews, editorials and tweets.

All domains have the same labels, so a prompt trained on one can be tested on the others. The mixture `sentiment`
contains all four, with rates equal to their numbers of training examples. `data/sentiment` documents the data.

The input of `sentiment_movie` is the text alone. That of `sentiment_movie_causal` is for decoder-only models, which
continue `Review: a gripping film` and a line `Sentiment:` with the label. So it is for the other domains.
"""

import functools
from pathlib import Path

from prompt_jax import add_mixture, add_task, text_source
from prompt_jax.data.files import normalize_text, text_fraction
from prompt_jax.data.rows import read_rows
from prompt_jax.task_format import TaskFormat

DATA = Path(__file__).parent / "data" / "sentiment"
DOMAINS = ("movie", "amazon", "nyt", "tweets")
LABELS = ("negative", "positive")

# Mean ratings range from -4 to 4. Sentences closer to 0 than this are neutral, and dropped.
THRESHOLD = 0.5

# The upper bounds of the splits for `text_fraction`, which is in [0, 1): 80, 10 and 10 %.
SPLITS = {"train": 0.8, "validation": 0.9, "test": 1.0}


def examples(domain: str) -> dict[str, list[tuple[str, str]]]:
    """Return (text, label) for each example of a domain, by split, in the order of the file.

    Only the first of several texts that differ in case, punctuation and whitespace is kept. The split is a function of
    the normalized text, so no text is in two splits, even across domains.
    """
    result: dict[str, list[tuple[str, str]]] = {split: [] for split in SPLITS}
    seen = set()
    for _, row in read_rows(DATA / f"{domain}.tsv.gz"):
        text, rating = row["text"], float(row["rating"])
        key = normalize_text(text)
        if abs(rating) > THRESHOLD and key not in seen:
            seen.add(key)
            split = next(name for name, end in SPLITS.items() if text_fraction(text) < end)
            result[split].append((text, LABELS[rating > 0]))
    return result


def _rows(split: str, domain: str) -> list[tuple[str, str]]:
    return examples(domain)[split]


for _domain in DOMAINS:
    _source = text_source(functools.partial(_rows, domain=_domain), tuple(SPLITS), ("text", "label"))
    for _name, _template in ((_domain, "{text}"), (f"{_domain}_causal", "Review: {text}\nSentiment:")):
        add_task(
            f"sentiment_{_name}",
            _source,
            TaskFormat(_template, LABELS, metrics=("accuracy",), input_length=128, target_length=8),
            short_name=_name,
        )


def _sizes() -> dict[str, int]:
    return {f"sentiment_{domain}": len(examples(domain)["train"]) for domain in DOMAINS}


add_mixture("sentiment", _sizes)
