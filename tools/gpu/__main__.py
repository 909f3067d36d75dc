"""One part of tools/gpu.sh, or its report.

python -m tools.gpu PART FOLDER [--tiny]      # appends rows to FOLDER/PART.jsonl
python -m tools.gpu report FOLDER             # prints the table and writes FOLDER/gpu.json
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tools.bench.tables import markdown

# In this order; tools/gpu.sh has their time limits.
PARTS = ("check", "jax-t5", "jax-llama", "peft-t5", "peft-llama")
Rows = list[dict[str, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tools.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=(*PARTS, "report"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tiny", action="store_true", help="small shapes, also on a CPU, to test this script")
    args = parser.parse_args()
    if args.part == "report":
        sys.exit(report(args.folder))
    with (args.folder / f"{args.part}.jsonl").open("a") as file:
        for row in measure(args.part, args.tiny):
            print(json.dumps(row), file=file, flush=True)
            print(f"{args.part}: {json.dumps(row)}", file=sys.stderr, flush=True)


def measure(part: str, tiny: bool) -> Iterator[dict[str, Any]]:
    """Yield a part's rows; the first describes the machine. Only the parts `peft` use PyTorch."""
    side, _, model = part.partition("-")
    if side == "peft":
        from tools.gpu import peft_side as measuring
    else:
        from tools.gpu import jax_side as measuring
    machine = measuring.machine()
    if machine["platform"] == "cpu" and not tiny:
        raise SystemExit(f"tools.gpu {part}: no GPU; --tiny runs small shapes on a CPU")
    yield {"machine": machine}
    if part == "check":
        from tools.gpu import checks

        yield from checks.rows(tiny)
    else:
        yield from measuring.rows(model, tiny)


# --------------------------------------------------------------------------------------------------------------
# The report


def report(folder: Path) -> int:
    """Print one table of all rows, write gpu.json, and return the exit status: 1 if anything failed or is missing."""
    machine: dict[str, str] = {}
    rows: Rows = []
    failures = []
    for part in PARTS:
        lines = [json.loads(line) for line in _read(folder / f"{part}.jsonl").splitlines()]
        for line in lines:
            machine |= line.get("machine", {})
        rows += [{"part": part, **line} for line in lines if "machine" not in line]
        if reason := failure(_read(folder / f"{part}.status")):
            failures.append({"part": part, "case": "", "failed": reason})
    complete(rows)
    wrong = [row for row in rows if row.get("passed") is False]
    (folder / "gpu.json").write_text(
        json.dumps({"machine": machine, "rows": rows, "failures": failures}, indent=2) + "\n"
    )
    print(markdown([cells(row) for row in [*rows, *failures]]) if rows or failures else "no part ran")
    print(f"\n{', '.join(f'{name} {value}' for name, value in machine.items())}")
    for each in failures:
        print(f"FAILED: {each['part']} {each['failed']}")
    for each in wrong:
        print(f"WRONG: {each['case']}")
    return 1 if failures or wrong else 0


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def failure(status: str) -> str:
    """Return why a part is incomplete, from the exit status that tools/gpu.sh wrote; empty if it is complete."""
    match status.strip():
        case "0":
            return ""
        case "":
            return "was not started: no time was left"
        case "124" | "137":
            return "reached its time limit"
        case code:
            return f"ended with exit status {code}"


def complete(rows: Rows) -> None:
    """Add to the rows what follows from several of them: the share of the matmul rate, and the speed to PEFT.

    Both sides have the operations of prompt_jax's step.
    """
    of = {(row["part"], row["case"]): row for row in rows}
    for row in rows:
        side, _, model = row["part"].partition("-")
        ours, theirs = (of.get((f"{name}-{model}", row["case"]), {}) for name in ("jax", "peft"))
        if "flops" in ours:
            row["flops"] = ours["flops"]
        product = of.get((row["part"], "matmul"))
        if product and "flops" in row:
            rate = product["flops"] / product["seconds"]
            row["matmul_share"] = row["flops"] / row["seconds"] / rate
        if side == "jax" and "seconds" in theirs and row["case"] != "matmul":
            row["speed"] = theirs["seconds"] / row["seconds"]
            if "device_mib" in row and "device_mib" in theirs:
                row["memory"] = row["device_mib"] / theirs["device_mib"]


def cells(row: dict[str, Any]) -> dict[str, str]:
    """Return a row's cells by column title."""

    def shown(name: str, form: str, factor: float = 1.0) -> str:
        return f"{row[name] * factor:{form}}" if name in row else ""

    rate = {"rate": row["flops"] / row["seconds"]} if "flops" in row else {}
    examples = {"examples_rate": row["examples"] / row["seconds"]} if "examples" in row else {}
    row = row | rate | examples
    return {
        "part": row["part"],
        "case": row["case"],
        "seconds": shown("seconds", ".4f"),
        "examples/s": shown("examples_rate", ".1f"),
        "device, MiB": shown("device_mib", ".0f"),
        "TFLOP/s": shown("rate", ".3g", 1e-12),
        "of matmul": shown("matmul_share", ".0%"),
        "speed to peft": f"{row['speed']:.2f} x" if "speed" in row else "",
        "memory to peft": f"{row['memory']:.2f} x" if "memory" in row else "",
        "error": shown("error", ".1e"),
        "limit": shown("limit", ".0e"),
        "result": row.get("skipped") or row.get("failed") or {True: "ok", False: "WRONG"}.get(row.get("passed"), ""),
    }


if __name__ == "__main__":
    main()
