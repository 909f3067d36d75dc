"""`prompt-jax diff`, of prompts and of configurations."""

import dataclasses

import numpy as np
import pytest

from adapters import random_prefix
from prompt_jax import Prompt, VirtualTokens, save_ensemble, save_prompt
from prompt_jax import experiment as experiments
from prompt_jax.config.data import DataConfig
from prompt_jax.experiment import Experiment
from prompt_jax.methods.soft_prompt import PromptTuning
from prompt_jax.prompt_files.io import read_prompt, read_prompts


def test_the_same_prompt(prompt_file, said, tmp_path, run):
    prompt, _ = read_prompt(prompt_file)
    save_prompt(tmp_path / "q.npz", prompt, said)
    assert run("diff", prompt_file, tmp_path / "q.npz") == (
        0,
        f"{prompt_file} and {tmp_path / 'q.npz'}: identical\n",
        "",
    )
    padded = np.concatenate([np.full((1, 64), 9, np.float32), prompt.encoder_tokens.embeddings])
    save_prompt(tmp_path / "m.npz", Prompt(VirtualTokens(padded, np.arange(4) > 0)), said)
    assert run("diff", prompt_file, tmp_path / "m.npz")[0] == 0, "slots that are not used make no difference"


def test_prompts_that_differ(prompt_file, said, tmp_path, run):
    prompt, _ = read_prompt(prompt_file)
    a = prompt.encoder_tokens.embeddings
    b = a.copy()
    b[1] *= -2
    b[2, 5] += 0.25
    other = dataclasses.replace(said, step=9, format=dataclasses.replace(said.format, labels=("no", "yes")))
    save_prompt(tmp_path / "q.npz", Prompt(VirtualTokens(b)), other)
    status, out, err = run("diff", prompt_file, tmp_path / "q.npz")
    assert status == 1 and err == ""
    lines = out.splitlines()
    assert lines[0] == f"{prompt_file} and {tmp_path / 'q.npz'}:"
    assert lines[1].split() == ["format.labels", '["negative",', '"positive"]', '["no",', '"yes"]']
    assert lines[2].split() == ["step", "3", "9"]
    norms = [np.linalg.norm(x) for x in (a, b)]
    assert lines[3] == f"  encoder_tokens: 3 x 64 of norm {norms[0]:.4g}, and 3 x 64 of norm {norms[1]:.4g}"
    largest = np.abs(a - b).max()
    assert (
        lines[4] == f"    norm of the difference {np.linalg.norm(a - b):.4g}; the largest is {largest:.4g}, in slot 1"
    )
    last = a[2] @ b[2] / np.linalg.norm(a[2]) / np.linalg.norm(b[2])
    assert lines[5] == f"    cosines of slots: mean {(last + 0) / 3:.4f}, from -1.0000 (1) to 1.0000 (0)"
    assert lines[6].split() == ["0", "1.0000", "-1.0000", f"{last:.4f}"] and len(lines) == 7


def test_the_last_bit_is_a_difference(prompt_file, said, tmp_path, run):
    prompt, _ = read_prompt(prompt_file)
    moved = prompt.encoder_tokens.embeddings.copy()
    moved[0, 0] = np.nextafter(moved[0, 0], np.float32(9))
    save_prompt(tmp_path / "q.npz", Prompt(VirtualTokens(moved)), said)
    assert run("diff", prompt_file, tmp_path / "q.npz")[0] == 1


def test_sizes_and_parts_that_differ(prompt_file, tiny, said, tmp_path, run):
    save_prompt(tmp_path / "q.npz", Prompt(VirtualTokens(np.ones((2, 64), np.float32))), said)
    status, out, _ = run("diff", prompt_file, tmp_path / "q.npz")
    assert status == 1 and "3 x 64 of norm" in out and "2 x 64 of norm 11.31" in out and "cosines" not in out
    prefix = random_prefix(tiny, 3)
    save_prompt(tmp_path / "x.npz", prefix, said)
    status, out, _ = run("diff", prompt_file, tmp_path / "x.npz")
    assert status == 1 and "encoder_tokens: only the first has it" in out
    assert "decoder_cross: only the second has it" in out
    keys = np.array(prefix.decoder_self.keys)
    keys[1, 2] = 0  # of the second layer, in the last slot
    changed = dataclasses.replace(prefix, decoder_self=dataclasses.replace(prefix.decoder_self, keys=keys))
    save_prompt(tmp_path / "y.npz", changed, said)
    status, out, _ = run("diff", tmp_path / "x.npz", tmp_path / "y.npz")
    assert status == 1 and "in slot 2" in out and "encoder_self" not in out and "decoder_cross" not in out


def test_ensembles_by_member(ensemble_file, said, tmp_path, run):
    (first, a), (second, b) = read_prompts(ensemble_file)
    moved = Prompt(VirtualTokens(second.encoder_tokens.embeddings + 1))
    save_ensemble(tmp_path / "f.npz", [first, moved, moved], [a, b, b])
    status, out, _ = run("diff", ensemble_file, tmp_path / "f.npz")
    both = f"{ensemble_file} and {tmp_path / 'f.npz'}"
    assert status == 1 and f"{both}, member 0: identical\n{both}, member 1:\n" in out
    assert f"{both}, 2 and 3 members:" in out


def written(experiment: Experiment, folder, name: str):
    path = folder / name / "config.json"
    path.parent.mkdir()
    path.write_text(experiments.to_json(experiment))
    return path


def test_configurations(tmp_path, run):
    one = Experiment(data=DataConfig(task="a"), prompt=PromptTuning(length=7, init_range=(-1.0, 1.0)))
    two = dataclasses.replace(one, name="two", prompt=PromptTuning(length=9, init_range=(-1.0, 1.0), mlp_width=3))
    a, b = written(one, tmp_path, "a"), written(two, tmp_path, "b")
    status, out, err = run("diff", a, b)
    assert (status, err) == (1, "")
    rows = [line.split() for line in out.splitlines()]
    assert out.startswith(f"{a} and {b}: 3 fields differ\n")
    assert rows[1:] == [
        ["name", '"experiment"', '"two"'],
        ["prompt.length", "7", "9"],
        ["prompt.mlp_width", "-", "3"],
    ]
    assert run("diff", a.parent, b.parent)[1].splitlines()[1:] == out.splitlines()[1:], "a run's folder is its record"
    (tmp_path / "c.py").write_text(
        "from prompt_jax import *\n"
        "experiment = Experiment(data=DataConfig(task='a'), prompt=PromptTuning(length=7, init_range=(-1, 1)))\n"
    )
    assert run("diff", tmp_path / "c.py", a)[:2] == (0, f"{tmp_path / 'c.py'} and {a}: the same\n")


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ("p.npz", "none.npz", "no such file: "),
        ("p.npz", "c.py", "c.py is a configuration and "),
        ("none.py", "c.py", "no configuration file "),
        ("c.py", "broken.json", "not a configuration"),
        ("p.npz", "broken.npz", "broken.npz: damaged"),
        ("p.npz", "a folder", "a folder"),
    ],
)
def test_incomparable_files_have_status_2(prompt_file, tmp_path, run, first, second, message):
    (tmp_path / "c.py").write_text("from prompt_jax import Experiment\nexperiment = Experiment()\n")
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 and no more")
    (tmp_path / "a folder").mkdir()
    status, out, err = run("diff", tmp_path / first, tmp_path / second)
    assert status == 2 and out == "" and err.startswith("prompt-jax: ") and message in err and "Traceback" not in err
