"""The results of the benchmark as Markdown."""

from typing import Any

from tools.bench.cases import GENERATIONS, MEMBERS, MEMORY, SHAPES, TRAINING, Row


def tables(cases: dict[str, Any]) -> list[str]:
    """Return the results as Markdown, one table per kind of case."""
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
    """Format rows, given as cells by column title, as a Markdown table without its empty columns."""
    titles = [title for title in rows[0] if any(row[title] for row in rows)]
    lines = [titles, *([row[title] for title in titles] for row in rows)]
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
    """The last column is computed for comparison: the prefix's memory if it were stored once per row and beam."""
    return [
        {
            "case": "decoding",
            "inputs": inputs,
            "temporary, MiB": f"{row['temporary_mib']:.0f}",
            "prefix, MiB": f"{row['prefix_mib']:.1f}",
            "prefix per row and beam, MiB": f"{5 * int(inputs) * row['prefix_mib']:.0f}",
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
                "split": what,
                "processes": count,
                "step, s": f"{row['seconds']:.3f}",
                "time vs. one process": "" if count == "1" else f"{row['seconds'] / alone:.2f} x",
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
            "blocked, s": f"{row['held']:.3f}",
            "of a step": f"{row['held'] / row['seconds']:.1%}",
            "total cost, s": f"{row['lost']:.3f}",
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
    """Return a step's rate and its share of the side's rate for large matrix products.

    Where operations are not counted, the latter rate is in parentheses.
    """
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
