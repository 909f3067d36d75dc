"""Three members with known answers, and an ensemble of random prompts."""

import numpy as np
import pytest

from known_answers import LABELS, examples_of, member
from prompt_jax import Prompt, VirtualTokens
from prompt_jax.data.examples import Examples
from prompt_jax.data.files import file_task
from prompt_jax.data.load import LoadOptions, load_examples
from prompt_jax.inference import batching
from prompt_jax.task_format import TaskFormat


@pytest.fixture
def labeled():
    """Return four examples with targets no, yes, yes, no, and three members."""
    examples = examples_of(["no", "yes", "yes", "no"], TaskFormat("{x}", LABELS))
    members = [
        member(examples, ["no", "yes", "no", "yes"], [0.1, 0.9, 0.4, 0.9]),
        member(examples, ["no", "no", "yes", "yes"], [0.2, 0.4, 0.8, 0.4]),
        member(examples, ["other", "yes", "no", "yes"], [0.3, 0.7, 0.4, 0.4]),
    ]
    return examples, members


@pytest.fixture(scope="module")
def prompts() -> list[Prompt]:
    random = np.random.default_rng(5)
    return [Prompt(VirtualTokens(random.normal(size=(n, 64)).astype(np.float32) * 4)) for n in (3, 3, 2, 3, 3)]


@pytest.fixture
def examples(tiny, sentiment_files, monkeypatch) -> Examples:
    monkeypatch.setattr(batching, "EVAL_BUCKETS", 1)  # little to compile
    task_format = TaskFormat("{text}", ("negative", "positive"), target_length=12)
    task = file_task("files", {"train": sentiment_files["train"]}, task_format)
    return load_examples(task, tiny.tokenizer, "train", LoadOptions(64, 12, limit=20))
