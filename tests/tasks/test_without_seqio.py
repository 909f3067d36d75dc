"""Tasks that are Python functions of rows train without TensorFlow, TFDS and seqio, the extra `tasks`."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MISSING = ("tensorflow", "tensorflow_text", "tensorflow_datasets", "seqio", "importlib_resources")


@pytest.fixture
def data_folder(tmp_path) -> Path:
    """Small files of E2E and of plain text."""
    (tmp_path / "e2e").mkdir()
    for name in ("trainset.csv", "devset.csv", "testset_w_refs.csv"):
        with (tmp_path / "e2e" / name).open("w", newline="") as file:
            csv.writer(file).writerows([("mr", "ref"), *[(f"name[Inn {i}], area[city]", "An inn.") for i in range(6)]])
    (tmp_path / "text").mkdir()
    for split in ("train", "validation"):
        (tmp_path / "text" / f"{split}.txt").write_text("a good film and a bad film\n\n" * 6)
    return tmp_path


@pytest.mark.slow
def test_tasks_of_rows_train_a_step(tiny_folder, data_folder, monkeypatch):
    monkeypatch.setenv("PROMPT_JAX_DATA", str(data_folder))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    command = [sys.executable, __file__, str(tiny_folder)]
    done = subprocess.run(command, cwd=data_folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "done without"


def train_without(folder: str) -> None:
    """Train each task in a process without the packages, which are blocked."""
    missing = dict.fromkeys(MISSING)
    sys.modules.update(missing)  # a module that is None cannot be imported or found

    import prompt_jax
    from prompt_jax.config.data import DataConfig
    from prompt_jax.config.model import ModelConfig
    from prompt_jax.config.train import TrainConfig
    from prompt_jax.data.load import LoadOptions, load_examples
    from prompt_jax.data.registry import discover_tasks
    from prompt_jax.errors import DataError, MissingPackage
    from prompt_jax.experiment import Experiment
    from prompt_jax.methods.soft_prompt import PromptTuning
    from prompt_jax.training.loop import train

    names = discover_tasks(ROOT / "tasks")
    assert {"glue_rte_v002", "webnlg", "dart", "xsum", "mrqa_race", "squad_v010_allanswers"} <= set(names)
    limits = {"eval_examples": 4, "test_examples": 4}
    small = TrainConfig(steps=1, batch_size=4, eval_every=1, checkpoint_every=1, eval_batch_size=4, **limits)
    for task in ("sentiment_movie", "sentiment", "e2e", "span_corruption", "prefix_lm"):
        lengths = {"input_length": 24, "target_length": 12}
        experiment = Experiment(
            name=task,
            runs=Path("runs"),
            model=ModelConfig(name=folder),
            data=DataConfig(task=task, train_examples=8, buckets=1, **lengths),
            prompt=PromptTuning(length=2, init="vocab", init_vocab=100),
            train=small,
        )
        _, progress = train(experiment, tasks=ROOT / "tasks")
        assert progress.step == 1, task

    tokenizer = prompt_jax.load_model(folder).tokenizer
    with pytest.raises(MissingPackage, match=r"need the package seqio: pip install '\.\[tasks\]'"):
        load_examples("super_glue_record_v102", tokenizer, "validation", LoadOptions(32, 32))
    Path("mine.py").write_text("import seqio\n")
    with pytest.raises(DataError, match=r"mine.py: the tasks cannot be imported: .*seqio: pip install '\.\[tasks\]'$"):
        discover_tasks("mine.py")
    assert {name: sys.modules[name] for name in MISSING} == missing


if __name__ == "__main__":
    train_without(*sys.argv[1:])
    print("done without")
