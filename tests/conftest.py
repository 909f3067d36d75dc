"""Settings of all tests, and small models to run them on."""

import contextlib
import ctypes
import gc
import json
import math
import os
import resource
import shutil
import signal
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from packaging.version import Version

# No test uses a network. huggingface_hub reads this when it is imported, also in processes that tests start.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Compiling small programs takes most of the tests' time, and these flags make it faster. jaxlib 0.11.1 removed the last
# one, and exits if it gets a flag that it does not know.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    + " --xla_cpu_parallel_codegen_split_count=1"
    + (" --xla_cpu_use_fusion_emitters=false" if Version(version("jaxlib")) < Version("0.11.1") else "")
)

import hypothesis
import jax
import pytest
from jaxtyping import install_import_hook

import bytepairs
import sentencepieces
from sentencepieces import SENTENCES

# Shapes and types of the functions in modules that annotate shapes are checked at run time, so this comes before the
# first import of the package. mypy checks the others, where run-time checks would take a quarter of the tests' time.
PACKAGE = Path(__file__).parents[1] / "prompt_jax"
install_import_hook(
    [
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
        for path in PACKAGE.rglob("*.py")
        if "from jaxtyping import" in path.read_text()
    ],
    "typecheck.check",
)
jax.config.update("jax_numpy_rank_promotion", "raise")

# Tracing and compilation make many objects, few of them in cycles. A full collection takes about half a second, so it
# comes with `bounded_memory`, and otherwise rarely.
gc.set_threshold(700, 10, 1000)

# A shell starts background jobs with interrupts ignored. The processes that tests start and interrupt would inherit it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Most tests run the same few programs. They are compiled once, for this process, its child processes, and the workers
# of pytest-xdist, which inherit the folder.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _CACHE = tempfile.TemporaryDirectory(prefix="prompt_jax_compilations")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

# The time of an example depends on the machine and its load.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")

FIXTURES = Path(__file__).parent / "fixtures"


# Bytes of memory above which compiled programs are dropped after a test file. Those of all files would take gigabytes.
MEMORY = 2**31


def pytest_collection_finish() -> None:
    """Exempt modules and collected tests from garbage collections."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def training_steps() -> Iterator[dict]:
    """Share the compiled training step between runs with equal options."""
    import shared_steps

    with pytest.MonkeyPatch.context() as patch:
        yield shared_steps.share(patch)


@pytest.fixture(scope="module", autouse=True)
def bounded_memory(training_steps: dict) -> Iterator[None]:
    """Drop compiled programs after a test file if this process has become large."""
    yield
    if resident_bytes() > MEMORY:
        training_steps.clear()
        jax.clear_caches()
        gc.collect()
        return_freed_memory()


def return_freed_memory() -> None:
    """Return freed memory to the system. glibc keeps most of it, so the process would stay above the bound."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library, another system
        ctypes.CDLL(None).malloc_trim(0)


def resident_bytes() -> float:
    """Return this process's memory; infinity where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return math.inf
    return pages * resource.getpagesize()


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """Return the folder of the tests' stored models."""
    return FIXTURES


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a random T5 1.1 in the hub's layout, with a tokenizer trained on a few sentences."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    shutil.copytree(FIXTURES / "t5_v11" / "base", folder)
    (folder / "spiece.model").write_bytes(sentencepieces.train(SENTENCES, 80))
    return folder


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path):
    """Return the model in `tiny_folder`."""
    import prompt_jax

    return prompt_jax.load_model(str(tiny_folder))


SPECIAL_TOKENS = {
    "gpt2": ["[PAD]", "<|endoftext|>"],
    "bart": ["<s>", "<pad>", "</s>"],
    "llama": ["<pad>", "</s>", "<s>"],
    "gemma3_text": ["<pad>", "<eos>", "<bos>"],
    "phi3": ["<pad>", "</s>", "<s>"],
}


@pytest.fixture(scope="session")
def tiny_folders(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a random model of each family in the hub's layout, with a tokenizer trained on a few sentences."""
    folders = {"t5": tiny_folder}
    for name, special in SPECIAL_TOKENS.items():
        folders[name] = tmp_path_factory.mktemp(name) / "model"
        shutil.copytree(FIXTURES / name / "base", folders[name])
        entries = 120 if name in ("gpt2", "bart") else 48
        (folders[name] / "tokenizer.json").write_text(bytepairs.train(SENTENCES, entries, special))
        if entries == 48:  # the tokenizers of these model types are SentencePiece models
            (folders[name] / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    return folders


@pytest.fixture
def sentiment_files(tmp_path: Path) -> dict[str, Path]:
    """Train, validation and test JSONL files of a task with the labels negative and positive."""
    files = {}
    for split, count in (("train", 40), ("validation", 12), ("test", 10)):
        files[split] = tmp_path / f"{split}.jsonl"
        with files[split].open("w") as file:
            for i in range(count):
                good = i % 2 == 0
                text = f"{'a good film' if good else 'a bad film'} number {i} of {split}" + " and long" * (i % 5)
                file.write(json.dumps({"text": text, "label": "positive" if good else "negative"}) + "\n")
    return files


@pytest.fixture
def experiment(tiny_folder: Path, sentiment_files: dict[str, Path], tmp_path: Path):
    """Return a small experiment: 6 steps on the tiny model."""
    from prompt_jax.config.data import DataConfig
    from prompt_jax.config.model import ModelConfig
    from prompt_jax.config.train import TrainConfig
    from prompt_jax.experiment import Experiment
    from prompt_jax.methods.soft_prompt import PromptTuning

    return Experiment(
        name="run",
        runs=tmp_path / "runs",
        model=ModelConfig(name=str(tiny_folder)),
        data=DataConfig(**sentiment_files, labels=("negative", "positive"), target_length=12, buckets=1),
        prompt=PromptTuning(length=4, init="vocab", init_vocab=150),
        train=TrainConfig(
            steps=6, batch_size=8, eval_every=3, checkpoint_every=2, eval_batch_size=8, log_every=1, dropout_rate=0.1
        ),
    )


@pytest.fixture(scope="session")
def demo_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the demo model's folder, converted for this run of the tests; a skip without its package."""
    for package in ("traceforge_title_model", "onnx"):
        pytest.importorskip(package)
    from prompt_jax.checkpoints.demo import demo_folder

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROMPT_JAX_CACHE", str(tmp_path_factory.mktemp("demo")))
        return demo_folder()


@pytest.fixture(scope="session")
def smollm2_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return SmolLM2's folder, converted for this run of the tests; a skip without its packages."""
    from prompt_jax.checkpoints.smollm2 import smollm2_folder
    from prompt_jax.errors import MissingPackage

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROMPT_JAX_CACHE", str(tmp_path_factory.mktemp("smollm2")))
        try:
            return smollm2_folder()
        except MissingPackage as error:
            pytest.skip(str(error))
