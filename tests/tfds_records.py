"""Small data sets of TFDS on disk, written without a network."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def write(folder: Path, name: str, splits: Mapping[str, Sequence[Any]]) -> None:
    """Write a data set, named as in `tfds.builder`, into a data folder of TFDS, from the rows of each split."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.sequential_writer import SequentialWriter

    builder = tfds.builder(name, data_dir=str(folder))
    Path(builder.data_dir).mkdir(parents=True)
    writer = SequentialWriter(builder.info, max_examples_per_shard=100)
    writer.initialize_splits(list(splits))
    writer.add_examples(splits)
    writer.close_all()
