"""Shared by both sides of the benchmark: the cases and their shapes, the texts, and the clock."""

import dataclasses
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from prompt_jax.config.model import Remat

STEPS = 8  # timed in each process, after two to compile and warm up
MEMBERS = 5  # of the cases ensemble and vote
SAVED_MEMBERS = (1, 5)
DECODED = (1, 2, 4, 8, 16, 32)  # numbers of inputs in the case decoding
MANY_MEMBERS = (1, 2, 4, 8, 16, 32, 64)
VOTED, VOTE_TOKENS, VOTE_BATCH, VOTE_ROUNDS = 256, 4, 64, 2

# T5-small's shape, GPT-2 small's, or SmolLM2 135M's, which is a Llama.
Kind = Literal["t5", "gpt2", "llama"]
MODELS: tuple[Kind, ...] = ("t5", "gpt2", "llama")
# The fields of SmolLM2 135M's config.json that differ from Transformers' defaults.
SMOLLM2 = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}

Row = dict[str, float]  # a measurement's numbers, by name


@dataclasses.dataclass(frozen=True)
class Shape:
    """The shape of a training step: rows of a member's batch, lengths in tokens, and the base's dropout rate."""

    batch: int
    length: int  # of the prompt
    dropout: float
    source: int = 128  # for decoder-only models the whole text, all of which is predicted
    target: int = 16
    model: Kind = "t5"
    method: Literal["soft_prompt", "prefix"] = "soft_prompt"
    remat: Remat = "none"


SHAPES = {
    "step": Shape(batch=8, length=100, dropout=0.1),
    "step-0": Shape(batch=8, length=100, dropout=0.0),
    "reviews": Shape(batch=32, length=20, dropout=0.1),  # at their true lengths
    "gpt2-prompt": Shape(batch=16, length=100, dropout=0.0, source=32, target=0, model="gpt2"),
    "gpt2-prefix": Shape(batch=8, length=10, dropout=0.0, source=128, target=0, model="gpt2", method="prefix"),
    "llama-prompt": Shape(batch=8, length=100, dropout=0.0, source=64, target=0, model="llama"),
    "llama-prompt-remat": Shape(batch=8, length=100, dropout=0.0, source=64, target=0, model="llama", remat="full"),
    "llama-prefix": Shape(batch=8, length=10, dropout=0.0, source=64, target=0, model="llama", method="prefix"),
    "ensemble": Shape(batch=8, length=100, dropout=0.1),
    "members": Shape(batch=1, length=20, dropout=0.0, source=16),
    "memory": Shape(batch=8, length=100, dropout=0.1),
    "checkpoint": Shape(batch=8, length=100, dropout=0.1),
}
# Generation: 32 tokens for 8 inputs, with a prompt of 100 or a prefix of 10.
GENERATIONS = {
    f"{model}-{method}-{how}": Shape(
        batch=8,
        length=100 if method == "prompt" else 10,
        dropout=0.0,
        source=128 if model == "t5" else 32,
        target=32,
        model=model,
        method="soft_prompt" if method == "prompt" else "prefix",
    )
    for model in MODELS
    for method in ("prompt", "prefix")
    for how in ("greedy", "beam5")
}

SIDES = ("prompt_jax", "alone", "peft")
CASES = {
    "step": ("prompt_jax", "peft"),
    "step-0": ("prompt_jax", "peft"),
    "reviews": ("prompt_jax", "peft"),
    "gpt2-prompt": ("prompt_jax", "peft"),
    "gpt2-prefix": ("prompt_jax", "peft"),
    "llama-prompt": ("prompt_jax", "peft"),
    "llama-prompt-remat": ("prompt_jax", "peft"),
    "llama-prefix": ("prompt_jax", "peft"),
    "ensemble": SIDES,
    "members": ("prompt_jax",),
    "memory": ("prompt_jax",),
    "vote": ("prompt_jax",),
    **dict.fromkeys(GENERATIONS, ("prompt_jax", "peft")),
    "decoding": ("prompt_jax",),
    "processes": ("prompt_jax",),
    "checkpoint": ("prompt_jax",),
    "resume": ("prompt_jax",),
}
# Cases in which each process measures one side.
TRAINING = (
    "step",
    "step-0",
    "reviews",
    *(f"{model}-{how}" for model in ("gpt2", "llama") for how in ("prompt", "prefix")),
    "llama-prompt-remat",
    "ensemble",
)
# Members and group of each process of the case memory.
MEMORY = {
    f"{n}{at}": (n, group) for n in (1, 2, 4, 8, 16) for at, group in (("", None), (" by 1", 1)) if n > 1 or not at
}


def timed(step: Callable[[], Any], steps: int = STEPS) -> Row:
    """Return the median seconds of `step`, which must block until done, and the process's peak memory so far."""
    seconds = [_seconds(step) for _ in range(2 + steps)]
    return {"seconds": statistics.median(seconds[2:]), "peak_mib": peak_mib()}


def alternately(sides: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, Row]:
    """Return the median seconds of each side. Sides alternate within a round; the first round compiles and warms up."""
    seconds = [{name: _seconds(side) for name, side in sides.items()} for _ in range(1 + rounds)]
    return {name: {"seconds": statistics.median(row[name] for row in seconds[1:])} for name in sides}


def review_time(step: Callable[[], None], tokenize_seconds: float) -> Row:
    """Return the mean seconds per step from text to updated prompt, over batches of varied lengths."""
    count = 5 * STEPS
    for _ in range(2):
        step()
    start = time.perf_counter()
    for _ in range(count):
        step()
    return {"seconds": (time.perf_counter() - start) / count + tokenize_seconds, "peak_mib": peak_mib()}


def _seconds(step: Callable[[], Any]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def peak_mib() -> float:
    """Return this process's peak host memory so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def reviews(low: float = 0.0, high: float = 0.8) -> tuple[list[str], list[str]]:
    """Return texts and labels of tasks/data/sentiment/movie.tsv.gz, by default tasks/sentiment.py's training split."""
    from prompt_jax.data.files import read_rows, text_fraction

    rows = [row for _, row in read_rows(Path(__file__).parents[2] / "tasks/data/sentiment/movie.tsv.gz")]
    rows = [row for row in rows if abs(float(row["rating"])) > 0.5 and low <= text_fraction(row["text"]) < high]
    return [row["text"] for row in rows], ["positive" if float(row["rating"]) > 0 else "negative" for row in rows]
