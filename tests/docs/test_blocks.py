"""Every command and Python block in README.md, CONTRIBUTING.md and docs/ works, or says why it is not tested."""

import dataclasses
import importlib.util
import io
import re
import tomllib
import typing
from pathlib import Path

import numpy as np
import pytest
import tyro

import prompt_jax
from doc_blocks import ALL, LANGUAGES, PAGES, ROOT, Block, blocks, commands
from prompt_jax import cli
from prompt_jax.checkpoints import demo
from prompt_jax.experiment import Experiment, load_experiment
from prompt_jax.methods import METHODS
from prompt_jax.prompt_files.io import ModelId, save_ensemble, save_prompt

# Programs of others: a block may call them, but not with wrong options of ours.
FOREIGN = {"gcloud", "kubectl", "hf", "ssh-add", "tensorboard", "git", "pytest", "ruff", "mypy"}


def blocks_in(*languages: str) -> list[Block]:
    return [block for block in ALL if block.language in languages and block.note is None]


def test_pages_have_blocks_and_only_known_languages():
    assert {block.language for block in ALL} <= {*LANGUAGES, "text", "mermaid"}
    assert len(blocks_in("bash", "console")) > 25 and len(blocks_in("python")) >= 4
    assert sum("```" in line for path in PAGES for line in path.read_text().splitlines()) == 2 * len(ALL)


# --------------------------------------------------------------------------------------------------------------
# Commands


@pytest.mark.parametrize("block", blocks_in("bash", "console"), ids=str)
def test_commands_have_the_right_options(block, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert commands(block), "a block without a command is `text`"
    for command in commands(block):
        try:
            check_command(command)
        except SystemExit as error:
            raise AssertionError(f"wrong arguments: {' '.join(command)}") from error


def check_command(words: list[str]) -> None:
    """Raise an error, or exit, if a command of this project has wrong arguments."""
    match words:
        case ["prompt-jax", verb, *rest]:
            cli.parse(verb, rest)
        case [".venv/bin/python" | "python", "-m", module, *rest]:
            if module != "pytest":
                check_tool(module, rest)
        case ["python", file, *_] | [("tools/gpu.sh" as file), *_]:
            assert (ROOT / file).exists(), file
        case ["make", *targets]:
            assert all(f"\n{target}:" in (ROOT / "Makefile").read_text() for target in targets)
        case ["pip", "install", what]:
            extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
            assert what == "." or what.removeprefix(".[").removesuffix("]") in extras, what
        case [program, *_]:
            assert program in FOREIGN or Path(program).name in FOREIGN, f"unknown program {program}"


def check_tool(module: str, words: list[str]) -> None:
    match module:
        case "tools.launcher":
            from tools.launcher.__main__ import _parser

            options = _parser().parse_args(words)
            if "config" in options:
                cli.parse("train", [options.config, *options.overrides])
        case "tools.reproduction":
            from tools.reproduction.__main__ import PARAMETERS, TABLES, Reproduce

            end = words.index("--") if "--" in words else len(words)
            tables = tyro.cli(Reproduce, args=words[:end]).tables
            assert set(tables) <= {*TABLES, PARAMETERS, "all"}
            cli.parse("train", ["configs/demo.py", *words[end + 1 :]])
        case "tools.planner":
            from tools.planner.__main__ import Plan

            if words != ["--all"]:
                default = Plan(Path(words[0]), load_experiment(Path(words[0])), topology=tyro.MISSING)
                tyro.cli(Plan, default=default, args=words[1:])
        case "tools.planner.parameters":
            from tools.planner.parameters import Parameters

            tyro.cli(Parameters, args=words)
        case _:
            raise AssertionError(f"unknown module {module}")


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_options_in_the_text_exist(path):
    text = path.read_text()
    for block in blocks(path):
        text = text.replace(block.text, "")
    named = set(re.findall(r"`(?:[^`\n]* )?(--[a-z][\w.-]*)", text))
    assert named <= known_options()


def known_options() -> set[str]:
    """Return the options of `prompt-jax` and of the tools."""
    actual = set(re.findall(r"\"(--[a-z][\w-]*)\"", "".join(p.read_text() for p in (ROOT / "tools").rglob("*.py"))))
    for kind, _ in cli.VERBS.values():
        actual |= options_of(kind)
    from tools.planner.__main__ import Plan
    from tools.reproduction.__main__ import Reproduce

    actual |= options_of(Plan) | options_of(Reproduce) | options_of(Experiment)
    for method in METHODS.values():
        actual |= options_of(method, "prompt.")
    named_otherwise = {"--prompt.method", "--as", "--help", "--logdir", "--no-deps"}
    return {option.replace("_", "-") for option in actual} | named_otherwise


def options_of(kind: type, prefix: str = "") -> set[str]:
    """Return the options of a dataclass: of its fields, and of theirs with and without the section's name."""
    result = set()
    for name, hint in typing.get_type_hints(kind).items():
        result.add(f"--{prefix}{name}")
        if dataclasses.is_dataclass(hint):
            result |= options_of(hint, f"{prefix}{name}.") | options_of(hint, prefix)
    return result


# --------------------------------------------------------------------------------------------------------------
# Python


@pytest.fixture
def demo_run(tiny, tmp_path, monkeypatch):
    """Return a working directory with the files of a demo run, and a tiny model in place of the demo's."""
    width = tiny.params["embedding"].shape[1]
    rng = np.random.default_rng(0)

    def prompt(length: int):
        return prompt_jax.Prompt(prompt_jax.VirtualTokens(rng.normal(size=(length, width)).astype(np.float32)))

    (tmp_path / "runs" / "demo").mkdir(parents=True)
    metadata = prompt_jax.PromptMetadata(base=ModelId("demo", None, tiny.fingerprint))
    for name in ("best", "last"):
        members = [(prompt(20), metadata) for _ in range(3)]
        save_ensemble(tmp_path / "runs" / "demo" / f"{name}.npz", *zip(*members, strict=True))
    for name, length in (("member", 20), ("movies", 20), ("tweets", 10)):
        save_prompt(tmp_path / f"{name}.npz", prompt(length), metadata)
    monkeypatch.chdir(tmp_path)

    def load(name: str, *options, **named):
        assert name == "demo"
        return tiny

    monkeypatch.setattr(prompt_jax, "load_model", load)
    monkeypatch.setattr("prompt_jax.checkpoints.load.load_model", load)


# Commands that need a run's prompts and its base, but no training and no task.
RUNNABLE = {"export": 0, "import": 0, "average": 0, "similarity": 0, "predict": 0, "diff": 1}


def test_commands_on_a_run_succeed(demo_run, capsys, monkeypatch):
    line = '{"prompt": "movies", "text": "a gripping film"}'  # of the one command that reads standard input
    run = 0
    for block in blocks_in("bash", "console"):
        for command in commands(block):
            if command[0] != "prompt-jax" or command[1] not in RUNNABLE:
                continue
            if any("runs/" in word and not Path(word).exists() or word.startswith("hf:") for word in command):
                continue  # another run, or a name on the Hub
            Path("member.npz").unlink(missing_ok=True)
            monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(line.encode())))
            status = cli.main(command[1:])
            assert status == RUNNABLE[command[1]], f"{block}: {' '.join(command)}: {capsys.readouterr().err}"
            run += 1
    assert run >= 8


PYTHON_PAGES = sorted({block.page for block in blocks_in("python")})


@pytest.mark.parametrize("page", PYTHON_PAGES)
def test_python_runs(page, demo_run):
    """The blocks of a page run one after the other, in one namespace."""
    namespace = {"__name__": page}
    for block in blocks_in("python"):
        if block.page == page:
            exec(compile(block.text, str(block), "exec"), namespace)


@pytest.mark.parametrize("block", [b for b in ALL if b.note and b.note[0] == "excerpt"], ids=str)
def test_excerpts_are_in_the_code(block):
    source = (ROOT / block.note[1]).read_text()
    assert block.text in source, f"{block}: quote {block.note[1]} as it is now"


# --------------------------------------------------------------------------------------------------------------
# The reference


def test_the_demos_folder_is_named():
    assert f"demo-{demo.PACKAGE_VERSION}-{demo._CONVERTER_VERSION} " in (ROOT / "docs/other_frameworks.md").read_text()


def test_every_public_name_is_in_the_reference():
    listed = re.findall(r"^::: prompt_jax\.(\w+)$", (ROOT / "docs" / "api.md").read_text(), re.M)
    assert sorted(listed) == sorted(prompt_jax.__all__)


@pytest.mark.parametrize("name", prompt_jax.__all__)
def test_every_public_name_has_a_docstring(name):
    value = getattr(prompt_jax, name)
    text = value.__doc__ or ""
    assert text.strip() and not text.startswith(f"{name}("), "a dataclass without a docstring has its signature instead"


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "RESULTS.md"])
def test_links_outside_the_site_work(name):
    """`mkdocs build --strict` checks those in docs/."""
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", (ROOT / name).read_text())
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []


def test_the_readme_is_short():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 160 and len(text.split()) <= 1300


def test_the_build_is_strict():
    """Broken links fail only in strict mode. MkDocs itself is an extra, which the tests do without."""
    assert "\nstrict: true\n" in (ROOT / "mkdocs.yml").read_text()


def test_every_page_is_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text()
    assert all(f": {path.name}\n" in text for path in (ROOT / "docs").glob("*.md"))


@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="needs the extra docs")
def test_the_site_builds(tmp_path, monkeypatch):
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    monkeypatch.chdir(ROOT)
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path), strict=True))
