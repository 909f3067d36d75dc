"""Compares training a soft prompt here with PEFT on PyTorch, side by side on this machine.

    pip install 'prompt-jax[demo,bench]'
    python tools/bench.py                     # all cases; a table, and bench.json
    python tools/bench.py --cases step reviews --rounds 5

Every measurement is a process of its own, so that its peak memory is its own. The sides take turns, round by round,
and a ratio is of medians over rounds, since the speed of a shared machine changes from minute to minute. Both sides
train in float32, with Adafactor as the prompt-tuning paper has it. Cases:

    step      T5-small's shape, random weights, prompt 100, batch 8, source 128, target 16; dropout 0.1 on both sides
    step-0    the same without dropout
    reviews   the demo model on movie reviews at their true lengths, batch 32, prompt 20, from text to updated prompt;
              PEFT with its usual collator, which pads to the longest row of the batch
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

CASES = ("step", "step-0", "reviews")
SIDES = ("prompt_jax", "peft")
STEPS = 8  # timed in each process, after two that compile and warm up
# Large pages for large arrays, for both sides: some 10 % of a step here is the kernel handing out small ones.
ENVIRONMENT = os.environ | {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
LENGTH = {"step": 100, "step-0": 100, "reviews": 20}
DROPOUT = {"step": 0.1, "step-0": 0.0, "reviews": 0.1}
BATCH = {"step": 8, "step-0": 8, "reviews": 32}
SOURCE, TARGET = 128, 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    parser.add_argument("--rounds", type=int, default=3, help="processes of each side and case")
    parser.add_argument("--out", type=Path, default=Path("bench.json"))
    parser.add_argument("--measure", nargs=2, metavar=("CASE", "SIDE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        case, side = args.measure
        measured = (ours if side == "prompt_jax" else peft)(case)
        print(json.dumps(measured))
        return

    results: dict[str, dict[str, list[dict[str, float]]]] = {}
    for case in args.cases:
        for number in range(args.rounds):
            for side in args.sides:
                print(f"{case}, round {number + 1} of {args.rounds}, {side}", file=sys.stderr, flush=True)
                command = [sys.executable, __file__, "--measure", case, side]
                shown = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, env=ENVIRONMENT).stdout
                results.setdefault(case, {}).setdefault(side, []).append(json.loads(shown.splitlines()[-1]))
    report = {"machine": machine(), "rounds": args.rounds, "steps": STEPS, "cases": summarise(results)}
    args.out.write_text(json.dumps(report, indent=2) + "\n")
    print(table(report["cases"]))


def summarise(results: dict[str, dict[str, list[dict[str, float]]]]) -> dict[str, Any]:
    """Medians over rounds, and ratios: how many times faster we are, and our share of PEFT's peak memory."""
    cases: dict[str, Any] = {}
    for case, sides in results.items():
        medians = {
            side: {name: statistics.median(row[name] for row in rows) for name in rows[0]}
            for side, rows in sides.items()
        }
        cases[case] = {"sides": medians, "rounds": sides}
        if len(medians) == 2:
            a, b = (medians[side] for side in SIDES)
            cases[case] |= {"speed": b["seconds"] / a["seconds"], "memory": a["peak_mib"] / b["peak_mib"]}
    return cases


def table(cases: dict[str, Any]) -> str:
    """The results as Markdown."""
    head = ("case", "side", "step, s", "examples/s", "peak, MiB", "GFLOP/s", "of matmul", "speed", "memory")
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for case, values in cases.items():
        for side, row in values["sides"].items():
            cells = [
                case,
                side,
                f"{row['seconds']:.3f}",
                f"{BATCH[case] / row['seconds']:.1f}",
                f"{row['peak_mib']:.0f}",
            ]
            rate = row["flops"] / row["seconds"] / 1e9 if "flops" in row else None
            cells += (
                [f"{rate:.0f}", f"{rate * 1e9 / row['matmul']:.0%}"] if rate else ["", f"({row['matmul'] / 1e9:.0f})"]
            )
            ratios = "speed" in values and side == "prompt_jax"
            cells += [f"{values['speed']:.2f} x", f"{values['memory']:.2f} x"] if ratios else ["", ""]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """What was measured on."""
    model = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    return {"cpu": model, "cores": os.cpu_count(), "python": platform.python_version()}


def timed(step: Callable[[], Any]) -> dict[str, float]:
    """Median seconds of a step that waits for its own end."""
    seconds = []
    for _ in range(2 + STEPS):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return {"seconds": statistics.median(seconds[2:]), "peak_mib": peak_mib()}


def peak_mib() -> float:
    """The largest amount of memory that this process has had so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# --------------------------------------------------------------------------------------------------------------
# This project


def ours(case: str) -> dict[str, float]:
    import dataclasses

    import jax
    import jax.numpy as jnp

    from prompt_jax.config import OptimizerConfig
    from prompt_jax.prompts import soft_prompt
    from prompt_jax.training import step as steps
    from prompt_jax.training.optimizers import make_optimizer

    config, params, batches, extra = reviews_ours() if case == "reviews" else random_ours()
    config = dataclasses.replace(config, dropout_rate=DROPOUT[case])
    optimizer = steps.frozen_base(make_optimizer(OptimizerConfig(), 1000))
    tokens = jax.random.normal(jax.random.key(0), (LENGTH[case], config.d_model))
    state = steps.TrainState.create({"base": None, "prompt": {"encoder_tokens": tokens}}, optimizer)
    frozen, key = {"base": params, "prompt": None}, jax.random.key(1)
    make = steps.make_train_step(config, soft_prompt.apply, optimizer, dropout=DROPOUT[case] > 0)
    step = jax.jit(make, donate_argnums=0)

    def one() -> None:
        nonlocal state
        state, metrics = step(state, frozen, jax.device_put(next(batches)), key)
        metrics["loss"].block_until_ready()

    if case == "reviews":  # each length is compiled before the clock runs
        seen = set()
        for batch in batches:
            if batch["inputs"].shape not in seen:
                seen.add(batch["inputs"].shape)
                state, _ = step(state, frozen, jax.device_put(batch), key)
            if len(seen) == extra["buckets"]:
                break
        return review_time(one, extra["tokenise_seconds"]) | {"matmul": matmul_ours(jax, jnp)}

    measured = timed(one)  # first, since counting takes memory of its own
    # Each layer a stack of its own, so that the compiler counts all of them: it counts a loop's body once.
    unrolled = jax.tree.map(lambda x: x, params)
    for side, depth in (("encoder", config.encoder_layers), ("decoder", config.decoder_layers)):
        (stack,) = unrolled[side]["layers"]
        layer = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype), stack)
        unrolled[side]["layers"] = (layer,) * depth
    counted = jax.jit(make).lower(state, {"base": unrolled, "prompt": None}, next(batches), key).compile()
    return measured | {"flops": counted.cost_analysis()["flops"], "matmul": matmul_ours(jax, jnp)}


def matmul_ours(jax: Any, jnp: Any) -> float:
    """The machine's rate, in operations a second, for square float32 matrices of 2,048 through XLA."""
    a = jnp.ones((2048, 2048))
    multiply = jax.jit(lambda a: a @ a)
    return 2 * 2048**3 / timed(lambda: multiply(a).block_until_ready())["seconds"]


def random_ours() -> tuple[Any, Any, Iterator[dict[str, Any]], dict[str, Any]]:
    """T5-small's shape with random weights, and one batch again and again."""
    import itertools

    import jax.numpy as jnp
    import numpy as np

    from prompt_jax.models import t5

    config = t5.T5Config(
        vocab_size=32128,
        d_model=512,
        d_kv=64,
        d_ff=2048,
        num_heads=8,
        encoder_layers=6,
        decoder_layers=6,
        activation="relu",
        gated=False,
        tied_output=True,
        scale_output=True,
    )
    rng, params = np.random.default_rng(0), {}
    for row in t5.parameters(config):
        *parents, leaf = row.path.split("/")
        node = params
        for name in parents:
            node = node.setdefault(name, {})
        shape = row.shape if row.layers is None else (row.layers, *row.shape)
        node[leaf] = jnp.asarray(0.05 * rng.standard_normal(shape, np.float32))
    for side in ("encoder", "decoder"):
        params[side]["layers"] = (params[side]["layers"]["0"],)
    targets = rng.integers(2, 32000, (BATCH["step"], TARGET)).astype(np.int32)
    inputs = rng.integers(2, 32000, (BATCH["step"], SOURCE)).astype(np.int32)
    batch = {
        "inputs": inputs,
        "inputs_mask": np.ones(inputs.shape, bool),
        "decoder_inputs": np.pad(targets[:, :-1], ((0, 0), (1, 0))),
        "targets": targets,
        "target_mask": np.ones(targets.shape, bool),
    }
    return config, params, itertools.repeat(batch), {}


def reviews_ours() -> tuple[Any, Any, Iterator[dict[str, Any]], dict[str, Any]]:
    """The demo model and bucketed batches of movie reviews."""
    import types

    import numpy as np

    from prompt_jax.batches import TrainBatches, length_buckets
    from prompt_jax.config import DataConfig
    from prompt_jax.models.hub import load_model

    model = load_model("demo")
    texts, labels = reviews()
    start = time.perf_counter()
    inputs, targets = (
        [np.array([*model.tokenizer.encode(text), model.tokenizer.eos_id], np.int32) for text in column]
        for column in (texts, labels)
    )
    seconds = time.perf_counter() - start
    lengths = [len(row) for row in inputs]
    buckets = length_buckets(lengths, DataConfig.buckets, max(lengths))
    examples = types.SimpleNamespace(inputs=inputs, targets=targets)
    batches = TrainBatches(examples, BATCH["reviews"], 0, buckets, model.config.pad_id, model.config.start_id)
    share = seconds / len(texts) * BATCH["reviews"]
    return model.config, model.params, batches, {"tokenise_seconds": share, "buckets": len(buckets)}


# --------------------------------------------------------------------------------------------------------------
# PEFT


def peft(case: str) -> dict[str, float]:
    import torch
    from peft import PromptTuningConfig, TaskType, get_peft_model
    from transformers.optimization import Adafactor

    torch.manual_seed(0)
    model, batches, tokenise_seconds = reviews_peft() if case == "reviews" else random_peft(DROPOUT[case])
    options = PromptTuningConfig(task_type=TaskType.SEQ_2_SEQ_LM, num_virtual_tokens=LENGTH[case])
    model = get_peft_model(model, options).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = Adafactor(
        trained, lr=0.3, scale_parameter=False, relative_step=False, warmup_init=False, weight_decay=1e-5
    )

    def one() -> None:
        model(**next(batches)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    a = torch.ones(2048, 2048)
    matmul = {"matmul": 2 * 2048**3 / timed(lambda: a @ a)["seconds"]}
    return (review_time(one, tokenise_seconds) if case == "reviews" else timed(one)) | matmul


def random_peft(dropout: float) -> tuple[Any, Iterator[dict[str, Any]], float]:
    import itertools

    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=32128,
        d_model=512,
        d_kv=64,
        d_ff=2048,
        num_layers=6,
        num_heads=8,
        feed_forward_proj="relu",
        dropout_rate=dropout,
        decoder_start_token_id=0,
    )
    ids = torch.randint(2, 32000, (BATCH["step"], SOURCE))
    labels = torch.randint(2, 32000, (BATCH["step"], TARGET))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    return T5ForConditionalGeneration(config), itertools.repeat(batch), 0.0


def reviews_peft() -> tuple[Any, Iterator[dict[str, Any]], float]:
    """The same weights, tokenizer and texts, in random order, each batch padded to its longest row."""
    import torch
    import traceforge_title_model
    from transformers import DataCollatorForSeq2Seq, PreTrainedTokenizerFast, T5ForConditionalGeneration

    from prompt_jax.models.demo import demo_folder

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(traceforge_title_model.span_dir() / "tokenizer.json"),
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
    )
    model = T5ForConditionalGeneration.from_pretrained(str(demo_folder()))
    texts, labels = reviews()
    start = time.perf_counter()
    inputs, targets = (tokenizer([text + "</s>" for text in column])["input_ids"] for column in (texts, labels))
    seconds = time.perf_counter() - start
    rows = [{"input_ids": x, "attention_mask": [1] * len(x), "labels": y} for x, y in zip(inputs, targets, strict=True)]
    collate = DataCollatorForSeq2Seq(tokenizer)
    loader = torch.utils.data.DataLoader(rows, BATCH["reviews"], shuffle=True, drop_last=True, collate_fn=collate)
    return model, iter(loader), seconds / len(texts) * BATCH["reviews"]


# --------------------------------------------------------------------------------------------------------------
# What both sides share


def reviews() -> tuple[list[str], list[str]]:
    """Texts and labels of the training split of tasks/data/sentiment/movie.tsv.gz, as tasks/sentiment.py has them."""
    from prompt_jax.data_files import read_rows, text_fraction

    rows = [row for _, row in read_rows(Path(__file__).parents[1] / "tasks/data/sentiment/movie.tsv.gz")]
    rows = [row for row in rows if abs(float(row["rating"])) > 0.5 and text_fraction(row["text"]) < 0.8]
    return [row["text"] for row in rows], ["positive" if float(row["rating"]) > 0 else "negative" for row in rows]


def review_time(step: Callable[[], None], tokenise_seconds: float) -> dict[str, float]:
    """Seconds a step from text to updated prompt: the mean over batches of varied length, and tokenising them."""
    count = 5 * STEPS
    for _ in range(2):
        step()
    start = time.perf_counter()
    for _ in range(count):
        step()
    return {"seconds": (time.perf_counter() - start) / count + tokenise_seconds, "peak_mib": peak_mib()}


if __name__ == "__main__":
    main()
