"""The base asked in words: what stands before an input, and what is said of it."""

import json

import numpy as np
import pytest

import prompt_jax
from prompt_jax import data
from prompt_jax.cli import main
from prompt_jax.few_shot import Design, DesignError, designed
from prompt_jax.task_format import TaskFormat

FORMAT = TaskFormat("{text}", ("negative", "positive"), input_length=64, target_length=8)


@pytest.fixture(params=("t5", "gpt2", "bart"))
def model(request, tiny_folders):
    return prompt_jax.load_model(str(tiny_folders[request.param]))


def split(model, files, name: str):
    task = data.file_task("files", files, FORMAT)
    return data.load_examples(task, model.tokenizer, name, input_length=64, target_length=8)


def text(model, ids: np.ndarray) -> str:
    """All of the text, special tokens left out."""
    pieces = [int(i) for i in ids if i not in (model.config.eos_id, model.config.pad_id, model.config.start_id)]
    return model.tokenizer.decode(pieces)


def test_an_input_after_its_examples(model, sentiment_files):
    tests, training = (split(model, sentiment_files, name) for name in ("test", "train"))
    design = Design("Review: {input}", 2, demonstration="{input} Answer: {target}", length=200)
    asked, shown = designed(tests, design, model, training, seed=1)
    assert shown == 2 and len(asked) == len(tests)
    start = list(getattr(model.tokenizer, "start", ()))
    own = [model.tokenizer.input_ids(f"Review: {each}")[len(start) :] for each in tests.input_texts]
    before = asked.inputs[0][: len(asked.inputs[0]) - len(own[0])]
    for ids, alone in zip(asked.inputs, own, strict=True):  # the same examples before each
        np.testing.assert_array_equal(ids, [*before, *alone])
    assert list(before[: len(start)]) == start
    assert list(before).count(model.config.eos_id) == (4 if getattr(model.tokenizer, "causal", False) else 0)
    written = text(model, before)
    assert written.count("negative") == 1 and written.count("positive") == 1  # a label in turn
    assert "of train" in written and "of test" not in written
    again, _ = designed(tests, design, model, training, seed=1)
    np.testing.assert_array_equal(again.inputs[3], asked.inputs[3])
    other, _ = designed(tests, design, model, training, seed=2)
    assert len(other.inputs[3]) != len(asked.inputs[3]) or (other.inputs[3] != asked.inputs[3]).any()
    assert asked.target_texts == tests.target_texts


def test_a_causal_model_reads_examples_as_it_reads_answers(tiny_folders, sentiment_files):
    model = prompt_jax.load_model(str(tiny_folders["gpt2"]))
    tests, training = (split(model, sentiment_files, name) for name in ("test", "train"))
    asked, _ = designed(tests, Design(shots=1, balanced=False, length=200), model, training)
    row = int(np.random.default_rng(0).permutation(len(training))[0])
    tokenizer = model.tokenizer
    shown = [
        *tokenizer.input_ids(training.input_texts[row]),
        model.config.start_id,
        *tokenizer.target_ids(training.target_texts[row]),
    ]
    np.testing.assert_array_equal(asked.inputs[0], [*shown, *tokenizer.input_ids(tests.input_texts[0])])


def test_an_answer_is_not_given_away(model, sentiment_files):
    training = split(model, sentiment_files, "train")
    asked, shown = designed(training, Design(shots=4, length=1000), model, training)
    assert shown == 4 * (1 - 1 / len(training))  # four inputs are among the four that are shown
    for ids, own in zip(asked.inputs, training.input_texts, strict=True):
        assert text(model, ids).count(own) <= 1


def test_as_many_as_fit(model, sentiment_files):
    tests, training = (split(model, sentiment_files, name) for name in ("test", "train"))
    few, _ = designed(tests, Design(shots=3, length=1000), model, training)
    longest = max(map(len, few.inputs))
    fitting, shown = designed(tests, Design(shots=None, length=longest), model, training)
    for three, own in zip(few.inputs, fitting.inputs, strict=True):
        assert len(three) <= len(own) <= longest  # the first three are there, and there may be room for a fourth
    assert 3 <= shown < 5
    none, shown = designed(tests, Design(shots=3, length=4), model, training)
    assert shown == 0 and all(len(ids) <= 4 for ids in none.inputs) and none.truncated["inputs"] == len(tests)


def test_without_examples_the_inputs_are_the_tasks(model, sentiment_files):
    tests = split(model, sentiment_files, "test")
    asked, shown = designed(tests, Design(), model)
    assert shown == 0
    for ids, own in zip(asked.inputs, tests.inputs, strict=True):
        np.testing.assert_array_equal(ids, own)


def test_what_cannot_be_shown(model, sentiment_files):
    tests, training = (split(model, sentiment_files, name) for name in ("test", "train"))
    with pytest.raises(DesignError, match="has 40 examples to be shown of all labels in turn, and 41 are wanted"):
        designed(tests, Design(shots=41), model, training)
    with pytest.raises(DesignError, match="drawn from a training split, and there is none"):
        designed(tests, Design(shots=1), model)
    for design, message in (
        (lambda: Design("no place"), r"should have \{input\}, each once"),
        (lambda: Design(demonstration="{input}"), r"should have \{input\} and \{target\}, each once"),
        (lambda: Design(shots=-1), "there cannot be -1 examples"),
    ):
        with pytest.raises(DesignError, match=message):
            design()


def test_from_the_command_line(tiny_folder, sentiment_files, tmp_path, capsys):
    asked = ["evaluate", "--model", str(tiny_folder), "--data", str(sentiment_files["test"]), "--template", "{text}"]
    asked += ["--labels", "negative", "positive"]
    assert main([*asked, "--out", str(tmp_path / "zero")]) == 0
    assert "alone: test.jsonl, test, 10 examples, 0 examples shown" in capsys.readouterr().out
    assert json.loads((tmp_path / "zero" / "scores.json").read_text())["ways"][0]["scores"].keys() >= {"accuracy"}
    shots = ["--shots", "2", "--shots-from", str(sentiment_files["train"]), "--shot-seeds", "0", "1"]
    assert main([*asked, *shots, "--design", "It says: {input}", "--out", str(tmp_path / "two")]) == 0
    shown = capsys.readouterr().out
    assert "2 examples shown, seed 1" in shown and "average" in shown
    lines = (tmp_path / "two" / "predictions.jsonl").read_text().splitlines()
    assert len(lines) == 10 and len(json.loads(lines[0])["members"]) == 2
    assert main([*asked, "--shot-length", "6"]) == 0
    assert "10 examples, 10 inputs cut" in capsys.readouterr().out
    assert main([*asked, "--shots", "fit", "--shots-from", str(sentiment_files["train"]), "--shot-length", "64"]) == 0
    capsys.readouterr()
    for argv, message in (
        (["evaluate"], "name at least one prompt file"),
        (["evaluate", "--model", str(tiny_folder)], "give --task NAME or --data FILE"),
        ([*asked, "--shots", "1"], "are drawn from --shots-from, a file of the same kind"),
        ([*asked, "--shots-from", "f.jsonl"], "are drawn from --shots-from, a file of the same kind"),
        ([*asked, *shots[:-1], "0", "--shot-seeds", "-1"], "numbers from 0, each once, not -1"),
        ([*asked, *shots, "--shot-seeds", "3", "3"], "numbers from 0, each once, not 3 3"),
        ([*asked, "--early-stop"], "are for prompts"),
        ([*asked, "--task", "t"], "both say what is asked; give one of them"),
        (["evaluate", "p.npz", "--shots", "1"], "--design and --shots are of the base alone"),
        ([*asked, "--design", "no place"], "should have {input}, each once"),
    ):
        assert main(argv) == 1
        assert message in capsys.readouterr().err
