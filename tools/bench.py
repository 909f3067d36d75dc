"""Compares training soft prompts here, one or an ensemble of them, with PEFT on PyTorch, side by side on this machine.

    pip install 'prompt-jax[demo,bench]'
    python tools/bench.py                     # all cases; a table of each kind, and bench.json
    python tools/bench.py --cases step reviews --rounds 5
    python tools/bench.py --cases ensemble members memory --sides prompt_jax alone         # without PyTorch
    python tools/bench.py --cases vote --prompts runs/five/best.npz

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
import functools
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench_shared import GENERATIONS, MEMBERS, SHAPES, STEPS, Row

SIDES = ("prompt_jax", "alone", "peft")
CASES = {
    "step": ("prompt_jax", "peft"),
    "step-0": ("prompt_jax", "peft"),
    "reviews": ("prompt_jax", "peft"),
    "gpt2-prompt": ("prompt_jax", "peft"),
    "gpt2-prefix": ("prompt_jax", "peft"),
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
# Each of whose processes gives one side's row.
TRAINING = ("step", "step-0", "reviews", "gpt2-prompt", "gpt2-prefix", "ensemble")
# Members and group; a group of one member is all of one.
MEMORY = {
    f"{n}{at}": (n, group) for n in (1, 2, 4, 8, 16) for at, group in (("", None), (" by 1", 1)) if n > 1 or not at
}
# Large pages for large arrays, for all sides: some 10 % of a step here is the kernel handing out small ones.
ENVIRONMENT = os.environ | {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}

Rows = dict[str, Row]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
    command = [sys.executable, __file__, "--measure", case, name, *(["--prompts", str(prompts)] if prompts else [])]
    shown = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, env=ENVIRONMENT).stdout
    return json.loads(shown.splitlines()[-1])


def measure(case: str, name: str, prompts: Path | None) -> Rows:
    """The rows of a case that one process gives. PyTorch is imported for PEFT alone, and JAX for our own sides."""
    if name == "peft":
        import bench_peft

        run = bench_peft.ensemble if case == "ensemble" else None
        run = run or functools.partial(bench_peft.generation if case in GENERATIONS else bench_peft.single, case)
        return {name: run()}
    if case == "vote":
        import bench_vote

        return bench_vote.vote(prompts)
    if case in ("processes", "checkpoint", "resume"):
        import bench_runs

        return getattr(bench_runs, case)()
    import bench_ours

    if case in GENERATIONS:
        return {name: bench_ours.generation(case)}
    match case:
        case "reviews":
            return {name: bench_ours.review_steps()}
        case "ensemble":
            return {name: bench_ours.alone() if name == "alone" else bench_ours.together()}
        case "members":
            return bench_ours.member_rates()
        case "decoding":
            return bench_ours.decoding_memory()
        case "memory":
            return {name: bench_ours.memory(*MEMORY[name])}
        case _:
            return {name: bench_ours.step(case)}


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


# --------------------------------------------------------------------------------------------------------------
# Tables


def tables(cases: dict[str, Any]) -> list[str]:
    """The results as Markdown, a table of each kind."""
    single = {case: values for case, values in cases.items() if case in TRAINING and case != "ensemble"}
    kinds = [training_rows(group) for group in (single, {"ensemble": cases.get("ensemble")}) if any(group.values())]
    generated = {case: values for case, values in cases.items() if case in GENERATIONS}
    kinds += [generation_rows(generated)] if generated else []
    others = {
        "members": member_rows,
        "memory": memory_rows,
        "vote": vote_rows,
        "decoding": decoding_rows,
        "processes": process_rows,
        "checkpoint": checkpoint_rows,
        "resume": resume_rows,
    }
    return [markdown(rows) for rows in [*kinds, *(make(cases[case]) for case, make in others.items() if case in cases)]]


def markdown(rows: list[dict[str, str]]) -> str:
    """Rows of cells by their column's head; columns in which nothing stands are left out."""
    heads = [head for head in rows[0] if any(row[head] for row in rows)]
    lines = [heads, *([row[head] for head in heads] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    shown = [" | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    return "\n".join(f"| {line} |" for line in [shown[0], " | ".join("-" * width for width in widths), *shown[1:]])


def training_rows(cases: dict[str, Any]) -> list[dict[str, str]]:
    rows = []
    for case, values in cases.items():
        examples = SHAPES[case].batch * (MEMBERS if case == "ensemble" else 1)
        for side, row in values["sides"].items():
            cells = {
                "case": case,
                "side": side,
                "step, s": f"{row['seconds']:.3f}",
                "examples/s": f"{examples / row['seconds']:.1f}",
                **memory_cells(row),
                **matmul_cells(row),
            }
            for other in ("alone", "peft"):
                for ratio in ("speed", "memory"):
                    ours = side == "prompt_jax" and other in values[ratio]
                    cells[f"{ratio} to {other}"] = f"{values[ratio][other]:.2f} x" if ours else ""
            rows.append(cells)
    return rows


def generation_rows(cases: dict[str, Any]) -> list[dict[str, str]]:
    return [
        {
            "case": case,
            "side": side,
            "seconds": f"{row['seconds']:.3f}",
            **memory_cells(row),
            "speed to peft": f"{values['speed']['peft']:.2f} x" if side == "prompt_jax" and values["speed"] else "",
        }
        for case, values in cases.items()
        for side, row in values["sides"].items()
    ]


def decoding_rows(values: dict[str, Any]) -> list[dict[str, str]]:
    """What it would be if each row and beam had the prefix to itself is only to compare with."""
    return [
        {
            "case": "decoding",
            "inputs": inputs,
            "temporary, MiB": f"{row['temporary_mib']:.0f}",
            "prefix, MiB": f"{row['prefix_mib']:.1f}",
            "prefix once a row and beam, MiB": f"{5 * int(inputs) * row['prefix_mib']:.0f}",
        }
        for inputs, row in values["sides"].items()
    ]


def process_rows(values: dict[str, Any]) -> list[dict[str, str]]:
    sides, rows = values["sides"], []
    for name, row in sides.items():
        what, count = name.split(", ")
        alone = sides[f"{what}, 1"]["seconds"]
        rows.append(
            {
                "case": "processes",
                "divided": what,
                "processes": count,
                "step, s": f"{row['seconds']:.3f}",
                "time to one process": "" if count == "1" else f"{row['seconds'] / alone:.2f} x",
            }
        )
    return rows


def checkpoint_rows(values: dict[str, Any]) -> list[dict[str, str]]:
    return [
        {
            "case": "checkpoint",
            "members": members,
            "arrays, KiB": f"{row['arrays_kib']:.0f}",
            "files, KiB": f"{row['files_kib']:.0f}",
            "step, s": f"{row['seconds']:.3f}",
            "held up, s": f"{row['held']:.3f}",
            "of a step": f"{row['held'] / row['seconds']:.1%}",
            "lost in all, s": f"{row['lost']:.3f}",
        }
        for members, row in values["sides"].items()
    ]


def resume_rows(values: dict[str, Any]) -> list[dict[str, str]]:
    rows = []
    for name, row in values["sides"].items():
        run, cache = name.split(", ")
        rows.append({"case": "resume", "run": run, "cache": cache, "first step, s": f"{row['seconds']:.1f}"})
    return rows


def memory_cells(row: Row) -> dict[str, str]:
    device = f"{row['device_mib']:.0f}" if "device_mib" in row else ""
    return {"peak, MiB": f"{row['peak_mib']:.0f}", "device, MiB": device}


def matmul_cells(row: Row) -> dict[str, str]:
    """The rate of a step and its share of the side's own rate for matrices; in brackets the latter where operations
    are not counted."""
    if "flops" in row:
        rate = row["flops"] / row["seconds"]
        return {"GFLOP/s": f"{rate / 1e9:.0f}", "of matmul": f"{rate / row['matmul']:.0%}"}
    return {"GFLOP/s": "", "of matmul": f"({row['matmul'] / 1e9:.0f})" if "matmul" in row else ""}


def member_rows(values: dict[str, Any]) -> list[dict[str, str]]:
    return [
        {
            "case": "members",
            "members": members,
            "step, s": f"{row['seconds']:.4f}",
            "member-steps/s": f"{row['rate']:.1f}",
            "rate to 1": f"{values['rate'][members]:.2f} x",
        }
        for members, row in values["sides"].items()
    ]


def memory_rows(values: dict[str, Any]) -> list[dict[str, str]]:
    rows = []
    for name, row in values["sides"].items():
        members, group = MEMORY[name]
        sizes = {f"{part}, MiB": f"{row[f'{part}_mib']:.1f}" for part in ("base", "arguments", "temporary")}
        rows.append(
            {
                "case": "memory",
                "members": str(members),
                "at once": str(group or members),
                "step, s": f"{row['seconds']:.3f}",
                **memory_cells(row),
                **sizes,
            }
        )
    return rows


def vote_rows(values: dict[str, Any]) -> list[dict[str, str]]:
    rows = []
    for number, (side, row) in enumerate(values["sides"].items()):
        shares = {f"passes saved, {what}": row.get(f"saved_{what}") for what in ("answers", "labels")}
        rows.append(
            {
                "case": "vote",
                "side": side,
                "members": f"{row['members']:.0f}",
                "answers, s": f"{row['seconds']:.2f}",
                "time": f"{values['time']:.2f} x" if number == 0 else "",
                **{head: "" if share is None else f"{share:.0%}" for head, share in shares.items()},
            }
        )
    return rows


if __name__ == "__main__":
    main()
