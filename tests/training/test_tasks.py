"""The tasks of a run, with the configuration's lengths, metrics and subsets."""

import dataclasses

import pytest

from prompt_jax.config.data import DataConfig
from prompt_jax.data.registry import restore_point
from prompt_jax.task_format import FormatError
from prompt_jax.training.tasks import load_splits


@pytest.fixture
def described(tmp_path):
    """Return files with repeated inputs: ten inputs with three texts each."""
    rows = [f"film {i % 10},a good film {'and long ' * (i // 10)}{i % 10}" for i in range(30)]
    for name in ("train", "test"):
        (tmp_path / f"{name}.csv").write_text("\n".join(["text,label", *rows, ""]))
    files = {"train": tmp_path / "train.csv", "validation": tmp_path / "test.csv", "test": tmp_path / "test.csv"}
    return DataConfig(**files, metrics=("bleu", "nist"), input_length=32, target_length=32)


def test_other_splits_than_training_have_each_input_once(tiny, described):
    splits, task_format = load_splits(described, tiny, {}, None)
    assert {name: len(split) for name, split in splits.items()} == {"train": 30, "validation": 10, "test": 10}
    assert all(len(own) == 3 for own in splits["test"].references)
    assert task_format.metrics == ("bleu", "nist") and task_format.target_length == 32
    limited, _ = load_splits(described, tiny, {"validation": 4, "test": 5}, None)
    assert (
        len(limited["validation"]) == 4
        and len(limited["test"]) == 5
        and limited["validation"].references[0] in splits["validation"].references
    )


def test_low_data_subsets_by_size_and_seed(tiny, described):
    def drawn(**changes):
        splits, _ = load_splits(dataclasses.replace(described, **changes), tiny, {}, None)
        assert len(splits["validation"]) == len(splits["test"]) == 10, "of training alone"
        return set(zip(splits["train"].input_texts, splits["train"].target_texts, strict=True))

    whole, ten, five = drawn(), drawn(train_examples=10), drawn(train_examples=5)
    assert (len(whole), len(ten), len(five)) == (30, 10, 5) and five < ten < whole
    assert drawn(train_examples=10, subset_seed=1) not in (ten, whole)
    assert drawn(train_examples=10) == ten and drawn(train_examples=99) == whole


def test_the_configurations_metrics_replace_the_tasks(tiny, tmp_path, registry_of_tasks):
    (tmp_path / "tasks.py").write_text(TASK)
    config = DataConfig(task="told", input_length=32, target_length=32)
    own, own_format = load_splits(config, tiny, {}, tmp_path / "tasks.py")
    assert own_format.metrics == own["test"].format.metrics == ("bleu",)
    chosen, format_chosen = load_splits(
        dataclasses.replace(config, metrics=("rouge_l", "chrf")), tiny, {}, tmp_path / "tasks.py"
    )
    assert format_chosen.metrics == chosen["test"].format.metrics == ("rouge_l", "chrf")
    assert list(chosen["test"].score(["a film"])) == ["rouge_l", "chrf"]
    with pytest.raises(FormatError, match="ter is better when lower"):
        load_splits(dataclasses.replace(config, metrics=("ter",)), tiny, {}, tmp_path / "tasks.py")


TASK = """
from prompt_jax import add_task, text_source
from prompt_jax.task_format import TaskFormat

add_task(
    "told",
    text_source(lambda split: [("film", "a good film"), ("film", "good")], ("train", "validation", "test")),
    TaskFormat("{source}", metrics=("bleu",)),
    target="target",
)
"""


@pytest.fixture
def registry_of_tasks():
    """Unregister the tasks of a test after it."""
    restore = restore_point()
    yield
    restore()
