"""Compares training soft prompts here, one or an ensemble of them, with PEFT on PyTorch, side by side on this machine.

    pip install 'prompt-jax[demo,bench]'
    python -m tools.bench                     # all cases; a table of each kind, and bench.json
    python -m tools.bench --cases step reviews --rounds 5
    python -m tools.bench --cases ensemble members memory --sides prompt_jax alone         # without PyTorch
    python -m tools.bench --cases vote --prompts runs/five/best.npz

Every measurement is a process of its own, so that its peak memory is its own. The sides take turns, round by round,
and a ratio is of medians over rounds, since the speed of a shared machine changes from minute to minute. All sides
train in float32, with Adafactor as the prompt-tuning paper has it. `peak` is of the host's memory, `device` of the
accelerator's where it says. Cases:

    step      T5-small's shape, random weights, prompt 100, batch 8, source 128, target 16; dropout 0.1 on both sides
    step-0    the same without dropout
    reviews   the demo model on movie reviews at their true lengths, batch 32, prompt 20, from text to updated prompt;
              PEFT with its usual collator, which pads to the longest row of the batch
    gpt2-prompt, gpt2-prefix  GPT-2 small's shape, random weights, no dropout: prompt 100, batch 16, text 32; prefix 10,
              batch 8, text 128
    ensemble  as `step`, with 5 prompts: one step of all of them here, against five steps of our own one after the
              other (`alone`), and against five adapters of one base in PEFT, which are stepped in turn
    members   T5-small's shape, prompt 20, batch 1, source 16, target 16, no dropout: 1 to 64 prompts in one step
    memory    as `step`, with 1 to 16 prompts, all at once or (group 1) one after the other in one program
    t5-prompt-greedy  and the like, {t5,gpt2}-{prompt,prefix}-{greedy,beam5}: 32 tokens for 8 inputs, prompt 100 or
              prefix 10; T5-small's shape and source 128, or GPT-2 small's and a text of 32; PEFT with Hugging Face's
              generate
    decoding  the compiler's memory for beam 5 on GPT-2 small with a prefix of 200, by the number of inputs
    vote      answers of 5 prompts of the demo model to 256 reviews, 64 rows a batch: one flat pass, against a pass for
              each prompt. They are untrained, unless --prompts names an ensemble file; then the share of passes that a
              vote with early stop saves is measured too
    processes `prompt-jax train` of the demo, a step's rows or its 2 members divided over two processes with one core
              each, against one process with both cores
    checkpoint  as `step`, with 1 and 5 prompts: bytes of a checkpoint, and what a save costs training
    resume    `prompt-jax train` of the demo: from the command to its first step, without and with JAX's compilation
              cache
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

# Large pages for large arrays, for all sides: some 10 % of a step here is the kernel handing out small ones.
ENVIRONMENT = os.environ | {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}

Rows = dict[str, Row]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tools.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    parser.add_argument("--rounds", type=int, default=3, help="processes of each side and case")
    parser.add_argument("--prompts", type=Path, help="ensemble file of the demo model's prompts, for the case vote")
    parser.add_argument("--out", type=Path, default=Path("bench.json"))
    parser.add_argument("--measure", nargs=2, metavar=("CASE", "PROCESS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        case, name = args.measure
        print(json.dumps(measure(case, name, args.prompts)))
        return
    if args.prompts and not args.prompts.exists():
        parser.error(f"--prompts: there is no file {args.prompts}")
    planned = {case: names for case in args.cases if (names := processes(case, args.sides))}
    if not planned:
        parser.error(f"{', '.join(args.cases)}: not a case of {', '.join(args.sides)}")

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
    """The processes that a round of a case has: one a side, and for memory one a number of members and group."""
    chosen = [side for side in CASES[case] if side in sides]
    return list(MEMORY) if case == "memory" and chosen else chosen


def run(case: str, name: str, prompts: Path | None) -> Rows:
    """`measure` in a process of its own."""
    command = [sys.executable, "-m", "tools.bench", "--measure", case, name]
    command += ["--prompts", str(prompts)] if prompts else []
    shown = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, env=ENVIRONMENT).stdout
    return json.loads(shown.splitlines()[-1])


def measure(case: str, name: str, prompts: Path | None) -> Rows:
    """The rows of a case that one process gives. PyTorch is imported for PEFT alone, and JAX for our own sides."""
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
    """Medians over rounds, and ratios: in training how many times faster we are than each other side, and our share of
    its peak memory; the members' rate against that of one; the flat pass's time against that of single passes."""
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
    """What was measured on."""
    model = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    # JAX in a process of its own, since it would take the accelerator's memory.
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
