"""`prompt-jax predict`."""

import io
import json

import numpy as np

from prompt_jax import Prompt, PromptMetadata, VirtualTokens, save_prompt
from prompt_jax.prompt_files.io import ModelId
from prompt_jax.task_format import TaskFormat


def test_predict_from_arguments_file_and_standard_input(prompt_file, tiny_folder, tmp_path, monkeypatch, run):
    texts = ["a good film", "a bad film, dull and long", "great fun"]
    base = ("predict", prompt_file, "--model", tiny_folder)
    status, from_arguments, err = run(*base[:2], *texts, *base[2:])
    assert status == 0, err
    assert len(from_arguments.splitlines()) == 3
    (tmp_path / "in.txt").write_text("\n".join(texts))
    assert run(*base, "--input", tmp_path / "in.txt", "--batch-size", 2)[1] == from_arguments
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(texts) + "\n"))
    assert run(*base)[1] == from_arguments
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    status, out, _ = run(*base, "--input", tmp_path / "in.jsonl", "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["prediction"] for row in rows] == from_arguments.splitlines()
    assert [row["input"] for row in rows] == texts
    assert all(score < 0 for row in rows for score in row["label_scores"].values())


def test_templates_of_several_columns_take_json(tiny, tiny_folder, tmp_path, run):
    metadata = PromptMetadata(base=ModelId(tiny.name, None, tiny.fingerprint), format=TaskFormat("a {x} b {y}"))
    save_prompt(tmp_path / "p.npz", Prompt(VirtualTokens(np.ones((2, 64), np.float32))), metadata)
    argv = ("predict", tmp_path / "p.npz", "--model", tiny_folder)
    assert run(*argv[:2], '{"x": "good", "y": "film"}', *argv[2:])[0] == 0
    for text, message in (
        ("film", "expected a JSON object with x, y"),
        ('{"x": 1}', "no column 'y'"),
        ("[1]", "JSON list"),
        ('{"x": null, "y": 1}', "column 'x' holds null; expected text"),
    ):
        status, _, err = run(*argv[:2], text, *argv[2:])
        assert status == 1 and message in err, err
