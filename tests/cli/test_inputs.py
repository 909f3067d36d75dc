"""A text gets the same ids and the same answer from every kind of input."""

import ast
import csv
import gzip
import io
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import prompt_jax
from fuzzing import FUZZ
from prompt_jax import Prompt, PromptMetadata, VirtualTokens, control_tokens, save_prompt
from prompt_jax.checkpoints.tokenizer import Tokenizer
from prompt_jax.cli.inputs import input_texts, read_inputs
from prompt_jax.data.files import file_task
from prompt_jax.data.load import LoadOptions, load_examples
from prompt_jax.data.registry import add_task
from prompt_jax.errors import DataError
from prompt_jax.inference.answers import tokenize
from prompt_jax.prompt_files.io import ModelId
from prompt_jax.report.terminal import escape_control_characters
from prompt_jax.task_format import TaskFormat

FORMAT = TaskFormat("{text}", input_length=4096)
FAMILIES = ("gpt2", "bart", "t5")


class Models(dict):
    """Models of each family, wrapped because hypothesis would print all weights."""

    def __repr__(self) -> str:
        return "models"


@pytest.fixture(scope="module")
def models(tiny_folders):
    return Models({family: prompt_jax.load_model(str(folder)) for family, folder in tiny_folders.items()})


def table(separator: str, **options):
    def written(texts):
        out = io.StringIO(newline="")
        csv.writer(out, delimiter=separator, **options).writerows([("", "text"), *enumerate(texts)])
        return out.getvalue()

    return written


def jsonl(**options):
    return lambda texts: "".join(json.dumps({"text": text, "other": None}, **options) + "\n" for text in texts)


PLAIN_TSV = ["text", 'not "quoted']  # a header, and a row that no program writes in a file with quoted cells


def lines(end: str, before: Sequence[str] = ()):
    return lambda texts: "".join(text + end for text in [*before, *texts])


# From a description: the name of a file, and how texts are written to it.
ANY_TEXT = {
    "jsonl": ("x.jsonl", jsonl()),
    "jsonl with every character": ("x.jsonl.gz", jsonl(ensure_ascii=False)),
    "csv": ("x.csv", table(",")),
    "csv, all quoted": ("x.csv.gz", table(",", quoting=csv.QUOTE_ALL)),
    "tsv, quoted": ("x.tsv", table("\t")),
    "tsv, all quoted but numbers": ("x.tsv", table("\t", quoting=csv.QUOTE_NONNUMERIC)),
}
ONE_LINE = {
    "tsv, not quoted": ("plain.tsv", lines("\n", PLAIN_TSV)),
    "txt": ("x.txt", lines("\n")),
    "txt, CRLF": ("x.txt.gz", lines("\r\n")),
    "txt, CR": ("x", lines("\r")),
}
WAYS = ANY_TEXT | ONE_LINE
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16")


def write(folder: Path, name: str, content: str, encoding: str) -> Path:
    raw = content.encode(encoding)
    (folder / name).write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    return folder / name


def read_texts(path: Path) -> list[str]:
    """Return the texts that `predict` reads from a file, without the first row of PLAIN_TSV."""
    return list(input_texts(read_inputs((), path), FORMAT))[path.name == "plain.tsv" :]


SNIPPETS = ('"', '""', "\t", ",", ";", " ", "  ", "\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\0", "\ufeff")
WORDS = ("film", "Film", "é", "e\u0301", "ﬁ", "🙂", "</s>", "<|endoftext|>", "{text}", "\\n", "\n", "\r\n", "\r")
text = st.one_of(
    # Except for the marks of control tokens, which are removed from data.
    st.text(st.characters(codec="utf-8", exclude_characters=control_tokens.OPEN + control_tokens.CLOSE), max_size=12),
    st.lists(st.sampled_from(SNIPPETS + WORDS), max_size=8).map("".join),
)


@pytest.mark.filterwarnings("ignore:.* looks quoted")
@pytest.mark.parametrize("way", WAYS)
@FUZZ
@given(texts=st.lists(text, min_size=1, max_size=4), encoding=st.sampled_from(ENCODINGS))
def test_any_text_has_the_same_ids_from_every_file(models, tmp_path, way, texts, encoding):
    """The reference is the tokenizer applied to the text."""
    name, written = WAYS[way]
    if way in ONE_LINE:
        texts = [re.sub("[\r\n\t]" if name == "plain.tsv" else "[\r\n]", "", text) for text in texts]
        texts[0] = texts[0].lstrip("\ufeff\0")  # would be a byte order mark, or turn that of UTF-16 into that of UTF-32
        texts = [text or "film" for text in texts] if name == "plain.tsv" else texts  # where an empty line is not a row
    path = write(tmp_path, name, written(texts), encoding)
    actual = read_texts(path)
    assert actual == texts
    task = None if "txt" in way else file_task("t", {"test": path}, FORMAT, target=None)
    for model in models.values():
        expected = [model.tokenizer.input_ids(text) for text in texts]
        assert [ids.tolist() for ids in tokenize(model, actual, 4096)[0]] == expected
        if task is not None:
            loaded = load_examples(task, model.tokenizer, "test", LoadOptions(4096, 4))
            assert [ids.tolist() for ids in loaded.inputs][name == "plain.tsv" :] == expected


@FUZZ
@given(texts=st.lists(text.filter(lambda text: not set(text) & {"\r", "\n"}), min_size=1, max_size=4))
def test_any_text_is_the_same_from_arguments_and_standard_input(texts):
    assert list(input_texts(read_inputs(texts, None), FORMAT)) == texts
    texts[0] = texts[0].lstrip("\0")
    for encoding in ("utf-8-sig", "utf-16"):
        raw = "".join(f"{text}\n" for text in texts).encode(encoding)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw), "latin-1"))
            assert list(input_texts(read_inputs((), None), FORMAT)) == texts


@pytest.mark.parametrize("family", FAMILIES)
def test_a_seqio_task_has_the_same_ids(models, tmp_path, family):
    """One over the same file, and one whose source is a function."""
    from prompt_jax.data.seqio_tasks import as_seqio
    from prompt_jax.data.text_tasks import text_source

    texts = [
        "a good film",
        " two  spaces ",
        "tab\tand\nline\r\n",
        "\u2028 \x85 \ufeff",
        "é e\u0301 ﬁ 🙂",
        "nul \0",
        '"so"',
    ]
    model = models[family]
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder), "x.jsonl", jsonl()(texts), "utf-8")
        over_file = as_seqio(file_task("t", {"test": path}, FORMAT, target=None))
        source = text_source(lambda split: ((text, "a") for text in texts), ("test",), ("text", "label"))
        registered = add_task(f"same_ids_{family}", source, FORMAT)
        for task in (over_file, registered):
            actual = load_examples(task, model.tokenizer, "test", LoadOptions(64, 4))
            assert [ids.tolist() for ids in actual.inputs] == [model.tokenizer.input_ids(text) for text in texts]


@pytest.fixture
def prompts(models, tmp_path):
    """Return a prompt for each family, which answers in four tokens."""
    result = {}
    for family, model in models.items():
        tokens = np.random.default_rng(0).normal(size=(3, model.config.d_model)).astype(np.float32)
        metadata = PromptMetadata(
            base=ModelId(model.name, model.revision, model.fingerprint), format=TaskFormat("{text}", target_length=4)
        )
        result[family] = tmp_path / f"{family}.npz"
        save_prompt(result[family], Prompt(VirtualTokens(tokens)), metadata)
    return result


@pytest.mark.parametrize("family", FAMILIES)
def test_predict_gives_the_same_answers_from_everywhere(prompts, tiny_folders, tmp_path, run, family, monkeypatch):
    texts = ['a "good" film', " a bad film,  dull", "great\u2028fun\x85", "", "naïve\tand long", "a good film"]
    argv = ("predict", "--model", tiny_folders[family], "--json", prompts[family])
    status, expected, err = run(*argv, "--", *texts)
    assert status == 0, err
    assert [json.loads(line)["input"] for line in expected.splitlines()] == texts
    for way, (name, written) in WAYS.items():
        if name == "plain.tsv":
            continue  # the format cannot hold all of them
        for encoding in ENCODINGS:
            path = write(tmp_path, name, written(texts), encoding)
            assert run(*argv, "--input", path)[:2] == (0, expected), (way, encoding)
    raw = "".join(f"{text}\n" for text in texts).encode()
    for stdin in (io.TextIOWrapper(io.BytesIO(raw), "ascii"), io.StringIO(raw.decode(), newline="")):
        monkeypatch.setattr("sys.stdin", stdin)
        assert run(*argv)[1] == expected


def test_invalid_inputs_are_errors(prompts, tiny_folders, tmp_path, run, monkeypatch):
    argv = ("predict", "--model", tiny_folders["gpt2"], prompts["gpt2"])

    def message(*more, stdin: bytes = b""):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin), "utf-8"))
        status, out, err = run(*argv, *more)
        assert status == 1 and not out and "Traceback" not in err
        return err

    for name in ("x.txt", "x.jsonl", "x.csv", "x.tsv", "x.txt.gz"):
        path = write(tmp_path, name, "", "utf-8")
        assert "expected a text on each line" in message("--input", path) or "no rows; expected" in message(
            "--input", path
        )
    assert "standard input: no input; expected a text on each line" in message()
    assert "standard input:2: not UTF-8 (byte 0xef at character 3 of the line)" in message(stdin=b"a\nna\xefve film\n")
    path = write(tmp_path, "x.txt", "a\nnaïve film\n", "latin-1")
    assert f"{path}:2: not UTF-8 (byte 0xef at character 3 of the line); expected UTF-8" in message("--input", path)
    assert "there are inputs as arguments and in --input" in message("a text", "--input", path)
    assert "input 2: the argument 'na\\udcefve' is not text" in message("a", "na\udcefve")
    assert "none.txt: cannot be read: No such file" in message("--input", tmp_path / "none.txt")
    assert "expected a file named .jsonl" in message("--input", write(tmp_path, "x.json", '[{"text": "a"}]', "utf-8"))
    assert "expected a file named .jsonl" in message("--input", write(tmp_path, "x.JSON.gz", "{}", "utf-8"))
    monkeypatch.setattr("sys.stdin", None)
    assert "standard input: no input" in run(*argv)[2]


def test_bytes_that_are_no_utf8_end_a_real_process_with_a_message(prompts, tiny_folders):
    """In the C locale, Python would decode them differently."""
    argv = [sys.executable, "-m", "prompt_jax.cli", "predict", "--model", tiny_folders["gpt2"], prompts["gpt2"]]
    for more, stdin in (([], b"na\xefve\n"), ([b"na\xefve"], b"")):
        done = subprocess.run(
            [*argv, *more], input=stdin, capture_output=True, env={**os.environ, "LC_ALL": "C"}, check=False
        )
        assert done.returncode == 1 and b"Traceback" not in done.stderr and b"UTF-8" in done.stderr, done.stderr


def test_inputs_are_read_lazily(models):
    """Rows are read lazily: an invalid row does not keep earlier rows from being answered."""
    inputs = read_inputs(("a", "na\udcefve"), None)
    assert next(inputs) == ("input 1", "a")
    with pytest.raises(prompt_jax.errors.UserError):
        next(inputs)
    with pytest.raises(DataError):
        list(read_inputs((), Path(os.devnull)))


# ---- what a terminal is shown

EVIL = "\x1b]0;pwn\x07 a\r\nb\x9b2J \u202e c\x7f 🙂 é"


@pytest.fixture
def evil_answers(monkeypatch):
    """A prompt makes the model write escape sequences for terminals."""
    monkeypatch.setattr(Tokenizer, "decode", lambda self, ids: EVIL)


def test_a_file_or_pipe_gets_answers_unchanged_on_one_line(evil_answers, prompts, tiny_folders, run):
    argv = ("predict", prompts["gpt2"], "a", "b", "--model", tiny_folders["gpt2"])
    assert run(*argv)[1] == 2 * (EVIL.replace("\r\n", " ") + "\n")
    out = run(*argv, "--json")[1]
    assert out.isascii() and out.replace("\n", "").isprintable()
    assert [json.loads(line)["prediction"] for line in out.splitlines()] == [EVIL] * 2


def test_a_terminal_gets_escapes(evil_answers, prompts, tiny_folders, monkeypatch):
    """With a pseudo-terminal."""
    main, other = pty.openpty()
    with os.fdopen(other, "w") as terminal, os.fdopen(main, "rb", buffering=0) as screen:
        monkeypatch.setattr(sys, "stdout", terminal)
        argv = ("predict", prompts["gpt2"], "a", "--model", tiny_folders["gpt2"])
        assert prompt_jax.cli.main([str(word) for word in argv]) == 0
        terminal.flush()
        printed = screen.read(4096).decode()
    assert printed == r"\x1b]0;pwn\x07 a b\x9b2J \u202e c\x7f 🙂 é" + "\r\n"


def test_characters_that_are_escaped_for_terminals():
    """Control and format characters and line separators are escaped; spaces and joiners (emoji, Persian) are not."""
    evil = "\x1b[2J\r\t\x00\x9b1A\x7f\u202e\u2066\u2028\u2029\ufeff\u00ad\ud800\U000e0001"
    assert escape_control_characters(evil) == evil.encode("unicode_escape").decode()
    text = "a\nb\u00a0\u3000é 👨‍👩‍👧 می‌خواهم ▁<extra_id_0>"
    assert escape_control_characters(text) == text


def test_no_verb_prints_unescaped_text():
    """`print_escaped` and `print_note` escape; `predict` does on a terminal."""
    for path in Path(prompt_jax.cli.__file__).parent.glob("*.py"):
        calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        prints = sum(isinstance(called, ast.Name) and called.id == "print" for called in calls)
        assert prints == {"common.py": 2, "predict.py": 1}.get(path.name, 0), path
