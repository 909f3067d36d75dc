"""Few-shot prompting of the base: templates, in-context examples and their scores."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from transformers import AutoConfig

import bytepairs
import prompt_jax
from prompt_jax import metrics
from prompt_jax.checkpoints.tokenizer import load_tokenizer
from prompt_jax.cli import main
from prompt_jax.data.files import file_task
from prompt_jax.data.load import LoadOptions, load_examples
from prompt_jax.inference.evaluation import EvaluationOptions, evaluate, evaluate_members
from prompt_jax.inference.few_shot import DesignError, PromptDesign, few_shot_inputs
from prompt_jax.task_format import TaskFormat
from sentencepieces import SENTENCES

pytestmark = pytest.mark.usefixtures("one_length")

LINE_BREAK = 1.5  # how much more a line break is wanted
FORMAT = TaskFormat("{text}", ("negative", "positive"), input_length=64, target_length=8)


@pytest.fixture(params=("t5", "gpt2", "bart"))
def model(request, tiny_folders):
    return roomy(prompt_jax.load_model(str(tiny_folders[request.param])))


def roomy(model):
    """Return the model with enough positions for these texts. The model runs on the short ones only."""
    if hasattr(model.config, "positions"):
        return dataclasses.replace(model, config=dataclasses.replace(model.config, positions=2000))
    return model


def split(model, files, name: str, target_length: int = 8):
    task = file_task("files", files, FORMAT)
    return load_examples(task, model.tokenizer, name, LoadOptions(64, target_length))


def text(model, ids: np.ndarray) -> str:
    """Decode ids without special tokens."""
    pieces = [int(i) for i in ids if i not in (model.config.eos_id, model.config.pad_id, model.config.start_id)]
    return model.tokenizer.decode(pieces)


def read(model, written: str) -> list[int]:
    """Return the ids of an input text. A causal model's has no special tokens."""
    return model.tokenizer.encode(written) if causal(model) else model.tokenizer.input_ids(written)


def causal(model) -> bool:
    return getattr(model.tokenizer, "causal", False)


def test_an_input_after_its_examples(model, sentiment_files):
    tests, training = (split(model, sentiment_files, name) for name in ("test", "train"))
    design = PromptDesign("Review: {input}", 2, demonstration="{input} Answer: {target}", length=200)
    asked, printed = few_shot_inputs(tests, design, model, training, seed=1)
    assert printed == 2 and len(asked) == len(tests)
    start = list(getattr(model.tokenizer, "start", ()))
    space, end = " " if start else "", " Answer:" if causal(model) else ""
    own = [read(model, f"{space}Review: {each}{end}")[len(start) :] for each in tests.input_texts]
    before = asked.inputs[0][: len(asked.inputs[0]) - len(own[0])]
    for ids, alone in zip(asked.inputs, own, strict=True):  # the same examples before each
        np.testing.assert_array_equal(ids, [*before, *alone])
    assert list(before[: len(start)]) == start
    assert model.config.eos_id not in before
    written = text(model, before)
    assert written.count("negative") == 1 and written.count("positive") == 1  # a label in turn
    assert "of train" in written and "of test" not in written
    again, _ = few_shot_inputs(tests, design, model, training, seed=1)
    np.testing.assert_array_equal(again.inputs[3], asked.inputs[3])
    other, _ = few_shot_inputs(tests, design, model, training, seed=2)
    assert len(other.inputs[3]) != len(asked.inputs[3]) or (other.inputs[3] != asked.inputs[3]).any()
    assert asked.target_texts == tests.target_texts


@pytest.mark.parametrize("name", ("gpt2", "llama"))
def test_a_causal_model_reads_plain_text(tiny_folders, sentiment_files, name):
    """No special tokens: each example is a line, and the model continues the last line."""
    model = roomy(prompt_jax.load_model(str(tiny_folders[name])))
    tests, training = (split(model, sentiment_files, part, 12) for part in ("test", "train"))
    rows = np.random.default_rng(0).permutation(len(training))[:2]
    for form, between, end in ((None, "", ""), ("{input}\nthat is {target},\n", "\nthat is", ",")):
        design = PromptDesign("the film {input} has", 2, balanced=False, demonstration=form, length=400)
        asked, printed = few_shot_inputs(tests, design, model, training)
        lines = [
            f"the film {training.input_texts[row]} has{between} {training.target_texts[row]}{end}\n" for row in rows
        ]
        assert printed == 2 and asked.continues_input
        for ids, own in zip(asked.inputs, tests.input_texts, strict=True):
            assert list(ids) == model.tokenizer.encode("".join([*lines, f"the film {own} has{between}"]))
        assert [list(ids) for ids in asked.targets] == [model.tokenizer.encode(f" {to}") for to in tests.target_texts]
    short = dataclasses.replace(tests.take([0, 1]), input_texts=["", "a"])
    (start, a), start_id = (
        (list(ids) for ids in few_shot_inputs(short, PromptDesign(), model)[0].inputs),
        model.config.start_id,
    )
    assert start == [start_id] * 2 and a == [start_id, *model.tokenizer.encode("a")]


@pytest.mark.parametrize("kind", ("llama2", "llama3", "qwen2", "gemma"))
def test_examples_have_the_ids_of_the_whole_prompt(tiny_folders, sentiment_files, tmp_path, kind):
    """Each is tokenized alone. A tokenizer like Llama 2's puts a space before a text, but not after a line break."""
    shutil.copytree(tiny_folders["llama"], tmp_path / "m")
    control = ["<s>", "</s>", "<unk>"]
    (tmp_path / "m" / "tokenizer.json").write_text(bytepairs.train_like(kind, SENTENCES, 60, control))
    config = AutoConfig.from_pretrained(str(tmp_path / "m"))
    tokenizer = load_tokenizer(tmp_path / "m", config, eos_id=1, pad_id=2, rows=1000, causal=True)
    model = dataclasses.replace(roomy(prompt_jax.load_model(str(tiny_folders["llama"]))), tokenizer=tokenizer)
    tests, training = (split(model, sentiment_files, part, 12) for part in ("test", "train"))
    rows = np.random.default_rng(0).permutation(len(training))[:3]
    lines = [f"the film {training.input_texts[row]} {training.target_texts[row]}\n" for row in rows]
    asked, _ = few_shot_inputs(tests, PromptDesign("the film {input}", 3, balanced=False, length=900), model, training)
    for ids, own in zip(asked.inputs, tests.input_texts, strict=True):
        assert list(ids) == [*tokenizer.start, *tokenizer.encode("".join([*lines, f"the film {own}"]))]


@pytest.mark.parametrize("shots", (0, 1))
def test_a_causal_models_answer_continues_the_text(tiny_folders, sentiment_files, shots):
    """Ranking, likelihood and generation equal those that `forward` gives for the plain text."""
    model = prompt_jax.load_model(str(tiny_folders["gpt2"]))
    tokenizer, target_length = model.tokenizer, 8
    (line_break,) = tokenizer.encode("\n")
    norm = model.params["final_norm"]  # so that some answers are lines that end, and some are not
    norm = norm | {"bias": norm["bias"] + LINE_BREAK * model.params["embedding"][line_break]}
    model = dataclasses.replace(model, params=model.params | {"final_norm": norm})
    tests, training = (split(model, sentiment_files, name).take([0, 1, 5, 6]) for name in ("test", "train"))
    asked, printed = few_shot_inputs(
        tests, PromptDesign("{input} is", shots), model, training, target_length=target_length
    )
    assert printed == shots

    def log_probabilities(ids):  # [T, V]
        inputs = np.pad(np.array([ids], np.int32), [(0, 0), (0, 64 - len(ids))])  # one length is compiled
        batch = {"inputs": inputs, "inputs_mask": np.arange(64)[None] < len(ids)}
        return np.asarray(jax.nn.log_softmax(prompt_jax.forward(model.params, model.config, batch)[0, : len(ids)]))

    def of(text, answer):
        begun, ids = len(tokenizer.encode(text)), tokenizer.encode(text + answer)
        return sum(log_probabilities(ids)[at - 1, ids[at]] for at in range(begun, len(ids)))

    def continued(text):
        ids = tokenizer.encode(text)
        begun, total = len(ids), 0.0
        while len(ids) < begun + target_length and line_break not in ids[begun:]:
            last = log_probabilities(ids)[-1]
            ids.append(int(last.argmax()))
            total += last.max()
        return tokenizer.decode(ids[begun:]).partition("\n")[0], total, line_break in ids[begun:]

    texts = [tokenizer.decode(ids) for ids in asked.inputs]
    assert all(text.count("is") == shots + 1 and text.endswith(" is") for text in texts)
    actual = evaluate(model, None, asked, EvaluationOptions(target_length, 3))
    labels = tests.format.labels
    expected = [[of(text, f" {label}") for label in labels] for text in texts]
    np.testing.assert_allclose(actual.label_scores, expected, rtol=1e-5)
    answers, totals, ended = zip(*map(continued, texts), strict=True)
    assert any(ended) and any(answers) and actual.predictions == list(answers)
    np.testing.assert_allclose(actual.log_probabilities, totals, rtol=1e-5, atol=1e-5)

    free = TaskFormat("{text}", metrics=("log_likelihood",), input_length=64, target_length=8)
    measured = dataclasses.replace(asked, format=free, metric_fns=tuple(metrics.metric_fns(free, ())))
    scores = evaluate(model, None, measured, EvaluationOptions(target_length, 3)).scores
    mine = [row[labels.index(target)] for row, target in zip(expected, tests.target_texts, strict=True)]
    tokens = sum(len(tokenizer.encode(f" {target}")) for target in tests.target_texts)
    assert scores == {"log_likelihood": pytest.approx(float(sum(mine)) / tokens, rel=1e-5)}
    with pytest.raises(ValueError, match="texts to be continued for all prompts, or for none"):
        evaluate_members(model, [None, None], [asked, tests], EvaluationOptions(target_length, 3))


def test_an_answer_is_not_given_away(model, sentiment_files):
    training = split(model, sentiment_files, "train")
    asked, printed = few_shot_inputs(training, PromptDesign(shots=4, length=1000), model, training)
    assert printed == 4 * (1 - 1 / len(training))  # four inputs are among the four that are shown
    for ids, own in zip(asked.inputs, training.input_texts, strict=True):
        assert text(model, ids).count(own) <= 1


def test_as_many_as_fit(model, sentiment_files):
    tests, training = (split(model, sentiment_files, name) for name in ("test", "train"))
    few, _ = few_shot_inputs(tests, PromptDesign(shots=3, length=1000), model, training)
    longest = max(map(len, few.inputs))
    fitting, printed = few_shot_inputs(tests, PromptDesign(shots=None, length=longest), model, training)
    for three, own in zip(few.inputs, fitting.inputs, strict=True):
        assert len(three) <= len(own) <= longest  # the first three are there, and there may be room for a fourth
    assert 3 <= printed < 5
    with pytest.warns(UserWarning, match="10 of 10 inputs have fewer than 3 examples before them.* 4 tokens"):
        none, printed = few_shot_inputs(tests, PromptDesign(shots=3, length=4), model, training)
    assert printed == 0 and all(len(ids) <= 4 for ids in none.inputs) and none.truncated["inputs"] == len(tests)


def test_examples_that_do_not_fit_are_left_out(model, sentiment_files):
    """With `shots=None` it is skipped. With a fixed number, later examples are dropped too, with a warning."""
    tests, training = (split(model, sentiment_files, name) for name in ("test", "train"))
    long = int(np.random.default_rng(0).permutation(len(training))[0])
    texts = [text + " and long" * 200 * (row == long) for row, text in enumerate(training.input_texts)]
    training = dataclasses.replace(training, input_texts=texts)
    _, printed = few_shot_inputs(tests, PromptDesign(shots=None, balanced=False, length=300), model, training)
    assert printed > 3
    with pytest.warns(UserWarning, match="10 of 10 inputs have fewer than 3 examples before them.* 300 tokens"):
        _, printed = few_shot_inputs(tests, PromptDesign(shots=3, balanced=False, length=300), model, training)
    assert printed == 0


def test_labels_take_turns_until_they_run_out(model, sentiment_files):
    tests, training = (split(model, sentiment_files, name) for name in ("test", "train"))
    one = training.target_texts.index("negative")
    training = training.take([row for row, to in enumerate(training.target_texts) if to == "positive"] + [one])
    asked, printed = few_shot_inputs(tests, PromptDesign(shots=4, length=1000), model, training)
    assert printed == 4
    for ids in asked.inputs:
        assert text(model, ids).count("positive") == 3 and text(model, ids).count("negative") == 1
    training = training.take(range(20))
    with pytest.warns(UserWarning, match="files has no example of 'negative'"):
        _, printed = few_shot_inputs(tests, PromptDesign(shots=4, length=1000), model, training)
    assert printed == 4


def test_examples_are_parted_by_a_space(tiny_folders, sentiment_files):
    """BART's byte pairs add no space of their own. The ids are those of one joined text."""
    bart = roomy(prompt_jax.load_model(str(tiny_folders["bart"])))
    tests, training = (split(bart, sentiment_files, name) for name in ("test", "train"))
    design = PromptDesign("the {input} is", 2, balanced=False, demonstration="{input} {target},", length=400)
    asked, _ = few_shot_inputs(tests, design, bart, training)
    rows = np.random.default_rng(0).permutation(len(training))[:2]
    printed = [f"the {training.input_texts[row]} is {training.target_texts[row]}," for row in rows]
    for ids, own in zip(asked.inputs, tests.input_texts, strict=True):
        assert list(ids) == bart.tokenizer.input_ids(" ".join([*printed, f"the {own} is"]))


def test_a_long_input_is_cut_and_the_words_after_it_are_kept(model, sentiment_files):
    tests = split(model, sentiment_files, "test")
    long = dataclasses.replace(tests, input_texts=[f"{own} and long and old" * 3 for own in tests.input_texts])
    for design in (PromptDesign("the {input} is", length=30), PromptDesign("{input}", length=20)):
        asked, _ = few_shot_inputs(long, design, model)
        assert asked.truncated["inputs"] == len(tests)
        before, after = (part.strip() for part in design.text.split("{input}"))
        for ids, own in zip(asked.inputs, long.input_texts, strict=True):
            assert len(ids) == design.length and (ids[-1] == model.config.eos_id) != causal(model)
            whole = read(model, design.text.replace("{input}", own))
            rest = len(read(model, f"a {after}".strip())) - len(read(model, "a")) + (not causal(model))
            assert list(ids) == [*whole[: design.length - rest], *whole[len(whole) - rest :]]
            assert text(model, ids).startswith(before) and text(model, ids).endswith(after)
    uncut, _ = few_shot_inputs(tests, PromptDesign("the {input} is", length=200), model)
    for ids, own in zip(uncut.inputs, tests.input_texts, strict=True):
        assert list(ids) == read(model, f"the {own} is")
    message = r"the text 'the \{input\} is' has \d+ tokens.*only 2 are allowed in total \(--shot-length"
    with pytest.raises(DesignError, match=message):
        few_shot_inputs(tests, PromptDesign("the {input} is", length=2), model)


@pytest.mark.parametrize(("name", "room"), (("gpt2", 64 - 8 + 1), ("bart", 64), ("t5", 512)))
def test_inputs_use_all_positions_of_the_model(tiny_folders, sentiment_files, name, room):
    """GPT-2's answer takes positions too. The last input token predicts its first token."""
    model = prompt_jax.load_model(str(tiny_folders[name]))
    tests, training = (split(model, sentiment_files, name) for name in ("test", "train"))
    asked, printed = few_shot_inputs(tests, PromptDesign(shots=None), model, training, target_length=8)
    same, _ = few_shot_inputs(tests, PromptDesign(shots=None, length=room), model, training, target_length=8)
    assert printed > 0
    for one, other in zip(asked.inputs, same.inputs, strict=True):
        np.testing.assert_array_equal(one, other)
    if name != "t5":
        evaluate(model, None, asked, EvaluationOptions(8, 10))
        message = rf"at most {room} tokens, not {room + 1} \(--shot-length\): .* has 64 positions"
        with pytest.raises(DesignError, match=message):
            few_shot_inputs(tests, PromptDesign(length=room + 1), model, target_length=8)


def test_without_examples_the_inputs_are_the_tasks(model, sentiment_files):
    tests = split(model, sentiment_files, "test")
    asked, printed = few_shot_inputs(tests, PromptDesign(), model)
    assert printed == 0
    for ids, own, whole in zip(asked.inputs, tests.inputs, tests.input_texts, strict=True):
        np.testing.assert_array_equal(ids, model.tokenizer.encode(whole) if causal(model) else own)


def test_invalid_designs(model, sentiment_files):
    tests, training = (split(model, sentiment_files, name) for name in ("test", "train"))
    with pytest.raises(DesignError, match="has 40 labeled examples; expected at least 41"):
        few_shot_inputs(tests, PromptDesign(shots=41), model, training)
    with pytest.raises(DesignError, match="drawn from a training split, and there is none"):
        few_shot_inputs(tests, PromptDesign(shots=1), model)
    for design, message in (
        (lambda: PromptDesign("no place"), r"should have \{input\}, each once"),
        (
            lambda: PromptDesign("{input} {foo}"),
            r"'\{input\} \{foo\}' should have \{input\}, each once, and no other braces",
        ),
        (lambda: PromptDesign("{input} }"), "and no other braces"),
        (lambda: PromptDesign(demonstration="{input}"), r"should have \{input\} and \{target\}, each once"),
        (lambda: PromptDesign(shots=-1), "there cannot be -1 examples"),
    ):
        with pytest.raises(DesignError, match=message):
            design()
    if causal(model):
        with pytest.raises(DesignError, match=r"reads \{input\} before \{target\}; the demonstration is '\{target\}: "):
            few_shot_inputs(tests, PromptDesign(demonstration="{target}: {input}"), model)


def test_from_the_command_line(tiny_folder, sentiment_files, tmp_path, capsys):
    asked = ["evaluate", "--model", str(tiny_folder), "--data", str(sentiment_files["test"]), "--template", "{text}"]
    asked += ["--labels", "negative", "positive"]
    assert main([*asked, "--out", str(tmp_path / "zero")]) == 0
    assert "alone: test.jsonl, test, 10 examples, 0 examples shown" in capsys.readouterr().out
    assert json.loads((tmp_path / "zero" / "scores.json").read_text())["ways"][0]["scores"].keys() >= {"accuracy"}
    shots = ["--shots", "2", "--shots-from", str(sentiment_files["train"]), "--shot-seeds", "0", "1"]
    assert main([*asked, *shots, "--design", "It says: {input}", "--out", str(tmp_path / "two")]) == 0
    printed = capsys.readouterr().out
    assert "2 examples shown, seed 1" in printed and "average" in printed
    lines = (tmp_path / "two" / "predictions.jsonl").read_text().splitlines()
    assert len(lines) == 10 and len(json.loads(lines[0])["members"]) == 2
    assert main([*asked, "--shot-length", "6"]) == 0
    assert "10 examples, 10 inputs truncated" in capsys.readouterr().out
    assert main([*asked, "--shots", "fit", "--shots-from", str(sentiment_files["train"]), "--shot-length", "64"]) == 0
    capsys.readouterr()
    for argv, message in (
        (["evaluate"], "name at least one prompt file"),
        (["evaluate", "--model", str(tiny_folder)], "give --task NAME or --data FILE"),
        ([*asked, "--shots", "1"], "--shots with --data needs --shots-from, a file"),
        ([*asked, "--shots-from", "f.jsonl"], "--shots-from f.jsonl needs --shots"),
        ([*asked, *shots[:-1], "0", "--shot-seeds", "-1"], "must be distinct numbers of at least 0, not -1"),
        ([*asked, *shots, "--shot-seeds", "3", "3"], "must be distinct numbers of at least 0, not 3 3"),
        ([*asked, "--early-stop"], "are for prompts"),
        ([*asked, "--task", "t"], "both choose the examples; give one of them"),
        (["evaluate", "p.npz", "--shots", "1"], "--design and --shots are for the base alone"),
        ([*asked, "--design", "no place"], "should have {input}, each once"),
        ([*asked, *shots, "--shot-text", "{input}"], "should have {input} and {target}, each once"),
    ):
        assert main(argv) == 1
        assert message in capsys.readouterr().err


def test_shots_of_a_task_without_a_training_split(tiny_folder, sentiment_files, tmp_path, capsys):
    (tmp_path / "own.py").write_text(
        "from prompt_jax import add_task, text_source\nfrom prompt_jax.task_format import TaskFormat\n"
        "rows = lambda split: [('a good film', 'positive'), ('a bad film', 'negative')]\n"
        "how = TaskFormat('{text}', ('negative', 'positive'))\n"
        "add_task('only_a_test', text_source(rows, ('test',), ('text', 'label')), how)\n"
    )
    asked = ["evaluate", "--model", str(tiny_folder), "--task", "only_a_test", "--tasks", str(tmp_path / "own.py")]
    assert main([*asked, "--shots", "2"]) == 1
    assert "only_a_test has no split 'train' for --shots, but test; give a file with --shots-from" in shown(capsys)
    shots = ["--shots", "2", "--shots-from", str(sentiment_files["train"])]
    assert main([*asked, *shots, "--shot-text", "{input} is {target},"]) == 0
    assert "only_a_test, test, 2 examples, 2 examples shown, seed 0" in shown(capsys)
    few = ["--shot-length", "20", "--shot-seeds", "0", "1"]
    assert main([*asked, "--shots", "fit", *shots[2:], *few]) == 1
    assert "no in-context example fits, so all --shot-seeds give the same inputs" in shown(capsys)


def shown(capsys) -> str:
    out, err = capsys.readouterr()
    return out + err
