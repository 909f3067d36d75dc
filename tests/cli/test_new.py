"""`prompt-jax new`."""

import dataclasses
import json
import typing

import pytest

from prompt_jax import DataConfig, Experiment, ModelConfig, OptimizerConfig, PrefixTuning, PromptTuning, TrainConfig
from prompt_jax import experiment as experiments
from prompt_jax.cli.new import METHODS, MethodName
from prompt_jax.methods import METHODS as ALL_METHODS

STEPS = TrainConfig(steps=1000, eval_every=100, eval_examples=500, checkpoint_every=100)
FEW = ("--train.steps", 2, "--train.eval-every", 2, "--train.batch-size", 8, "--prompt.length", 4, "--data.buckets", 1)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_classification(run, sentiment_files, tiny_folder, folder):
    """The files say what the labels are. The printed command trains."""
    files = [word for split, path in sentiment_files.items() for word in (f"--{split}", path.name)]
    status, out, err = run("new", "reviews", *files, "--model", tiny_folder)
    assert status == 0, err
    assert out.splitlines() == [
        "wrote reviews.py",
        "  examples: 40 train, 12 validation, 10 test",
        "  input: {text}",
        "  answer: column label, one of negative, positive",
        "next: prompt-jax train reviews.py",
    ]
    written = experiments.load_experiment(folder / "reviews.py")
    paths = {split: sentiment_files[split].relative_to(folder) for split in sentiment_files}
    assert written == Experiment(
        name="reviews",
        model=ModelConfig(name=str(tiny_folder)),
        data=DataConfig(**paths, labels=("negative", "positive")),
        prompt=PromptTuning(length=20),
        train=STEPS,
    )
    status, out, err = run("train", "reviews.py", *FEW, "--prompt.init-vocab", 150)
    assert status == 0 and "accuracy" in out, err
    summary = json.loads((folder / "runs" / "reviews" / "summary.json").read_text())
    assert summary["steps"] == 2 and summary["examples"] == {"files": {"train": 40, "validation": 12, "test": 10}}


@pytest.mark.slow
def test_generation(run, tiny_folder, folder):
    """Long answers get the length that they need, and a metric for text. The file trains."""
    rows = [{"source": f"a good film number {i}", "summary": f"film {i} was good " * 3} for i in range(30)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = ("--model", tiny_folder, "--method", "prefix")
    status, out, err = run("new", "configs/sums", "--train", "data.jsonl", *model)
    assert status == 0 and "answer: column summary, free text" in out and "name them with --labels" in out, err
    assert "next: prompt-jax train configs/sums.py" in out
    written = experiments.load_experiment(folder / "configs" / "sums.py")
    assert written.data.metrics == ("rouge_l",) and written.data.template == "{source}" and written.name == "sums"
    assert written.data.target_length == 32, "the longest answer has 51 bytes"
    assert written.prompt == PrefixTuning(length=20, mlp_width=512)
    assert written.optimizer == OptimizerConfig(name="adamw", learning_rate=1e-3, weight_decay=0.0)
    status, out, err = run("train", "configs/sums.py", *FEW, "--prompt.mlp-width", 8)
    assert status == 0 and "validation rouge_l" in err, err


@pytest.mark.parametrize("method", METHODS)
def test_methods(run, sentiment_files, folder, method):
    assert run("new", "x", "--train", "train.jsonl", "--method", method)[0] == 0
    written = experiments.load_experiment(folder / "x.py")
    experiments.check(written)
    assert written.prompt.name == method and written.model.name == "demo"


@pytest.mark.parametrize(
    ("model", "mlp_width"),
    [("demo", 512), ("openai-community/gpt2", 512), ("smollm2", None), ("Qwen/Qwen3-0.6B", None), ("llama", None)],
)
def test_a_prefix_of_a_current_model_has_no_mlp(run, sentiment_files, folder, tiny_folders, model, mlp_width):
    """It starts from a text."""
    model = tiny_folders.get(model, model)
    assert run("new", "x", "--train", "train.jsonl", "--method", "prefix", "--model", model)[0] == 0
    written = experiments.load_experiment(folder / "x.py")
    assert written.prompt == PrefixTuning(length=20, mlp_width=mlp_width)
    assert written.optimizer.learning_rate == (5e-3 if mlp_width is None else 1e-3)


def test_all_methods_of_one_task_are_there():
    assert set(METHODS) == {name for name, method in ALL_METHODS.items() if not method.per_task}
    assert set(METHODS) == set(typing.get_args(MethodName))


def test_without_data(run, folder):
    """The placeholders are a valid configuration, except that the file does not exist."""
    status, out, _ = run("new", "x.py")
    assert status == 0 and "It has placeholders" in out
    written = experiments.load_experiment(folder / "x.py")
    experiments.check(written)
    assert str(written.data.train) == "train.jsonl" and written.data.target == "label"
    status, _, err = run("train", "x.py", "--model.name", "nothing")
    assert status == 1 and err


def test_options_of_the_data(run, folder):
    """Labels name the numbers in the file. Words that Python would read differently are quoted."""
    rows = "".join(f'"a ""{i}""",b\\,{i % 2}\n' for i in range(10))
    (folder / 'the "data".csv').write_text("title,body text,verdict\n" + rows)
    template, labels = 'T "{title}": \\ {body text}', ('very "bad"', "good \\ é and quite a long label")
    given = ("--template", template, "--target", "verdict", "--labels", *labels)
    status, out, err = run("new", "it's", "--train", 'the "data".csv', *given)
    assert status == 0, err
    assert """next: prompt-jax train 'it'"'"'s.py'""" in out
    written = experiments.load_experiment(folder / "it's.py")
    assert dataclasses.asdict(written.data) | {"train": str(written.data.train)} == dataclasses.asdict(
        DataConfig(template=template, target="verdict", labels=labels, target_length=34)
    ) | {"train": 'the "data".csv'}


def test_numbers(run, folder):
    (folder / "n.csv").write_text("text,label\n" + "".join(f"text {i},{i % 3}\n" for i in range(30)))
    status, out, _ = run("new", "n", "--train", "n.csv")
    assert status == 0 and "one of 0, 1, 2" in out and "name them in this order with --labels" in out
    status, out, _ = run("new", "n", "--train", "n.csv", "--overwrite", "--labels")
    assert status == 0 and "answer: column label, free text" in out
    assert experiments.load_experiment(folder / "n.py").data.labels == ()


def test_existing_files(run, folder):
    (folder / "x.py").write_text("mine")
    status, _, err = run("new", "x")
    assert status == 1 and "x.py exists already; add --overwrite to replace it" in err
    assert (folder / "x.py").read_text() == "mine"
    assert run("new", "x", "--overwrite")[0] == 0 and "experiment" in (folder / "x.py").read_text()
    (folder / "y.py").mkdir()
    assert "y.py is a folder" in run("new", "y")[2]


@pytest.mark.parametrize("name", ["", ".", "..", ".py", "configs/.."])
def test_wrong_names(run, name):
    status, _, err = run("new", name)
    assert status == 1 and "NAME must be the name of a run" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--train", "none.csv"), "none.csv: no such file; expected the examples of the split 'train'"),
        (
            ("--train", "train.jsonl", "--test", "none.csv"),
            "none.csv: no such file; expected the examples of the split",
        ),
        (("--test", "test.jsonl"), "--test needs --train"),
        (
            ("--train", "train.jsonl", "--labels", "negative", "good"),
            "train.jsonl:1: column 'label' holds the label 'p",
        ),
        (("--train", "train.jsonl", "--template", "{title}"), "train.jsonl:1: no column 'title'"),
        (("--train", "train.jsonl", "--template", "text"), "names no column"),
        (("--train", "train.jsonl", "--validation", "odd.jsonl"), "odd.jsonl:1: column 'label' holds the label 'odd'"),
        (("--train", "odd.jsonl"), "the split 'validation' of the task 'files' has no examples"),
    ],
)
def test_wrong_files(run, sentiment_files, folder, words, message):
    """They are read as training reads them. Nothing is written."""
    (folder / "odd.jsonl").write_text('{"text": "a film", "label": "odd"}\n')
    status, _, err = run("new", "x", *words)
    assert status == 1 and message in err
    assert not (folder / "x.py").exists()
