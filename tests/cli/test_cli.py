"""The help texts and errors of all verbs."""

import re
import shutil

import numpy as np
import pytest

from prompt_jax import Delta, PromptMetadata, load_prompt, save_prompt
from prompt_jax.cli import VERBS
from prompt_jax.prompt_files.io import ModelId, read_prompt, save_ensemble
from prompt_jax.task_format import TaskFormat


def test_help_of_every_verb(run):
    status, out, _ = run("--help")
    assert status == 0
    for verb in VERBS:
        assert f"  {verb} " in out
        status, printed, _ = run(verb, "--help")
        assert status == 0 and f"usage: prompt-jax {verb}" in printed and "Example" in printed
        assert re.search(rf"^  prompt-jax {verb}", printed, re.MULTILINE)
    assert run()[0] == 2


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["trian"], "there is no verb 'trian'. Did you mean 'train'?"),
        (["evaluat", "x"], "Did you mean 'evaluate'?"),
        (["train", "CONFIG", "--prompt.lenght", "3"], "--prompt.length"),
        (["train", "CONFIG", "--optimiser.learning-rate", "3"], "--optimizer.learning-rate"),
    ],
)
def test_the_nearest_right_name_is_given(config, run, argv, message):
    status, _, err = run(*[str(config) if word == "CONFIG" else word for word in argv])
    assert status == 2 and message in " ".join(err.split())


def test_errors_are_one_message(config, prompt_file, tiny_folder, tmp_path, run):
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
        status, out, err = run(*argv)
        assert status == 1 and err.startswith("prompt-jax: ") and message in err, (argv, err)
        assert "Traceback" not in err
    assert run("predict", other, "x", *named, "--allow-other-base")[0] == 0
