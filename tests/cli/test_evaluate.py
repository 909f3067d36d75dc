"""`prompt-jax evaluate`."""

import dataclasses
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from printed_tables import table
from prompt_jax import save_prompt
from prompt_jax.prompt_files.io import ModelId, read_prompt


def test_evaluate_writes_the_printed_scores(prompt_file, sentiment_files, tiny_folder, tmp_path, run):
    argv = ("evaluate", prompt_file, "--model", tiny_folder, "--data", sentiment_files["test"])
    status, out, err = run(*argv, "--out", tmp_path / "out")
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


def test_evaluate_an_ensemble(prompt_file, ensemble_file, sentiment_files, tiny_folder, tmp_path, run):
    argv = ("evaluate", prompt_file, ensemble_file, "--model", tiny_folder, "--data", sentiment_files["test"])
    status, out, err = run(*argv, "--out", tmp_path / "out")
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
    alone = run("evaluate", prompt_file, *argv[3:])[1].splitlines()[1:]
    assert [line.split() for line in alone] == [list(pair) for pair in zip(shown[""], shown[names[0]], strict=True)]


def test_evaluate_votes_early(prompt_file, ensemble_file, sentiment_files, tiny_folder, tmp_path, run):
    argv = ("evaluate", prompt_file, ensemble_file, "--model", tiny_folder, "--data", sentiment_files["test"])
    full = table(run(*argv)[1], "test.jsonl")
    status, out, err = run(*argv, "--early-stop", "--out", tmp_path / "out")
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


def test_evaluate_by_mean_probability(ensemble_file, sentiment_files, tiny_folder, run):
    argv = ("evaluate", ensemble_file, "--model", tiny_folder, "--data", sentiment_files["test"])
    status, out, err = run(*argv, "--vote", "mean-probability")
    assert status == 0, err
    printed = table(out, "test.jsonl, test, 10 examples, 2 members, mean-probability vote")
    assert "member 1 (seed 8)" in printed and printed["vote"][:2] == ["-", "-"] and float(printed["vote"][2]) > 0


def test_evaluate_one_of_an_ensembles_file(prompt_file, ensemble_file, sentiment_files, tiny_folder, run):
    own = ("--model", tiny_folder, "--data", sentiment_files["test"])
    both = table(run("evaluate", ensemble_file, *own)[1], "test.jsonl")
    for number, seed in enumerate((7, 8)):
        status, out, err = run("evaluate", ensemble_file, "--member", number, *own)
        assert status == 0, err
        printed = [line.split() for line in out.splitlines()[1:]]
        assert printed == [list(pair) for pair in zip(both[""], both[f"member {number} (seed {seed})"], strict=True)]
    for files, number, message in (
        ([ensemble_file], 2, f"--member 2: {ensemble_file} has 2 prompts: 0 (seed 7), 1 (seed 8)"),
        ([prompt_file], 1, f"--member 1: {prompt_file} has a single prompt, number 0"),
        ([], 0, "--member needs a prompt file, and there is none"),
    ):
        status, _, err = run("evaluate", *files, "--member", number, *own)
        assert status == 1 and message in err


def test_incompatible_members(prompt_file, ensemble_file, sentiment_files, tiny_folder, tmp_path, run):
    prompt, metadata = read_prompt(prompt_file)
    task_format = metadata.format

    def other(**changes) -> Path:
        path = tmp_path / "other.npz"
        save_prompt(path, prompt, dataclasses.replace(metadata, **changes))
        return path

    def message(path, *options) -> str:
        status, _, err = run("evaluate", prompt_file, path, "--model", tiny_folder, *options)
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
