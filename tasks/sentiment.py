"""Sentiment of sentences from four domains, rated by people: movie reviews, product reviews, editorials and tweets.

One label space over four domains, so that a prompt tuned on one can be tested on the others. The mixture `sentiment` is
of all four, at rates of their numbers of training examples. The data and where it comes from are in `data/sentiment`.
"""

import functools
from pathlib import Path

import seqio
import tensorflow as tf

from prompt_jax import add_task
from prompt_jax.data.files import normalize_text, read_rows, text_fraction
from prompt_jax.task_format import TaskFormat

DATA = Path(__file__).parent / "data" / "sentiment"
DOMAINS = ("movie", "amazon", "nyt", "tweets")
LABELS = ("negative", "positive")

# Mean ratings go from -4 to 4. What is nearer to 0 than this is neither negative nor positive, and left out.
THRESHOLD = 0.5

# The upper ends of the splits on [0, 1), where `text_fraction` puts each text: 80, 10 and 10 %.
SPLITS = {"train": 0.8, "validation": 0.9, "test": 1.0}


def examples(domain: str) -> dict[str, list[tuple[str, str]]]:
    """(text, label) of each example of a domain, by split, in the order of the file.

    Of texts that are the same but for case, punctuation and white space only the first is kept. The split depends on
    that normalized text alone, so that no text is in two splits, be it in two domains.
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


def _dataset(split: str, shuffle_files: bool, domain: str) -> tf.data.Dataset:
    del shuffle_files  # there is one file
    texts, labels = zip(*examples(domain)[split], strict=True)
    return tf.data.Dataset.from_tensor_slices({"text": list(texts), "label": list(labels)})


for _domain in DOMAINS:
    add_task(
        f"sentiment_{_domain}",
        seqio.FunctionDataSource(functools.partial(_dataset, domain=_domain), splits=tuple(SPLITS)),
        TaskFormat("{text}", LABELS, metrics=("accuracy",), input_length=128, target_length=8),
        short_name=_domain,
    )


def _size(task: seqio.Task) -> int:
    return len(examples(task.name.removeprefix("sentiment_"))["train"])


seqio.MixtureRegistry.add("sentiment", [f"sentiment_{_domain}" for _domain in DOMAINS], default_rate=_size)
