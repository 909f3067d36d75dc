"""Benchmark prompt_jax, mostly side by side with PEFT on PyTorch on the same machine.

    pip install '.[demo,bench]'
    python -m tools.bench                     # all cases; prints one table per kind and writes bench.json
    python -m tools.bench --cases step reviews --rounds 5
    python -m tools.bench --cases ensemble members memory --sides prompt_jax alone         # without PyTorch
    python -m tools.bench --cases vote --prompts runs/five/best.npz

Each measurement runs in a separate process, so that its peak memory is its own. The sides alternate within each round,
and ratios compare medians over rounds, because the speed of a shared machine drifts. All sides train in float32 with
Adafactor, as in the prompt-tuning paper. `peak` is host memory; `device` is accelerator memory where it is reported.

    step      T5-small's shape, random weights, prompt 100, batch 8, source 128, target 16; dropout 0.1 on both sides
    step-0    as `step`, without dropout
    reviews   the demo model on movie reviews at their true lengths, batch 32, prompt 20, from text to updated prompt;
              PEFT with its usual collator, which pads to the longest row of the batch
    gpt2-prompt, gpt2-prefix  GPT-2 small's shape, random weights, no dropout: prompt 100, batch 16, text 32; prefix 10,
              batch 8, text 128
    llama-prompt, llama-prefix  SmolLM2 135M's shape, random weights, batch 8, text 64: prompt 100; prefix 10
    llama-prompt-remat  as `llama-prompt`, with whole layers recomputed in the backward pass (on our side alone)
    ensemble  as `step`, with 5 prompts: one step of all of them, against five single steps of prompt_jax (`alone`), and
              against steps of five PEFT adapters of one base in turn
    members   T5-small's shape, prompt 20, batch 1, source 16, target 16, no dropout: 1 to 64 prompts in one step
    memory    as `step`, with 1 to 16 prompts, all at once or one after another in one program (group 1)
    {t5,gpt2,llama}-{prompt,prefix}-{greedy,beam5}  generation of 32 tokens for 8 inputs, prompt 100 or prefix 10:
              T5-small's shape with source 128, or GPT-2 small's or SmolLM2's with text 32; PEFT with Hugging Face's
              generate
    decoding  the compiler's memory for beam 5 on GPT-2 small with a prefix of 200, by number of inputs
    vote      answers of 5 prompts of the demo model to 256 reviews, 64 rows per batch: one flat pass, against one pass
              per prompt. The prompts are untrained, unless --prompts names an ensemble file; then the share of passes
              that early stopping saves is measured too
    processes `prompt-jax train` of the demo, with rows or 2 members split over two processes of one core each, against
              one process with both cores
    checkpoint  as `step`, with 1 and 5 prompts: the size of a checkpoint, and what saving costs training
    resume    `prompt-jax train` of the demo: time from the command to its first step, without and with JAX's
              compilation cache
"""

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from tools.bench.cases import CASES, GENERATIONS, MEMORY, SIDES, STEPS, TRAINING, Row
from tools.bench.tables import tables

# Large pages for large arrays, on all sides: with small pages, the kernel takes about 10 % of a step.
ENVIRONMENT = os.environ | {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}

Rows = dict[str, Row]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tools.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    parser.add_argument("--rounds", type=int, default=3, help="processes per side and case")
    parser.add_argument("--prompts", type=Path, help="ensemble file of prompts for the demo model, for the case vote")
    parser.add_argument("--out", type=Path, default=Path("bench.json"))
    parser.add_argument("--measure", nargs=2, metavar=("CASE", "PROCESS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        case, name = args.measure
        print(json.dumps(measure(case, name, args.prompts)))
        return
    if args.prompts and not args.prompts.exists():
        parser.error(f"--prompts: no file {args.prompts}")
    planned = {case: names for case in args.cases if (names := processes(case, args.sides))}
    if not planned:
        parser.error(f"the sides {', '.join(args.sides)} take part in none of the cases {', '.join(args.cases)}")

    report: dict[str, Any] = {"machine": machine(), "rounds": args.rounds, "steps": STEPS, "cases": {}}
    for case, names in planned.items():
        rounds: dict[str, list[Row]] = {}
        for number in range(args.rounds):
            for name in names:
                print(f"{case}, round {number + 1} of {args.rounds}, {name}", file=sys.stderr, flush=True)
                for side, row in run(case, name, args.prompts).items():
                    rounds.setdefault(side, []).append(row)
        report["cases"][case] = summarize(case, rounds)
        args.out.write_text(json.dumps(report, indent=2) + "\n")
    print("\n\n".join(tables(report["cases"])))


def processes(case: str, sides: list[str]) -> list[str]:
    """Return the processes of a round of a case: one per side, and for `memory` one per ensemble size and group."""
    chosen = [side for side in CASES[case] if side in sides]
    return list(MEMORY) if case == "memory" and chosen else chosen


def run(case: str, name: str, prompts: Path | None) -> Rows:
    """Run `measure` in a new process."""
    command = [sys.executable, "-m", "tools.bench", "--measure", case, name]
    command += ["--prompts", str(prompts)] if prompts else []
    shown = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, env=ENVIRONMENT).stdout
    return json.loads(shown.splitlines()[-1])


def measure(case: str, name: str, prompts: Path | None) -> Rows:
    """Return the rows that one process of a case measures. Only the side `peft` imports PyTorch, and not JAX."""
    if name == "peft":
        from tools.bench import peft_side

        if case == "ensemble":
            return {name: peft_side.ensemble()}
        return {name: (peft_side.generation if case in GENERATIONS else peft_side.single)(case)}
    if case == "vote":
        from tools.bench.vote import vote

        return vote(prompts)
    if case in ("processes", "checkpoint", "resume"):
        from tools.bench import runs

        return getattr(runs, case)()
    from tools.bench import jax_side

    if case in GENERATIONS:
        return {name: jax_side.generation(case)}
    match case:
        case "reviews":
            return {name: jax_side.review_steps()}
        case "ensemble":
            return {name: jax_side.alone() if name == "alone" else jax_side.together()}
        case "members":
            return jax_side.member_rates()
        case "decoding":
            return jax_side.decoding_memory()
        case "memory":
            return {name: jax_side.memory(*MEMORY[name])}
        case _:
            return {name: jax_side.step(case)}


def summarize(case: str, rounds: dict[str, list[Row]]) -> dict[str, Any]:
    """Return medians over rounds, and ratios.

    For training and generation: the speedup of prompt_jax over each other side, and its peak memory relative to theirs.
    For `members`: the rate relative to one member. For `vote`: the time of the flat pass relative to single passes.
    """
    medians = {
        side: {name: statistics.median(row[name] for row in rows) for name in rows[0]} for side, rows in rounds.items()
    }
    summary: dict[str, Any] = {"sides": medians, "rounds": rounds}
    ours = medians.get("prompt_jax")
    if case in (*TRAINING, *GENERATIONS) and ours:
        others = {side: row for side, row in medians.items() if side != "prompt_jax"}
        summary["speed"] = {side: row["seconds"] / ours["seconds"] for side, row in others.items()}
        summary["memory"] = {side: ours["peak_mib"] / row["peak_mib"] for side, row in others.items()}
    if case == "members":
        summary["rate"] = {side: row["rate"] / medians["1"]["rate"] for side, row in medians.items()}
    if case == "vote":
        flat, singly = medians.values()
        summary["time"] = flat["seconds"] / singly["seconds"]
    return summary


def machine() -> dict[str, Any]:
    """Describe the machine."""
    model = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    # In a new process, because JAX reserves the accelerator's memory.
    command = [sys.executable, "-c", "import jax; print(jax.devices()[0].device_kind)"]
    device = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout.strip()
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "device": device,
        "python": platform.python_version(),
        "jax": importlib.metadata.version("jax"),
    }


if __name__ == "__main__":
    main()
