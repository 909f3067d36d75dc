"""Training on a mixture of tasks: one prompt for all, one prompt per task, or the full model."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import with_name, with_options
from interruptions import interrupted_at
from prompt_jax import forward
from prompt_jax.cli import main
from prompt_jax.cli.source import ExampleOptions, read_examples
from prompt_jax.config.data import DataConfig
from prompt_jax.config.ensemble import EnsembleConfig
from prompt_jax.config.optimizer import OptimizerConfig
from prompt_jax.data.registry import restore_point
from prompt_jax.ensembles.members import LoadedPrompt
from prompt_jax.errors import ConfigError, DataError, UserError
from prompt_jax.experiment import Experiment
from prompt_jax.inference import batching
from prompt_jax.methods.full import FullTuning
from prompt_jax.methods.multitask import MultitaskPromptTuning
from prompt_jax.methods.soft_prompt import PromptTuning
from prompt_jax.metrics import benchmark_average
from prompt_jax.models.prompt import Prompt
from prompt_jax.prompt_files.io import PromptMetadata, read_prompts
from prompt_jax.report.metrics_log import read_log
from prompt_jax.task_format import NAMED_INPUTS, TaskFormat
from prompt_jax.training import loop
from prompt_jax.training.loop import train
from prompt_jax.training.summary import finish

TASKS = """
import functools

import seqio

from prompt_jax import add_task, text_source
from prompt_jax.task_format import UNLABELED, TaskFormat


def rows(split, labels, count):
    count = count if split == "train" else 6
    return [(f"{('bad', 'good')[i % 2]} film {split} " + "and long " * (i % 3), labels[i % 2]) for i in range(count)]


splits = ("train", "validation", "test")
for name, labels, metrics, count in (
    ("kind_a_v001", ("negative", "positive"), ("accuracy", "matthews"), 16),
    ("kind_b_v001", ("bad film", "good film"), ("accuracy",), 24),
):
    source = text_source(functools.partial(rows, labels=labels, count=count), splits, ("text", "label"))
    add_task(name, source, TaskFormat("{text}", labels, metrics, 64, 10), short_name=name[5:6])
source = text_source(functools.partial(rows, labels=("bad", "good"), count=8), splits, ("text", "label"))
add_task("other_v001", source, TaskFormat("film: {text}", ("bad", "good"), input_length=64), short_name="o")
for name, target in (("texts", "a film"), ("more_texts", "a film"), ("unknown", UNLABELED)):
    source = text_source(lambda split, target=target: [("a film", target)] * 9, splits)
    add_task(name, source, TaskFormat("{source}"), target="target")
plain = seqio.TaskRegistry.get("texts")
seqio.TaskRegistry.add("plain", plain.source, plain.output_features, plain.preprocessors, metric_fns=plain.metric_fns)
seqio.MixtureRegistry.add("with_plain", [("kind_a_v001", 1), ("plain", 1)])
seqio.MixtureRegistry.add("by_size", [("texts", seqio.mixing_rate_num_examples), ("more_texts", 1)])
seqio.MixtureRegistry.add("both", [("kind_a_v001", 1), ("kind_b_v001", 3)])
seqio.MixtureRegistry.add("nested", [("both", 2), ("texts", 0.5)])
seqio.MixtureRegistry.add("texts_twice", [("texts", 1), ("more_texts", 1)])
seqio.MixtureRegistry.add("one", [("kind_a_v001", 1)])
seqio.MixtureRegistry.add("with_unknown", [("kind_a_v001", 1), ("unknown", 1)])
"""
NAMES = ("kind_a_v001", "kind_b_v001")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> Path:
    """Return a file of tasks, which are unregistered after the module's tests."""
    file = tmp_path_factory.mktemp("tasks") / "tasks.py"
    file.write_text(TASKS)
    restore = restore_point()
    yield file
    restore()


@pytest.fixture
def mixed(experiment: Experiment, monkeypatch) -> Experiment:
    """Return a run on both tasks, with task names before the inputs."""
    monkeypatch.setattr(batching, "EVAL_BUCKETS", 1)  # little to compile
    experiment = with_options(experiment, "train", steps=4, eval_every=2)
    return dataclasses.replace(experiment, data=DataConfig(task="both", task_names=True, buckets=1))


METHODS = {
    "shared": PromptTuning(length=4, init_vocab=100),
    "concatenate": MultitaskPromptTuning(length=4, init_vocab=100, task_part="concatenate", task_length=2),
    "full": FullTuning(),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "shared", "concatenate"])
def test_a_whole_run(mixed, kind, tasks, capsys):
    """An ensemble of two members, of different lengths if the method has one."""
    lengths = (4, 5) if kind == "concatenate" else ()
    rate = OptimizerConfig(name="adamw", learning_rate=1e-3) if kind == "full" else OptimizerConfig()
    run = dataclasses.replace(
        mixed, prompt=METHODS[kind], optimizer=rate, ensemble=EnsembleConfig(size=2, length=lengths)
    )
    whole = with_name(run, "whole")
    setup, progress = train(whole, tasks=tasks)
    per_task = run.prompt.per_task
    start = setup.make_prompts(setup.trainable(setup.states))
    printed = finish(whole, setup, progress)
    assert "sampling rates: 25.0% kind_a_v001, 75.0% kind_b_v001" in capsys.readouterr().err

    # The files' metadata, and the same answers from `evaluate` with the exported prompts.
    stored = read_prompts(whole.folder / "best.npz")
    expected = [(m, t) for m in range(2) for t in NAMES] if per_task else [(m, "both") for m in range(2)]
    for (prompt, metadata), (member, task) in zip(stored, expected, strict=True):
        state = progress.members[member]
        assert metadata.task == task and metadata.step == state.best_step and (kind == "full" or prompt.stacked is None)
        scores = state.best_scores
        by_task = {name: {k.split("/")[1]: v for k, v in scores.items() if k.startswith(name)} for name in NAMES}
        assert list(by_task["kind_a_v001"]) == ["accuracy", "matthews", "invalid"]
        assert next(iter(scores)) == state.metric == "mean"
        assert state.score == scores["mean"] == benchmark_average(by_task)
        assert metadata.scores == (by_task[task] if per_task else scores)
        if per_task:
            assert metadata.settings["data.task"] == task and metadata.format.labels == BY_TASK[task]
            assert metadata.format.template == f"{task[5]} {{text}}"
        else:
            assert metadata.format.template == "{task_name} {inputs}" and metadata.format.labels == ()
    written = [json.loads(line) for line in (whole.folder / "predictions.jsonl").read_text().splitlines()]
    for number, (member, task) in enumerate(expected):
        one, model = str(whole.folder / f"member_{number}.npz"), ["--model", run.model.name]
        assert main(["export", str(whole.folder / "best.npz"), one, "--member", str(number)]) == 0
        for name in [task] if per_task else NAMES:
            out = whole.folder / f"out_{number}_{name}"
            own = [] if per_task else ["--task", name]
            assert main(["evaluate", one, *model, "--tasks", str(tasks), *own, "--out", str(out)]) == 0
            actual = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
            assert all(row["input"].startswith(f"{name[5]} ") for row in actual)
            assert [(row["input"], row["members"][0]) for row in actual] == [
                (row["input"], row["members"][member]) for row in written if row["task"] == name
            ]
        if per_task:
            assert main(["export", one, str(whole.folder / f"{number}.npy")]) == 0
            adapter = whole.folder / f"adapter_{number}"
            assert main(["export", one, str(adapter), "--format", "peft", *model]) == 0
            for file in (whole.folder / f"{number}.npy", adapter):
                ((again, _),) = read_prompts(file)
                actual = again.encoder_tokens.embeddings
                np.testing.assert_array_equal(actual, stored[number][0].encoder_tokens.embeddings)

    # Each task has a test of all members.
    summary = json.loads((whole.folder / "summary.json").read_text())
    assert [test["task"] for test in summary["tests"]] == list(NAMES)
    assert [test["members"] for test in summary["tests"]] == ([[0, 2], [1, 3]] if per_task else [[0, 1]] * 2)
    assert [member["task"] for member in summary["members"]] == [task for _, task in expected]
    assert all(f"{name}, test, 6 examples" in printed for name in NAMES)
    page = (whole.folder / "report.html").read_text()
    assert all(name in page for name in NAMES) and ("Virtual tokens" in page) == (kind != "full")

    # Every prompt has moved. An interrupted run resumes bit-exactly.
    last = [prompt for prompt, _ in read_prompts(whole.folder / "last.npz")]
    movements = [
        np.concatenate([np.ravel(b - a) for a, b in zip(*map(jax.tree.leaves, pair), strict=True)])
        for pair in zip(start, last, strict=True)
    ]
    assert all(np.abs(movement).max() > 1e-4 for movement in movements)
    assert not np.allclose(movements[0][-64:], movements[1][-64:], atol=1e-4)
    with interrupted_at(3 * len(setup.groups)):
        train(run, tasks=tasks)
    train(run, tasks=tasks)
    for file in ("last.npz", "best.npz"):
        for (ours, said), (theirs, says) in zip(*(read_prompts(r.folder / file) for r in (run, whole)), strict=True):
            jax.tree.map(np.testing.assert_array_equal, ours, theirs)
            assert said == says


@pytest.mark.parametrize(
    ("trained", "start"),
    [
        ([("kind_a_v001", "a {text}")], "o film: "),
        ([("other_v001", "film: {text}")], "film: "),
        ([("other_v001", "o film: {text}"), ("kind_b_v001", "b {text}")], "o film: "),
        ([("both", NAMED_INPUTS), (None, "{text}"), ("other_v001", None)], "o film: "),
        ([("both", "{inputs}")], "film: "),
        ([("gone_v001", "gone film: {text}")], "o film: "),
        ([("gone_v001", "gone {text}")], "film: "),
        ([("kind_a_v001", "a {text}"), ("kind_b_v001", "{text}")], None),
    ],
)
def test_another_task_is_formatted_as_in_training(tiny, tasks, trained, start):
    """Its inputs begin with its name if the prompts were trained with names. Mixing both kinds is an error."""
    members = [
        LoadedPrompt(
            Path(f"{n}.npz"), None, Prompt(), PromptMetadata(task=task, format=template and TaskFormat(template))
        )
        for n, (task, template) in enumerate(trained)
    ]
    source = ExampleOptions(task="other_v001", tasks=tasks)
    if start is None:
        with pytest.raises(UserError, match="0.npz was trained with the names .*, 1.npz without"):
            read_examples(source, members, tiny)
        return
    examples, _ = read_examples(source, members, tiny)
    assert all(
        text.startswith(f"{start}{kind} film")
        for text, kind in zip(examples.input_texts, ("bad", "good") * 3, strict=True)
    )


def test_a_prompt_of_a_mixture_needs_a_task(tiny, tasks):
    member = LoadedPrompt(Path("0.npz"), None, Prompt(), PromptMetadata(task="both", format=TaskFormat(NAMED_INPUTS)))
    with pytest.raises(UserError, match="0.npz was trained on both, a mixture; .* --task: kind_a_v001, kind_b_v001$"):
        read_examples(ExampleOptions(tasks=tasks), [member], tiny)


def test_a_mean_of_log_likelihoods_keeps_its_name(mixed, tasks):
    """So it is shown in nats, not as a share."""
    run = with_options(with_options(mixed, "data", task="texts_twice", metrics=("log_likelihood",)), "train", steps=1)
    setup, progress = train(with_options(run, "data", task_names=False), tasks=tasks)
    scores = progress.members[0].best_scores
    assert list(scores) == ["log_likelihood", "more_texts/log_likelihood", "texts/log_likelihood"]
    assert progress.members[0].metric == "log_likelihood" and scores["log_likelihood"] < 0
    text = finish(run, setup, progress)
    assert f"{scores['log_likelihood']:.4f}" in text and "%" not in text
    assert f"{100 * scores['log_likelihood']:.2f}" not in (run.folder / "report.html").read_text()


@pytest.mark.slow
def test_messages_name_a_members_prompts(mixed, tasks, capfd):
    """The first member cannot move and stops. The second one's parameters overflow."""
    run = with_options(mixed, "train", patience=1)
    run = with_options(run, "optimizer", name="adamw", weight_decay=0.0)
    run = dataclasses.replace(
        run, prompt=METHODS["concatenate"], ensemble=EnsembleConfig(seed=(0,), learning_rate=(1e-30, 3e38))
    )
    train(run, tasks=tasks)
    said = capfd.readouterr().err
    assert "member 0 (prompts 0 and 1 of best.npz): no better mean in 1 evaluations" in said
    assert "member 1 (prompts 2 and 3 of best.npz): training diverged and was stopped: loss" in said


BY_TASK = {"kind_a_v001": ("negative", "positive"), "kind_b_v001": ("bad film", "good film")}


@pytest.mark.slow
@pytest.mark.parametrize("task_part", (None, "add", "project"))
def test_a_step_trains_rows_with_the_prompts_of_their_tasks(mixed, task_part, tasks):
    """The loss of the first step equals one computed row by row with the prompt of the row's task."""
    run = with_options(mixed, "train", steps=1, dropout_rate=0.0)
    if task_part is not None:
        multitask = MultitaskPromptTuning(**dataclasses.asdict(run.prompt), task_part=task_part)
        run = dataclasses.replace(run, prompt=multitask)
    setup, progress = train(run, tasks=tasks)
    (batch,) = next(loop.prepare(run, tasks).batches)
    batch = {name: array[0] for name, array in batch.read().items() if name != "prompt_ids"}
    prompts = setup.make_prompts(setup.trainable(setup.states))
    losses, count = 0.0, 0
    for row in range(8):
        one = {name: array[row : row + 1] for name, array in batch.items()}
        text = setup.model.tokenizer.decode(one["inputs"][0][one["inputs_mask"][0]].tolist())
        task = "ab".index(text[0])
        logits = forward(setup.model.params, setup.model.config, one, prompts[task if task_part else 0])
        mask = one["target_mask"][0]
        losses -= jax.nn.log_softmax(logits[0])[np.arange(len(mask)), one["targets"][0]][mask].sum()
        count += mask.sum()
    (logged,) = (line["train/loss"] for line in read_log(run.folder) if "train/loss" in line)
    assert logged == pytest.approx(float(losses) / count, rel=1e-4)

    # The text and report of a single member.
    text = finish(run, setup, progress)
    assert text.count("best prompt") == (1 if task_part is None else 2) and "b_v001, test, 6 examples" in text
    assert "Test on kind_b_v001" in (run.folder / "report.html").read_text()


def test_a_mixture_of_one_task_is_that_task(mixed, tasks):
    both = [
        dataclasses.replace(with_name(mixed, name), data=DataConfig(task=name, buckets=1)) for name in ("one", NAMES[0])
    ]
    for run in both:
        train(run, tasks=tasks)
    (ours, said), (theirs, says) = (read_prompts(run.folder / "last.npz")[0] for run in both)
    np.testing.assert_array_equal(ours.encoder_tokens.embeddings, theirs.encoder_tokens.embeddings)
    assert said == says and said.task == NAMES[0]


def test_labels_of_all_tasks_take_turns(mixed, tasks, tiny):
    """In the initial virtual tokens."""
    run = with_options(mixed, "prompt", length=4, init="labels")
    (prompt,) = (setup := loop.prepare(run, tasks)).make_prompts(setup.trainable(setup.states))
    for row, label in enumerate(("negative", "bad film", "positive", "good film")):
        expected = np.asarray(tiny.params["embedding"])[tiny.tokenizer.encode(label)].mean(axis=0)
        np.testing.assert_allclose(prompt.encoder_tokens.embeddings[row], expected, rtol=1e-5)


def test_rates_of_a_mixture_of_mixtures(mixed, tasks):
    """The rates of its tasks are 2 x 1/4, 2 x 3/4 and 0.5."""
    from prompt_jax.data.registry import discover_tasks, mixture_rates, short_name

    discover_tasks(tasks)
    assert mixture_rates("nested") == {"kind_a_v001": 0.5, "kind_b_v001": 1.5, "texts": 0.5}
    assert mixture_rates("texts") is None
    assert [short_name(name) for name in (*NAMES, "texts", "glue_x_v002", "v1_test_v2_b")] == [
        *("a", "b", "texts", "glue_x", "v1_test"),
    ]


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        (
            {"data": {"task": "texts"}, "prompt": MultitaskPromptTuning()},
            ConfigError,
            "prompt.method 'multitask' needs a mixture of tasks, and texts is one",
        ),
        ({"data": {"task": "with_unknown"}}, DataError, "unknown, train: 9 of 9 examples have no label"),
        ({"data": {"metrics": ("bleu", "nist"), "task": "texts_twice"}}, ConfigError, "has the metrics bleu, nist"),
        ({"data": {"task": "with_plain"}}, ConfigError, "with_plain contains plain, a plain seqio task"),
        (
            {"data": {"task": "by_size"}},
            DataError,
            "the mixture 'by_size' has no rate of texts: TypeError: .* num_input_examples",
        ),
        ({"data": {"test_tasks": ("one",)}}, DataError, "'one' is a mixture; .* kind_a_v001"),
        ({"data": {"test_tasks": NAMES[:1]}}, ConfigError, "names kind_a_v001 again"),
        ({"ensemble": {"task": ("both", "texts")}}, ConfigError, "ensemble.task names both, a mixture"),
        ({"prompt": MultitaskPromptTuning(init="text", init_text=" ")}, ConfigError, "init 'text' needs"),
    ],
)
def test_impossible_mixtures(mixed, tasks, changes, kind, message):
    for part, values in changes.items():
        mixed = dataclasses.replace(mixed, prompt=values) if part == "prompt" else with_options(mixed, part, **values)
    with pytest.raises(kind, match=message):
        train(mixed, tasks=tasks)
