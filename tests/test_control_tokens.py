"""Control tokens: tokens in templates and labels, plain text in data, on every path from a row to token ids."""

import dataclasses
import importlib.util
import json
import shutil

import numpy as np
import pytest

import prompt_jax
from prompt_jax.cli import main
from prompt_jax.control_tokens import CLOSE, OPEN, keep_marks, mark, remove_marks
from prompt_jax.data.files import file_task
from prompt_jax.data.load import LoadOptions, load_examples
from prompt_jax.data.registry import add_task
from prompt_jax.data.text_tasks import text_source
from prompt_jax.inference.answers import label_ids
from prompt_jax.inference.few_shot import PromptDesign, few_shot_inputs
from prompt_jax.prompt_files.io import ModelId
from prompt_jax.task_format import TaskFormat

USER, BOT = "<|user|>", "<|assistant|>"
TEMPLATE = f"{USER}{{text}}{BOT}"
TEXTS = ["a good film", f"a {USER} film", f"{OPEN}{USER}{CLOSE} dull"]


def test_marks():
    assert remove_marks(f"a {mark('<s>')} b") == "a <s> b"
    kept = frozenset(["<s>"])
    assert keep_marks(kept, f"a {mark('<s>')} {mark('<t>')} <s>") == f"a {mark('<s>')} <t> <s>"
    assert keep_marks(kept, f"{OPEN}<s>{OPEN}<s>{CLOSE}{CLOSE}") == f"<s>{mark('<s>')}"
    assert keep_marks(kept, f"<s>{CLOSE}{OPEN}") == "<s>"


def test_a_format_marks_its_template_but_not_its_columns():
    own = TaskFormat("{s}s{text}").marked(lambda text: text.replace("s", mark("s")))
    assert own.template == f"{{s}}{mark('s')}{{text}}"
    assert own.render({"s": "s", "text": mark("s")}) == f"s{mark('s')}s"


@pytest.fixture(scope="module")
def folder(tiny_folders, tmp_path_factory):
    """GPT-2 with two additional control tokens."""
    from transformers import AutoTokenizer

    copy = tmp_path_factory.mktemp("chat") / "model"
    shutil.copytree(tiny_folders["gpt2"], copy)
    tokenizer = AutoTokenizer.from_pretrained(str(copy))
    tokenizer.add_tokens([USER, BOT], special_tokens=True)
    tokenizer.save_pretrained(str(copy))
    return copy


@pytest.fixture(scope="module")
def model(folder):
    loaded = prompt_jax.load_model(str(folder))
    return dataclasses.replace(loaded, config=dataclasses.replace(loaded.config, positions=2000))


def ids_of(model, token: str) -> int:
    return model.tokenizer.transformers.convert_tokens_to_ids(token)


def assert_read(model, inputs) -> None:
    """Check that inputs have the template's two tokens around the data as text."""
    for ids, text in zip(inputs, TEXTS, strict=True):
        ids = np.asarray(ids).tolist()
        assert ids.count(ids_of(model, USER)) == ids.count(ids_of(model, BOT)) == 1
        inside = ids[ids.index(ids_of(model, USER)) + 1 : ids.index(ids_of(model, BOT))]
        assert inside == model.tokenizer.encode(remove_marks(text))


def written(path):
    path.write_text("".join(json.dumps({"text": text, "label": "good"}) + "\n" for text in TEXTS))
    return path


FORMAT = TaskFormat(TEMPLATE, labels=("good", f"{BOT}bad"), input_length=64, target_length=16)


def load(task, model):
    return load_examples(task, model.tokenizer, "test", LoadOptions(64, 16))


def test_from_a_file(model, tmp_path):
    examples = load(file_task("files", {"test": written(tmp_path / "x.jsonl")}, FORMAT), model)
    assert_read(model, examples.inputs)


def test_from_a_seqio_task(model):
    pytest.importorskip("seqio")
    source = text_source(lambda split: [(text, "good") for text in TEXTS], ["test"], ("text", "label"))
    examples = load(add_task("t_control_tokens", source, FORMAT), model)
    assert_read(model, examples.inputs)
    assert [remove_marks(text) for text in examples.input_texts] == [
        f"{USER}{remove_marks(text)}{BOT}" for text in TEXTS
    ]


PLAIN = TaskFormat("{text}", metrics=("exact_match",), input_length=64, target_length=64)


def test_data_without_a_template_of_control_tokens(model, tmp_path):
    """Marks in inputs and free-text targets are removed, whatever the template."""
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps({"text": text, "label": text}) + "\n" for text in TEXTS))
    tasks = [file_task("files", {"test": path}, PLAIN)]
    if importlib.util.find_spec("seqio"):
        source = text_source(lambda split: [(text, text) for text in TEXTS], ["test"], ("text", "label"))
        tasks.append(add_task("t_plain_control_tokens", source, PLAIN))
    for task in tasks:
        examples = load_examples(task, model.tokenizer, "test", LoadOptions(64, 64))
        for text, inputs, targets in zip(TEXTS, examples.inputs, examples.targets, strict=True):
            assert inputs.tolist() == model.tokenizer.input_ids(remove_marks(text))
            assert targets.tolist() == model.tokenizer.target_ids(remove_marks(text))


def test_the_hold_out_is_the_same_for_every_tokenizer(model, tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps({"text": f"a film {i}", "label": "good"}) + "\n" for i in range(40)))
    task = file_task("files", {"train": path}, FORMAT, validation_share=0.5)
    examples = load_examples(task, model.tokenizer, "validation", LoadOptions(64, 16))
    held_out = [inputs for inputs, _ in task.examples("validation")]  # the template without marks
    assert [remove_marks(text) for text in examples.input_texts] == held_out and 0 < len(held_out) < 40


def test_text_prepended_to_inputs(model, tmp_path):
    task = file_task("files", {"test": written(tmp_path / "x.jsonl")}, dataclasses.replace(FORMAT, template="{text}"))
    examples = load_examples(task, model.tokenizer, "test", LoadOptions(64, 16, prepend=f"{BOT} "))
    assert [ids.tolist().count(ids_of(model, BOT)) for ids in examples.inputs] == [1, 1, 1]


def test_labels(model, tmp_path):
    """A label may begin with a control token, such as T5's sentinel."""
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"text": "a film", "label": f"{BOT}bad"}))
    examples = load(file_task("files", {"test": path}, FORMAT), model)
    assert examples.target_texts == [f"{BOT}bad"] and examples.targets[0].tolist().count(ids_of(model, BOT)) == 1
    assert label_ids(model, f"{BOT}bad") == examples.targets[0].tolist()


def test_a_design(model, tmp_path):
    task = file_task("files", {"test": written(tmp_path / "x.jsonl")}, dataclasses.replace(FORMAT, template="{text}"))
    asked, _ = few_shot_inputs(load(task, model), PromptDesign(f"{USER} {{input}}{BOT}"), model)
    for ids, text in zip(asked.inputs, TEXTS, strict=True):
        assert ids.tolist().count(ids_of(model, USER)) == ids.tolist().count(ids_of(model, BOT)) == 1
        assert len(ids) > len(model.tokenizer.encode(remove_marks(text)))


@pytest.fixture
def prompt_file(model, tmp_path):
    tokens = np.random.default_rng(0).normal(size=(3, model.config.d_model)).astype(np.float32)
    metadata = prompt_jax.PromptMetadata(
        base=ModelId(model.name, None, model.fingerprint), method="soft_prompt", task="files", format=FORMAT
    )
    prompt_jax.save_prompt(tmp_path / "p.npz", prompt_jax.Prompt(prompt_jax.VirtualTokens(tokens)), metadata)
    return tmp_path / "p.npz"


@pytest.mark.parametrize("several", (False, True))
def test_predict(model, folder, prompt_file, tmp_path, monkeypatch, capsys, several):
    """With one prompt, and with prompts that the inputs name."""
    from prompt_jax.ensembles import streams

    seen, tokenize = [], streams.tokenize
    monkeypatch.setattr(streams, "tokenize", lambda *a: (r := tokenize(*a), seen.extend(r[0]))[0])
    rows = [{"text": text, "prompt": "p"} for text in TEXTS]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--prompts", f"p={prompt_file}"] if several else [str(prompt_file)]
    assert main(["predict", *words, "--input", str(tmp_path / "in.jsonl"), "--model", str(folder), "--json"]) == 0
    printed = [json.loads(line)["input"] for line in capsys.readouterr().out.splitlines()]
    assert printed == [f"{USER}{remove_marks(text)}{BOT}" for text in TEXTS]
    assert_read(model, seen)
