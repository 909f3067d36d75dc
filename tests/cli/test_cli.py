"""The command line as a user calls it, on a tiny model."""

import dataclasses
import io
import itertools
import json
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from prompt_jax import Delta, Prompt, PromptMetadata, VirtualTokens, load_prompt, save_prompt
from prompt_jax.cli import VERBS, main
from prompt_jax.inference import answers
from prompt_jax.prompt_files.io import ModelId, read_prompt, save_ensemble
from prompt_jax.task_format import TaskFormat

CONFIG = """
from pathlib import Path
from prompt_jax import DataConfig, Experiment, ModelConfig, PromptTuning, TrainConfig

experiment = Experiment(
    name="small",
    model=ModelConfig(name={model!r}),
    data=DataConfig(train=Path({train!r}), validation=Path({validation!r}), test=Path({test!r}),
                    labels=("negative", "positive"), target_length=12, buckets=1),
    prompt=PromptTuning(length=4, init="vocab", init_vocab=150),
    train=TrainConfig(steps=4, batch_size=8, eval_every=2, checkpoint_every=2, log_every=2),
)
"""


@pytest.fixture
def config(tiny_folder, sentiment_files, tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "small.py"
    path.write_text(CONFIG.format(model=str(tiny_folder), **{k: str(v) for k, v in sentiment_files.items()}))
    return path


@pytest.fixture
def prompt_file(tiny, tmp_path) -> Path:
    """Return a prompt of the tiny model for a task with two labels."""
    metadata = PromptMetadata(
        base=ModelId(tiny.name, tiny.revision, tiny.fingerprint),
        method="soft_prompt",
        task="files",
        format=TaskFormat("{text}", ("negative", "positive"), target_length=12),
        step=3,
        scores={"accuracy": 0.5},
    )
    tokens = np.random.default_rng(0).normal(size=(3, 64)).astype(np.float32)
    save_prompt(tmp_path / "p.npz", Prompt(VirtualTokens(tokens)), metadata)
    return tmp_path / "p.npz"


def run(capsys, *argv) -> tuple[int, str, str]:
    try:
        status = main([str(word) for word in argv])
    except SystemExit as leaving:  # from tyro, for --help and wrong options
        status = leaving.code
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def test_train_with_overrides(config, tmp_path, capsys):
    status, out, err = run(capsys, "train", config, "--name", "other", "--prompt.length", "6")
    assert status == 0, err
    folder = tmp_path / "runs" / "other"
    written = json.loads((folder / "config.json").read_text())
    assert written["prompt"]["length"] == 6 and written["name"] == "other"
    assert load_prompt(folder / "best.npz").encoder_tokens.embeddings.shape == (6, 64)
    assert re.search(r"accuracy +\d\.\d{4} +\d\.\d{4}", out) and "rank/accuracy" in out
    for step in (2, 4):
        assert re.search(rf"step {step}/4  loss \d+\.\d+ .* examples/s  \d:\d\d left", err)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["examples"] == {"files": {"train": 40, "validation": 12, "test": 10}}
    (test,) = summary["tests"]
    assert test["trained_on"] and test["ensemble"] is None and summary["trained_parameters"] == 6 * 64
    assert summary["stored_parameters"] == 6 * 64 and "384 of them trained" in err and "384 stored (0.00 MiB)" in err
    lines = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == 10 and set(lines[0]["label_scores"]) == {"negative", "positive"}
    assert (folder / "report.html").stat().st_size > 10_000
    status, again, _ = run(capsys, "train", folder / "config.json")
    assert status == 0 and again == out, "a finished run is scored again from its own record"


def test_train_an_ensemble(config, tmp_path, capsys):
    lists = ("--ensemble.length", "6", "4", "--ensemble.learning-rate", "0.3", "0.1")
    status, out, err = run(capsys, "train", config, "--train.steps", "2", *lists)
    assert status == 0, err
    assert "member 1: seed 1, learning_rate 0.1, length 4" in err
    rows = [re.split(r" {2,}", line.strip()) for line in out.splitlines()]
    table = {row[0]: row[1:] for row in rows}
    names = [f"member {i} (seed {i}, learning_rate {rate}, length {n})" for i, rate, n in ((0, 0.3, 6), (1, 0.1, 4))]
    values = [[float(table[name][i]) for name in names] for i in range(3)]
    assert [float(value) for value in table["average"]] == pytest.approx([sum(pair) / 2 for pair in values], abs=1e-4)
    assert {"base", "vote", "oracle: a member is right"} <= set(table) and any(row.startswith("best") for row in table)
    folder = next((tmp_path / "runs").iterdir())
    summary = json.loads((folder / "summary.json").read_text())
    assert [member["length"] for member in summary["members"]] == [6, 4] and summary["trained_parameters"] == 10 * 64
    lines = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == 10 and all(len(line["members"]) == 2 for line in lines)
    assert "Similarity of the members" in (folder / "report.html").read_text()


def test_an_ensemble_without_answers(config, sentiment_files, tmp_path, capsys, monkeypatch):
    """With log-likelihood only, there are scores of the base and the members, but no vote; so with --shot-seeds."""
    monkeypatch.setattr(answers, "generate_scored", None)
    options = ("--data.labels", "--data.metrics", "log_likelihood", "--train.steps", "2", "--ensemble.size", "2")
    status, out, err = run(capsys, "train", config, *options)
    assert status == 0, err
    printed = table(out, "files, test, 10 examples")
    assert list(printed) == ["", "base", "member 0 (seed 0)", "member 1 (seed 1)"] and printed[""] == ["log_likelihood"]
    folder = tmp_path / "runs" / "small"
    (test,) = json.loads((folder / "summary.json").read_text())["tests"]
    values = [test["before"], *test["scores"]]
    assert [f"{own['log_likelihood']:.4f}" for own in values] == [cells[0] for name, cells in printed.items() if name]
    assert test["ensemble"] is None and (folder / "predictions.jsonl").read_text() == ""
    page = (folder / "report.html").read_text()
    assert "log-likelihood, nats per token" in page and "average of 2 members" in page

    files = ("--data", sentiment_files["test"], "--shots-from", sentiment_files["train"], "--template", "{text}")
    asked = ("--metrics", "log_likelihood", "--shots", "1", "--shot-seeds", "0", "1", "--limit", "4")
    model = json.loads((folder / "config.json").read_text())["model"]["name"]
    status, out, err = run(capsys, "evaluate", "--model", model, *files, *asked)
    assert status == 0, err
    assert list(table(out, f"{model} alone")) == ["", "1 examples shown, seed 0", "1 examples shown, seed 1"]


def test_evaluate_writes_the_printed_scores(prompt_file, sentiment_files, tiny_folder, tmp_path, capsys):
    argv = ("evaluate", prompt_file, "--model", tiny_folder, "--data", sentiment_files["test"])
    status, out, err = run(capsys, *argv, "--out", tmp_path / "out")
    assert status == 0, err
    assert f"{prompt_file}: test.jsonl, test, 10 examples" in out and re.search(r"rank/accuracy +0\.\d{4}", out)
    lines = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    best = [max(line["label_scores"], key=line["label_scores"].get) for line in lines]
    accuracy = np.mean([answer == line["target"] for answer, line in zip(best, lines, strict=True)])
    assert f"{accuracy:.4f}" in out.split("rank/accuracy")[1]
    assert all(line["members"] == [line["prediction"]] and line["before"] is None for line in lines)
    assert all(line["ranked_members"] == [line["ranked"]] for line in lines)
    assert [line["ranked"] for line in lines] == best
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert scores["members"][0]["scores"]["rank/accuracy"] == pytest.approx(accuracy) and scores["ensemble"] is None
    assert f"| {accuracy:.4f} |" in (tmp_path / "out" / "table.md").read_text()


@pytest.fixture
def ensemble_file(prompt_file, tmp_path) -> Path:
    """Return two prompts of the tiny model for the task of `prompt_file`."""
    _, metadata = read_prompt(prompt_file)
    random = np.random.default_rng(1)
    prompts = [Prompt(VirtualTokens(random.normal(size=(3, 64)).astype(np.float32) * 5)) for _ in range(2)]
    named = [dataclasses.replace(metadata, settings={"train.seed": seed}) for seed in (7, 8)]
    save_ensemble(tmp_path / "e.npz", prompts, named)
    return tmp_path / "e.npz"


def table(text: str, title: str) -> dict[str, list[str]]:
    """Return the rows of a table that `evaluate` printed, by the name before two spaces."""
    lines = text[text.index(title) :].splitlines()[1:]
    rows = [re.split(r"  +", line.strip()) for line in itertools.takewhile(lambda line: line.startswith("  "), lines)]
    return {"": rows[0], **{name: cells for name, *cells in rows[1:]}}


def test_evaluate_an_ensemble(prompt_file, ensemble_file, sentiment_files, tiny_folder, tmp_path, capsys):
    argv = ("evaluate", prompt_file, ensemble_file, "--model", tiny_folder, "--data", sentiment_files["test"])
    status, out, err = run(capsys, *argv, "--out", tmp_path / "out")
    assert status == 0, err
    lines = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert len(lines) == 10 and {len(line["members"]) for line in lines} == {3}

    shown = table(out, "test.jsonl, test, 10 examples, 3 members, majority vote")
    names = [
        f"member 0 ({prompt_file})",
        *(f"member {i} ({ensemble_file}, member {i - 1}, seed {6 + i})" for i in (1, 2)),
    ]
    best = scores["ensemble"]["best"]
    assert list(shown) == ["", *names, "average", f"best (member {best})", "vote"]
    assert shown[""] == ["accuracy", "invalid", "rank/accuracy"]
    for name, own in zip(names, scores["members"], strict=True):
        assert shown[name] == [f"{own['scores'][metric]:.4f}" for metric in shown[""]]
    assert shown["vote"] == [f"{scores['ensemble']['vote'][metric]:.4f}" for metric in shown[""]]
    assert shown[f"best (member {best})"] == shown[names[best]]
    assert [(own["file"], own["member"], own["settings"]) for own in scores["members"]] == [
        (str(prompt_file), None, {}),
        (str(ensemble_file), 0, {"train.seed": 7}),
        (str(ensemble_file), 1, {"train.seed": 8}),
    ]
    markdown = (tmp_path / "out" / "table.md").read_text()
    assert f"| vote | {' | '.join(shown['vote'])} |" in markdown and "| member 2 |" in markdown

    for line in lines:  # with three members, either all differ or one answer has a majority
        (answer, count), *_ = Counter(line["members"]).most_common(1)
        assert line["prediction"] == answer if count > 1 else line["prediction"] in line["members"]
    agreement = table(out, "share of the same answers")["member 0"]
    same = [np.mean([line["members"][0] == line["members"][i] for line in lines]) for i in range(3)]
    assert agreement == [f"{share:.4f}" for share in same]
    confusion = table(out, "the vote's answers")
    assert confusion[""] == ["negative", "positive", "other"]
    assert sum(int(cell) for label in ("negative", "positive") for cell in confusion[label]) == 10
    gain = table(out, "the vote's gain")[f"vote minus best (member {best})"]
    assert float(gain[1]) <= float(gain[0]) <= float(gain[2])
    right = np.mean([line["ranked"] == line["target"] for line in lines])
    assert shown["vote"][2] == f"{right:.4f}" and {len(line["ranked_members"]) for line in lines} == {3}
    alone = run(capsys, "evaluate", prompt_file, *argv[3:])[1].splitlines()[1:]
    assert [line.split() for line in alone] == [list(pair) for pair in zip(shown[""], shown[names[0]], strict=True)]


def test_evaluate_votes_early(prompt_file, ensemble_file, sentiment_files, tiny_folder, tmp_path, capsys):
    argv = ("evaluate", prompt_file, ensemble_file, "--model", tiny_folder, "--data", sentiment_files["test"])
    full = table(run(capsys, *argv)[1], "test.jsonl")
    status, out, err = run(capsys, *argv, "--early-stop", "--out", tmp_path / "out")
    assert status == 0, err
    printed = dict(re.split(r"  +", line.strip()) for line in out.splitlines()[1:-1])
    assert [printed[metric] for metric in full[""]] == full["vote"]
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())["ensemble"]
    assert printed["saved passes"] == f"{scores['saved']:.4f}" and scores["saved"] < 0.34
    lines = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    for field in ("members", "ranked_members"):
        not_asked = [answer is None for line in lines for answer in line[field]]
        assert np.mean(not_asked) == pytest.approx(scores["saved"])
    assert full["vote"][2] == f"{np.mean([line['ranked'] == line['target'] for line in lines]):.4f}"


def test_evaluate_by_mean_probability(ensemble_file, sentiment_files, tiny_folder, capsys):
    argv = ("evaluate", ensemble_file, "--model", tiny_folder, "--data", sentiment_files["test"])
    status, out, err = run(capsys, *argv, "--vote", "mean-probability")
    assert status == 0, err
    printed = table(out, "test.jsonl, test, 10 examples, 2 members, mean-probability vote")
    assert "member 1 (seed 8)" in printed and printed["vote"][:2] == ["-", "-"] and float(printed["vote"][2]) > 0


def test_evaluate_one_of_an_ensembles_file(prompt_file, ensemble_file, sentiment_files, tiny_folder, capsys):
    own = ("--model", tiny_folder, "--data", sentiment_files["test"])
    both = table(run(capsys, "evaluate", ensemble_file, *own)[1], "test.jsonl")
    for number, seed in enumerate((7, 8)):
        status, out, err = run(capsys, "evaluate", ensemble_file, "--member", number, *own)
        assert status == 0, err
        printed = [line.split() for line in out.splitlines()[1:]]
        assert printed == [list(pair) for pair in zip(both[""], both[f"member {number} (seed {seed})"], strict=True)]
    for files, number, message in (
        ([ensemble_file], 2, f"--member 2: {ensemble_file} has 2 prompts: 0 (seed 7), 1 (seed 8)"),
        ([prompt_file], 1, f"--member 1: {prompt_file} has a single prompt, number 0"),
        ([], 0, "--member needs a prompt file, and there is none"),
    ):
        status, _, err = run(capsys, "evaluate", *files, "--member", number, *own)
        assert status == 1 and message in err


def test_incompatible_members(prompt_file, ensemble_file, sentiment_files, tiny_folder, tmp_path, capsys):
    prompt, metadata = read_prompt(prompt_file)
    task_format = metadata.format

    def other(**changes) -> Path:
        path = tmp_path / "other.npz"
        save_prompt(path, prompt, dataclasses.replace(metadata, **changes))
        return path

    def message(path, *options) -> str:
        status, _, err = run(capsys, "evaluate", prompt_file, path, "--model", tiny_folder, *options)
        assert status == 1 and "Traceback" not in err, err
        return err

    own = ("--data", sentiment_files["test"])
    said = message(other(base=ModelId("elsewhere", None, "sha256:1")), *own)
    assert f"{prompt_file} was trained on" in said and "other.npz on elsewhere (sha256:1)" in said
    assert f"{prompt_file} is named twice; its prompts would count twice" in message(prompt_file, *own)
    (tmp_path / "link.npz").symlink_to(prompt_file)
    assert f"{prompt_file} and {tmp_path / 'link.npz'} are one file" in message(tmp_path / "link.npz", *own)
    said = message(other(format=dataclasses.replace(task_format, labels=("bad", "good"))), *own)
    assert f"{prompt_file} answers with the labels negative, positive" in said and "labels bad, good" in said
    said = message(other(task="movies"))
    assert f"{prompt_file} was trained on files (the labels negative, positive)" in said and "--task NAME" in said
    said = message(other(task="movies", format=dataclasses.replace(task_format, labels=("bad", "good"))))
    assert "other.npz was trained on movies (the labels bad, good): for different tasks. Evaluate each alone" in said
    said = message(other(format=dataclasses.replace(task_format, template="review: {text}")), *own)
    assert "template '{text}'" in said and "template 'review: {text}'" in said and "--template TEXT" in said
    after = dataclasses.replace(prompt, encoder_tokens=dataclasses.replace(prompt.encoder_tokens, placement="after"))
    save_prompt(tmp_path / "after.npz", after, metadata)
    said = message(tmp_path / "after.npz", *own)
    assert str(prompt_file) in said and "after.npz after it" in said
    with np.load(ensemble_file) as archive:
        entries = dict(archive)
    np.savez(tmp_path / "damaged.npz", **entries | {"1/encoder_tokens": entries["1/encoder_tokens"] * np.nan})
    assert "damaged.npz, member 1" in message(tmp_path / "damaged.npz", *own)

    assert "--vote mean-probability needs every member" in message(
        other(), *own, "--early-stop", "--vote", "mean-probability"
    )
    free = dataclasses.replace(task_format, labels=())
    save_prompt(prompt_file, prompt, dataclasses.replace(metadata, format=free))
    said = message(other(format=free), *own, "--vote", "mean-probability")
    assert "test.jsonl has no labels" in said


def test_options_override_differences_between_members(prompt_file, sentiment_files, tiny_folder, tmp_path, capsys):
    prompt, metadata = read_prompt(prompt_file)
    others = dataclasses.replace(metadata.format, labels=("bad", "good"), template="review: {text}", input_length=256)
    save_prompt(tmp_path / "o.npz", prompt, dataclasses.replace(metadata, task="movies", format=others))
    argv = ("evaluate", prompt_file, tmp_path / "o.npz", "--model", tiny_folder, "--data", sentiment_files["test"])
    options = ("--template", "{text}", "--labels", "negative", "positive")
    with pytest.warns(UserWarning, match="o.npz was trained with at most 256 tokens of input"):
        status, out, err = run(capsys, *argv, *options)
    assert status == 0, err
    printed = table(out, "test.jsonl")
    assert printed["vote"] == printed["average"], "it is the same prompt twice"


def test_predict_from_arguments_file_and_standard_input(prompt_file, tiny_folder, tmp_path, capsys, monkeypatch):
    texts = ["a good film", "a bad film, dull and long", "great fun"]
    base = ("predict", prompt_file, "--model", tiny_folder)
    status, from_arguments, err = run(capsys, *base[:2], *texts, *base[2:])
    assert status == 0, err
    assert len(from_arguments.splitlines()) == 3
    (tmp_path / "in.txt").write_text("\n".join(texts))
    assert run(capsys, *base, "--input", tmp_path / "in.txt", "--batch-size", 2)[1] == from_arguments
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(texts) + "\n"))
    assert run(capsys, *base)[1] == from_arguments
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    status, out, _ = run(capsys, *base, "--input", tmp_path / "in.jsonl", "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["prediction"] for row in rows] == from_arguments.splitlines()
    assert [row["input"] for row in rows] == texts
    assert all(score < 0 for row in rows for score in row["label_scores"].values())


def test_export_and_inspect(prompt_file, tiny_folder, tmp_path, capsys):
    assert run(capsys, "export", prompt_file, tmp_path / "out.npy")[0] == 0
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), np.load(prompt_file)["encoder_tokens"])
    assert run(capsys, "export", prompt_file, tmp_path / "bare", "--format", "npy")[0] == 0
    assert (tmp_path / "bare").read_bytes() == (tmp_path / "out.npy").read_bytes()
    status, out, err = run(capsys, "inspect", prompt_file, "--model", tiny_folder, "--neighbors", 2)
    assert status == 0, err
    assert "soft_prompt" in out and "files" in out and "accuracy" in out


def test_help_of_every_verb(capsys):
    status, out, _ = run(capsys, "--help")
    assert status == 0
    for verb in VERBS:
        assert f"  {verb} " in out
        status, printed, _ = run(capsys, verb, "--help")
        assert status == 0 and f"usage: prompt-jax {verb}" in printed and "Example" in printed
        assert re.search(rf"^  prompt-jax {verb}", printed, re.MULTILINE)
    assert run(capsys)[0] == 2


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["trian"], "there is no verb 'trian'. Did you mean 'train'?"),
        (["evaluat", "x"], "Did you mean 'evaluate'?"),
        (["train", "CONFIG", "--prompt.lenght", "3"], "--prompt.length"),
        (["train", "CONFIG", "--optimiser.learning-rate", "3"], "--optimizer.learning-rate"),
    ],
)
def test_the_nearest_right_name_is_given(config, capsys, argv, message):
    status, _, err = run(capsys, *[str(config) if word == "CONFIG" else word for word in argv])
    assert status == 2 and message in " ".join(err.split())


def test_errors_are_one_message(config, prompt_file, tiny_folder, tmp_path, capsys):
    other = tmp_path / "other.npz"
    save_prompt(
        other,
        load_prompt(prompt_file),
        PromptMetadata(base=ModelId("elsewhere", None, "sha256:1"), format=TaskFormat("{text}")),
    )
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 and no more")
    delta = Delta({"decoder": {"final_norm": np.ones(64, np.float32)}})
    save_ensemble(tmp_path / "deltas.npz", [delta] * 2, [read_prompt(prompt_file)[1]] * 2)
    no_tokenizer = shutil.copytree(tiny_folder, tmp_path / "no_tokenizer", ignore=shutil.ignore_patterns("spiece*"))
    named = ("--model", tiny_folder)
    for argv, message in (
        (("predict", prompt_file, "x", "--model", no_tokenizer), "no_tokenizer has no tokenizer"),
        (("predict", tmp_path / "deltas.npz", "x", *named), "deltas.npz change weights of the base and cannot share"),
        (("train",), "train needs a configuration file, e.g."),
        (("train", "none.py"), "no configuration file none.py"),
        (("evaluate",), "name at least one prompt file"),
        (("evaluate", "none.npz"), "no such file: none.npz"),
        (("evaluate", tmp_path / "broken.npz"), "broken.npz: damaged"),
        (("predict", other, "x"), "trained on elsewhere, which is not on this machine. To download it, say --model"),
        (("predict", other, "x", *named), "was trained on elsewhere (sha256:1), not on"),
        (("predict", prompt_file, "x"), "if you trust it, say --model"),
        (("evaluate", prompt_file, *named), "which is not in the tasks folder; give --data FILE, --task NAME or"),
        (("evaluate", prompt_file, *named, "--task", "films"), "no task is called 'films'"),
        (("evaluate", prompt_file, *named, "--data", "x.parquet"), "expected a file named .jsonl, .csv or .tsv"),
        (("evaluate", prompt_file, *named, "--batch-size", "0"), "--batch-size must be positive, not 0"),
        (("evaluate", prompt_file, *named, "--early-stop"), "--vote and --early-stop need two prompts or more"),
        (("evaluate", prompt_file, *named, "--labels", "a", "b"), "--labels say how --data is read"),
        (("predict", tmp_path, "x"), "is a folder without adapter_config.json, so not a PEFT adapter"),
        (("train", config, "--data.metrics", "mean_class_f1", "f1", "--data.labels", "a"), "f1 needs two labels"),
        (("train", config, "--optimizer.clip-norm", "-1"), "optimizer.clip_norm must be positive"),
        (("train", config, "--train.patience", "0"), "train.patience must be positive"),
        (("export", prompt_file, tmp_path / "x.bin"), "name it .npz or .npy"),
        (("train", config, "--data.template", "{film}"), "film"),
        (("train", config, "--data.template", "{a.b}"), "no column 'a.b'; expected it among 'text', 'label'"),
        (("train", config, "--data.template", "{a} {"), "has a brace that is not part of a {column}"),
        (("train", config, "--data.template", "{a} {}"), "has {}; write the column's name between the braces"),
        (("train", config, "--model.name", tmp_path), "has no config.json"),
        (("train", config, "--train.batch-size", "64"), "40 examples, fewer than the 64"),
    ):
        status, out, err = run(capsys, *argv)
        assert status == 1 and err.startswith("prompt-jax: ") and message in err, (argv, err)
        assert "Traceback" not in err
    assert run(capsys, "predict", other, "x", *named, "--allow-other-base")[0] == 0


@pytest.mark.parametrize(
    ("name", "revision"),
    [
        ("FOLDER", None),
        ("~/secret", None),
        ("../secret", None),
        ("a/b/c", None),
        ("x" * 300, None),
        ("google/t5", "/etc/passwd"),
        ("google/t5", "main"),
        ("x\x1b]0;pwn\x07/y", None),
    ],
)
def test_a_base_that_a_file_names_is_not_loaded(prompt_file, tiny_folder, capsys, monkeypatch, name, revision):
    """Its base may be a folder, or look like a name on the Hub. Without --model, it is not opened."""
    from prompt_jax.checkpoints import load

    monkeypatch.setattr(load, "load_model", lambda *args, **options: pytest.fail(f"loaded {args}"))
    base = ModelId(name.replace("FOLDER", str(tiny_folder)), revision, "sha256:1")
    save_prompt(prompt_file, load_prompt(prompt_file), PromptMetadata(base=base))
    status, _, err = run(capsys, "predict", prompt_file, "x")
    assert status == 1 and "if you trust it, say --model" in err and "\x1b" not in err


def test_a_foreign_prompt_is_scored_on_a_users_file(prompt_file, sentiment_files, tiny_folder, tmp_path, capsys):
    """A .npy has no metadata: the command line supplies base and task."""
    assert run(capsys, "export", prompt_file, tmp_path / "p.npy")[0] == 0
    argv = ("evaluate", tmp_path / "p.npy", "--model", tiny_folder, "--data", sentiment_files["test"])
    with pytest.warns(UserWarning, match="does not say which base"):
        assert "give one with --template" in run(capsys, *argv)[2]
    with pytest.warns(UserWarning, match="does not say which base"):
        status, out, err = run(capsys, *argv, "--template", "{text}", "--labels", "negative", "positive")
    assert status == 0 and "rank/accuracy" in out, err


def test_inspect_without_the_base(prompt_file, capsys):
    status, out, err = run(capsys, "inspect", prompt_file)
    assert status == 0 and "--model" in err + out and "soft_prompt" in out


def test_a_diverged_run_has_its_own_status(config, capsys):
    argv = ("--optimizer.name", "adamw", "--optimizer.learning-rate", "3e38")
    status, _, err = run(capsys, "train", config, *argv)
    assert status == 3 and "has the best prompt until then" in err


def test_templates_of_several_columns_take_json(tiny, tiny_folder, tmp_path, capsys):
    metadata = PromptMetadata(base=ModelId(tiny.name, None, tiny.fingerprint), format=TaskFormat("a {x} b {y}"))
    save_prompt(tmp_path / "p.npz", Prompt(VirtualTokens(np.ones((2, 64), np.float32))), metadata)
    argv = ("predict", tmp_path / "p.npz", "--model", tiny_folder)
    assert run(capsys, *argv[:2], '{"x": "good", "y": "film"}', *argv[2:])[0] == 0
    for text, message in (
        ("film", "expected a JSON object with x, y"),
        ('{"x": 1}', "no column 'y'"),
        ("[1]", "JSON list"),
        ('{"x": null, "y": 1}', "column 'x' holds null; expected text"),
    ):
        status, _, err = run(capsys, *argv[:2], text, *argv[2:])
        assert status == 1 and message in err, err
