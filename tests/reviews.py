"""Movie reviews as a file and as a seqio task, for the tests of data."""

import gzip

from prompt_jax.data.load import LoadOptions, load_examples
from prompt_jax.data.registry import add_task
from prompt_jax.data.text_tasks import text_source
from prompt_jax.task_format import TaskFormat

LABELS = ("bad", "good")
REVIEW = TaskFormat("review: {text}", LABELS, input_length=64, target_length=16)
SENTENCES = ["review: this film is good", "that one was bad: 0 1 2 3", "abcdefghijklmnopqrstuvwxyz <>unk"]


def write(path, content):
    raw = content if isinstance(content, bytes) else content.encode("utf-8")
    path.write_bytes(gzip.compress(raw) if path.name.lower().endswith(".gz") else raw)
    return path


def review_file(tmp_path, rows=(("this film is good", "good"), ("that one was bad", "bad"), ("a", "good"))):
    return write(tmp_path / "r.tsv", "".join(f"{a}\t{b}\n" for a, b in (("text", "label"), *rows)))


def load(task, tokenizer, split="train", input_length=64, target_length=16, on_disk=False, **options):
    return load_examples(task, tokenizer, split, LoadOptions(input_length, target_length, **options), on_disk=on_disk)


def source(columns, splits=("train",)):
    import seqio
    import tensorflow as tf

    def dataset(split, shuffle_files):
        return tf.data.Dataset.from_tensor_slices(columns)

    return seqio.FunctionDataSource(dataset, splits=splits)


def plain_task(vocabulary, texts=("this film", "good"), **options):
    """Return a user's seqio task without a TaskFormat."""
    import seqio

    feature = seqio.Feature(vocabulary, add_eos=True)
    return seqio.Task(
        "t_plain",
        source=source({"inputs": [texts[0], "a"], "targets": [texts[1], "b"], "id": [7, 8], "note": [0.5, 1]}),
        output_features={"inputs": feature, "targets": feature},
        preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
        **options,
    )


def text_task(name, rows, task_format=REVIEW, **options):
    """Register a task whose source is rows of text and label."""
    return add_task(name, text_source(lambda split: rows, ("train",), ("text", "label")), task_format, **options)
