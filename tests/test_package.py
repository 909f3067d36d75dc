"""The package as shipped: its wheel, its imports, its public names and its lock file."""

import ast
import graphlib
import importlib
import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "prompt_jax"
SOURCES = sorted(PACKAGE.rglob("*.py"))

# Packages that training, loading, running and exporting prompts must not need.
UNNEEDED = {
    *("tensorflow", "tensorflow_text", "tensorflow_datasets", "seqio", "tensorboard", "matplotlib"),
    *("torch", "peft", "sacrebleu", "rouge_score", "nltk"),
}

# A folder or loose module imports only from its own layer and those above it.
LAYERS = (
    {"errors", "control_tokens"},
    {"storage", "task_format"},
    {"config"},
    {"models"},
    {"distributed"},
    {"checkpoints"},
    {"metrics"},
    {"data"},
    {"prompt_files"},
    {"methods"},
    {"experiment"},
    {"inference"},
    {"ensembles", "inspection"},
    {"report"},
    {"training", "diagnosis"},
    {"cli"},
)


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Run a command in a new process, which must succeed, and return its standard output."""
    env = {**os.environ, "XDG_CACHE_HOME": str(cwd / "cache"), **environment}
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{command} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


# --------------------------------------------------------------------------------------------------------------
# The wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Build the wheel of this checkout without network."""
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """Install the wheel in a folder outside the checkout."""
    folder = tmp_path_factory.mktemp("installed")
    options = ("--quiet", "--no-deps", "--no-index", "--disable-pip-version-check", "--target", folder)
    run(sys.executable, "-m", "pip", "install", *options, wheel, cwd=folder)
    return folder


@pytest.fixture
def prompt_file(tiny, tmp_path) -> Path:
    """Return a prompt file for the tiny model, with complete metadata."""
    import numpy as np

    import prompt_jax
    from prompt_jax.prompt_files.io import ModelId
    from prompt_jax.task_format import TaskFormat

    width = tiny.params["embedding"].shape[1]
    tokens = np.random.default_rng(0).normal(size=(5, width)).astype(np.float32)
    metadata = prompt_jax.PromptMetadata(
        base=ModelId("tiny", None, tiny.fingerprint),
        method="soft_prompt",
        format=TaskFormat("{text}", labels=("negative", "positive"), input_length=32, target_length=16),
    )
    path = tmp_path / "prompt.npz"
    prompt_jax.save_prompt(path, prompt_jax.Prompt(prompt_jax.VirtualTokens(tokens)), metadata)
    return path


def test_the_wheel_holds_the_package_alone(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (info,) = {name.split("/")[0] for name in names if ".dist-info/" in name}
        commands = archive.read(f"{info}/entry_points.txt").decode()
    meant = {str(path.relative_to(ROOT)) for path in [*SOURCES, *PACKAGE.rglob("*.jinja")]}
    assert {name for name in names if not name.startswith(f"{info}/")} == meant
    assert f"{info}/licenses/LICENSE" in names
    assert "prompt-jax = prompt_jax.cli:main" in commands


@pytest.mark.slow
def test_the_installed_wheel_works_outside_the_checkout(installed, prompt_file, tiny_folder, sentiment_files, tmp_path):
    def installed_run(*arguments: str | Path) -> str:
        return run(sys.executable, *arguments, cwd=tmp_path, PYTHONPATH=str(installed))

    assert Path(installed_run("-c", "import prompt_jax; print(prompt_jax.__file__)").strip()).is_relative_to(installed)
    assert "usage: prompt-jax VERB" in installed_run("-m", "prompt_jax.cli", "--help")

    # A user's file needs neither tasks nor configurations from the checkout.
    command, base = installed / "bin" / "prompt-jax", ("--model", tiny_folder)
    answers = installed_run(command, "predict", prompt_file, "a good film", "a bad film", *base, "--json")
    scores = [json.loads(line)["label_scores"] for line in answers.splitlines()]
    assert len(scores) == 2 and set(scores[0]) == {"negative", "positive"} and scores[0] != scores[1]
    report = installed_run(command, "evaluate", prompt_file, "--data", sentiment_files["test"], *base)
    assert "10 examples" in report and "accuracy" in report


# --------------------------------------------------------------------------------------------------------------
# Imports


@pytest.mark.slow
def test_training_and_running_need_no_tensorflow(prompt_file, tiny_folder, sentiment_files, tmp_path):
    given = (tiny_folder, prompt_file, sentiment_files["train"])
    printed = run(sys.executable, __file__, *given, cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert printed.splitlines()[-1] == "done without"


def without_tensorflow(folder: str, prompt_file: str, data_file: str) -> None:
    """Load a model, train, run and export without `UNNEEDED`, in a new process."""

    # Except PyTorch: transformers only checks whether it is installed.
    missing = dict.fromkeys(UNNEEDED - {"torch"})
    sys.modules.update(missing)  # a module that is None cannot be imported or found
    for name in missing:
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(name)

    import jax
    import numpy as np

    import prompt_jax
    from prompt_jax import cli
    from prompt_jax.config.optimizer import OptimizerConfig
    from prompt_jax.data.batches import TrainBatches
    from prompt_jax.data.buckets import length_buckets
    from prompt_jax.data.files import file_task
    from prompt_jax.data.load import LoadOptions, load_examples
    from prompt_jax.methods.soft_prompt import PromptTuning
    from prompt_jax.task_format import TaskFormat
    from prompt_jax.training import step as steps
    from prompt_jax.training.optimizers import make_optimizer

    model = prompt_jax.load_model(folder)
    first = prompt_jax.load_prompt(prompt_file, model)

    task_format = TaskFormat("{text}", labels=("negative", "positive"), input_length=32, target_length=16)
    task = file_task("files", {"train": Path(data_file)}, task_format)
    examples = load_examples(task, model.tokenizer, "train", LoadOptions(32, 16))
    buckets = length_buckets([len(ids) for ids in examples.inputs], 2, 32)
    batches = TrainBatches(examples, 8, 0, buckets, model.config.pad_id, model.config.start_id)

    optimizer = steps.frozen_base(make_optimizer(OptimizerConfig(), 3))
    start = {"encoder_tokens": jax.numpy.asarray(first.encoder_tokens.embeddings)}
    state = steps.TrainState.create(start, optimizer)
    method = PromptTuning()
    step = jax.jit(steps.make_train_step(model.config, method, optimizer))
    for batch in (next(batches) for _ in range(3)):
        state, metrics = step(state, model.params, batch, jax.random.key(0))
    assert int(state.step) == 3 and np.isfinite(metrics["loss"])

    prompt = method.apply(state.trainable["prompt"])
    assert np.abs(np.asarray(prompt.encoder_tokens.embeddings) - first.encoder_tokens.embeddings).max() > 0.01
    logits = prompt_jax.forward(model.params, model.config, batch, prompt)
    assert logits.shape[:2] == batch["decoder_inputs"].shape and np.isfinite(logits).all()
    assert prompt_jax.generate(model.params, model.config, batch, prompt, max_new_tokens=4).shape == (8, 4)

    prompt_jax.save_prompt("trained.npz", prompt)
    assert cli.main(["export", "trained.npz", "trained.npy"]) == 0
    for path in ("trained.npz", "trained.npy"):
        read = prompt_jax.load_prompt(path).encoder_tokens.embeddings
        np.testing.assert_array_equal(read, prompt.encoder_tokens.embeddings)
    assert cli.main(["evaluate", prompt_file, "--model", folder, "--data", data_file]) == 0
    assert {name: sys.modules[name] for name in UNNEEDED if name in sys.modules} == missing


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["evaluate", "--help"]], ids=" ".join)
def test_help_imports_little(arguments, tmp_path):
    code = f"""if True:
        import contextlib, io, sys
        before = set(sys.modules)
        from prompt_jax import cli
        with contextlib.redirect_stdout(io.StringIO()) as shown, contextlib.suppress(SystemExit):
            cli.main({arguments})
        assert "usage: prompt-jax" in shown.getvalue()
        print(*sorted(set(sys.modules) - before))
    """
    modules = run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(ROOT)).split()
    foreign = {name for name in modules if name.split(".")[0] not in {*sys.stdlib_module_names, "prompt_jax"}}
    packages = {name.split(".")[0] for name in foreign}
    assert "tyro" in packages
    assert packages <= {"tyro", "typeguard", "typing_extensions", "docstring_parser"}, "tyro and its dependencies"


def imports(path: Path) -> Iterator[tuple[str, bool, bool]]:
    """Return (module, at import time, only for types) for each import in a file; `from a import b` may give `a.b`."""

    def visit(node: ast.AST, now: bool, types: bool) -> Iterator[tuple[str, bool, bool]]:
        if isinstance(node, ast.Import):
            yield from ((alias.name, now, types) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}:{node.lineno}: a relative import"
            for alias in node.names:
                inner = ROOT.joinpath(*node.module.split("."), alias.name)
                whole = inner.with_suffix(".py").exists() or inner.is_dir()
                yield f"{node.module}.{alias.name}" if whole else node.module, now, types
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.body:
                yield from visit(child, now, True)
        else:
            inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            for child in ast.iter_child_nodes(node):
                yield from visit(child, now and not inside, types)

    return visit(ast.parse(path.read_text(encoding="utf-8")), True, False)


def module_name(path: Path) -> str:
    """Return `prompt_jax.models` for prompt_jax/models/__init__.py."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def test_imports_point_one_way():
    place = {name: number for number, layer in enumerate(LAYERS) for name in layer}
    wrong = []
    for path in SOURCES:
        name = module_name(path)
        if name == "prompt_jax":  # re-exports public names from all layers
            continue
        layer = name.split(".")[1]
        assert layer in place, f"give prompt_jax.{layer} a place in LAYERS"
        for target in {target for target, _, _ in imports(path)}:
            if target.startswith("prompt_jax.") and place[target.split(".")[1]] > place[layer]:
                wrong.append(f"{name} imports {target}")
    assert wrong == []


def test_no_module_is_imported_in_a_circle():
    graph = {
        module_name(path): {t for t, _, types in imports(path) if t.startswith("prompt_jax.") and not types}
        for path in SOURCES
    }
    assert set(graphlib.TopologicalSorter(graph).static_order()) >= set(graph)


def test_only_data_imports_tensorflow_and_only_on_demand():
    actual = {
        (module_name(path), target.split(".")[0], now)
        for path in SOURCES
        for target, now, types in imports(path)
        if not types
    }
    tensorflow = {"tensorflow", "tensorflow_text", "tensorflow_datasets", "seqio"}
    assert {name for name, target, _ in actual if target in tensorflow} == {
        "prompt_jax.data.seqio_import",
        "prompt_jax.data.seqio_tasks",
        "prompt_jax.data.vocabulary",
    }
    assert {name for name, target, now in actual if now and target in tensorflow | {"torch", "transformers"}} == set()


# --------------------------------------------------------------------------------------------------------------
# Public names


def test_public_names_resolve():
    import prompt_jax

    (block,) = (node for node in ast.parse((PACKAGE / "__init__.py").read_text()).body if isinstance(node, ast.If))
    for_types = [alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert sorted(for_types) == sorted(prompt_jax.__all__) == sorted(prompt_jax._HOME) == dir(prompt_jax)
    for name in prompt_jax.__all__:
        assert getattr(prompt_jax, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'load_promt'"):
        _ = prompt_jax.load_promt


# --------------------------------------------------------------------------------------------------------------
# Tests

# Folders whose modules each have a test file: `prompt_jax/X/Y.py` has `tests/X/test_Y.py`.
TESTED = (
    *(".", "checkpoints", "cli", "config", "data", "distributed", "ensembles", "inference", "inspection", "methods"),
    *("metrics", "models", "prompt_files", "report", "storage", "training"),
)

# Modules without a test file.
EXCUSED = {
    "errors.py": "classes without code",
    "cli/__main__.py": "calls main(), in tests that start processes",
    "config/data.py": "a dataclass of options, in test_experiment.py",
    "config/ensemble.py": "a dataclass of options, in test_experiment.py",
    "config/mesh.py": "a dataclass of options, in test_experiment.py",
    "config/model.py": "a dataclass of options, in test_experiment.py",
    "config/optimizer.py": "a dataclass of options, in test_experiment.py",
    "config/prompt.py": "types without code",
    "config/train.py": "a dataclass of options, in test_experiment.py",
    "training/tracker.py": "an interface, in training/test_trackers.py",
    "models/generation_settings.py": "a dataclass of settings, in checkpoints/test_generation_config.py",
}


def test_every_module_has_its_test_file():
    modules = [path.relative_to(PACKAGE) for path in SOURCES if path.name != "__init__.py"]
    assert {Path(name) for name in EXCUSED} <= set(modules)
    missing = []
    for module in modules:
        tests = ROOT / "tests" / module.parent / f"test_{module.name}"
        assert str(module) not in EXCUSED or not tests.exists(), f"{module} is excused, but has a test file"
        if str(module.parent) in TESTED and str(module) not in EXCUSED:
            missing += [] if tests.exists() else [str(module)]
    assert missing == []


# --------------------------------------------------------------------------------------------------------------
# The repository


def tracked() -> list[Path]:
    """Return the files that git tracks and that exist."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode or not listed.stdout:
        pytest.skip("not a git checkout")
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def test_syntax_is_that_of_the_oldest_python():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == ">=3.11"
    for path in tracked():
        if path.suffix == ".py":
            ast.parse(path.read_text(encoding="utf-8"), str(path), feature_version=(3, 11))


def test_the_lock_satisfies_the_projects_requirements():
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    texts = [*project["dependencies"], *(text for name in ("demo", "tasks", "test") for text in extras[name])]
    asked = [Requirement(text) for text in texts]
    lines = [line.split("#")[0].strip() for line in (ROOT / "requirements.lock").read_text().splitlines()]
    locked = [Requirement(line) for line in lines if line]
    assert all(re.fullmatch(r"==[\w.]+", str(requirement.specifier)) for requirement in locked)

    def plain(name: str) -> str:
        return re.sub(r"[-_.]+", "-", name).lower()

    for python in ("3.11", "3.12", "3.13"):
        here = {"python_full_version": f"{python}.0", "python_version": python}
        versions = {
            plain(requirement.name): str(requirement.specifier).removeprefix("==")
            for requirement in locked
            if requirement.marker is None or requirement.marker.evaluate(here)
        }
        for requirement in asked:
            if requirement.name != project["name"]:
                assert requirement.specifier.contains(versions.get(plain(requirement.name), "0")), (python, requirement)


if __name__ == "__main__":
    without_tensorflow(*sys.argv[1:])
    print("done without")
