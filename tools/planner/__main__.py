"""Plan a run on TPUs without a TPU: compile its programs for a slice and print what they need per chip.

    pip install '.[tpu]'
    python -m tools.planner CONFIG --topology v5e:16x16 [OVERRIDES]
    python -m tools.planner CONFIG --topology v5e:16x16 --search [OVERRIDES]
    python -m tools.planner --all > tools/planner/plans.md

No weights are needed: the base, `model.name`, is a folder with a config.json, `demo`, or a published T5 1.1, GPT-2,
BART, Llama 3, Qwen3 or Gemma 3. Inputs and targets have the lengths `data.input_length` and `data.target_length`, by
default 512 and 16 tokens. The other options are those of `prompt-jax train`, including the mesh, e.g.
--mesh.data -1 --mesh.model 16.

A topology is a chip (v4, v5e, v5p, v6e) and the sizes of a slice in chips. --search chooses mesh, dtype, remat, member
group and evaluation batch: an analytic estimate selects a few candidates, and the compiler ranks them. --all plans an
ensemble of 32 prompts for sizes of T5 1.1, and of 8 prompts for current decoder-only models, on three slices each.
"""

import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import tyro

from prompt_jax import experiment as experiments
from prompt_jax.cli.train import choose_method
from prompt_jax.config.data import DataConfig
from prompt_jax.config.ensemble import EnsembleConfig
from prompt_jax.config.mesh import MeshConfig
from prompt_jax.config.model import Dtype, ModelConfig
from prompt_jax.config.train import TrainConfig
from prompt_jax.distributed.chips import GIB
from prompt_jax.distributed.costs import choose_mesh, evaluation_rows, training_cost
from prompt_jax.distributed.sharding import make_mesh, mesh_shape
from prompt_jax.errors import ConfigError, MissingPackage, UserError
from prompt_jax.experiment import Experiment
from prompt_jax.training.choices import workload
from tools.planner.chips import Topology, TopologyError, topology
from tools.planner.estimate import Estimate, TooLarge, estimate
from tools.planner.programs import base_config, lengths, programs, with_choices
from tools.planner.search import candidates, largest_evaluation, mesh_label, options, rank

# Settings that libtpu would otherwise query from a TPU host. The last one allows several planners at once.
NO_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}

SLICES = {
    "v5e-8": "v5e:2x4",
    "v5e-16": "v5e:4x4",
    "v5e-256": "v5e:16x16",
    "v5p-64": "v5p:2x4x4",
    "v6e-16": "v6e:4x4",
}

ASSUMPTIONS = """\
Sizes, operations and times are per chip. Memory is the compiler's account: arguments are the base, prompts, optimizer
states and the batch; `full` is the share of the chip's memory that arguments, temporaries, outputs and code fill. For
a program that does not fit, the table shows the memory that it would need.

Operations (TFLOP) and memory traffic (GB) are counted in the compiled program: its matrix products, and the reads and
writes of each operation in the chip's main memory. Loops count once per iteration. Collectives are the bytes per chip
of what is reduced or gathered. Kernels count their cost estimates. The times follow from these, the documented peak
rates, and 1 us per hop between chips. In a step, computation and memory traffic overlap. An asynchronous collective
overlaps with the matrix products between its start and its end; the time of other collectives is added. MFU counts the
model's operations without recomputation, as a share of the chips' peak. So the step time is a lower bound and MFU an
upper bound, which no real program reaches. Generation is for the longest inputs, with answers of the longest length.
"""

Result = Estimate | TooLarge


def _tuned(members: int, rows: int, input_length: int, *, dtype: Dtype, dropout_rate: float = 0.0) -> Experiment:
    return Experiment(
        model=ModelConfig(dtype=dtype, remat="full"),
        data=DataConfig(task="any", input_length=input_length, target_length=16),
        train=TrainConfig(batch_size=32, eval_batch_size=rows, dropout_rate=dropout_rate),
        ensemble=EnsembleConfig(size=members, group=1),
    )


class Sheet(NamedTuple):
    """Models to plan the same experiment for, on several slices."""

    title: str
    models: tuple[str, ...]
    slices: tuple[str, ...]
    experiment: Experiment
    before: str = ""  # earlier results


SHEETS = (
    Sheet(
        "T5 1.1",
        tuple(f"google/t5-v1_1-{size}" for size in ("base", "xl", "xxl")),
        ("v5e-16", "v5e-256", "v6e-16"),
        _tuned(members=32, rows=64, input_length=512, dtype="bfloat16", dropout_rate=0.1),
        before="""\
Before attention and feed-forward sublayers were fused and the base could be fully sharded, the MFU of these training
steps without dropout was 50 % (base on v5e), 72 % (XL on v5e; 25 % with dropout), 17 % (XXL on v5e-256, 32 x 1 x 8,
1558 ms), and 17 %, 35 % and 14 % (base, XL and XXL on v6e).
""",
    ),
    Sheet(
        "Llama 3, Qwen3 and Gemma 3",
        (
            *("meta-llama/Meta-Llama-3-8B", "meta-llama/Meta-Llama-3-70B"),
            *(f"Qwen/Qwen3-{size}" for size in ("0.6B", "8B", "32B")),
            *(f"google/gemma-3-{size}-pt" for size in ("1b", "27b")),
        ),
        ("v5e-8", "v5e-256", "v5p-64"),
        _tuned(members=8, rows=16, input_length=2048, dtype="int8"),
        before="""\
When prompt, source and target had a loop over the layers each, the MFU of fully sharded training steps was 57 %
(Qwen3 32B on v5e-8) and 48 % (Gemma 3 27B on v5e-8, 8 parts), and 52 %, 52 % and 49 % (Llama 3 70B, Qwen3 32B and
Gemma 3 27B on v5e-256).
""",
    ),
)


@dataclasses.dataclass(frozen=True)
class Plan:
    """Print what a run needs per chip of a TPU slice, and lower bounds for its step times. No TPU is needed."""

    config: tyro.conf.Positional[Path]
    """A configuration file that builds an Experiment. It must come first."""
    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    topology: str
    """The slice in chips, e.g. v4:2x2x4, v5e:16x16, v5p:2x4x4 or v6e:4x4."""
    search: bool = False
    """Choose the mesh, a dtype (model.dtype, or bfloat16 or int8 if narrower), remat, the member group and the
    evaluation batch."""
    json: bool = False
    """Print a JSON object instead of a table."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the planner. Returns 0, even if a program is too large; 1 for an error; 2 for wrong arguments."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv:
        print(__doc__)
        return 2
    try:
        args = None if argv == ["--all"] else parse(argv)
        try:
            import libtpu  # noqa: F401
        except ImportError:
            raise MissingPackage("libtpu is missing (Linux only): pip install '.[tpu]'") from None
        os.environ |= NO_TPU
        jax.config.update("jax_platforms", "cpu")
        if args is None:
            all_plans()
        elif args.search:
            search(args)
        else:
            plan(args)
    except (UserError, TopologyError) as error:
        print(f"planner: {error}", file=sys.stderr)
        return 1
    return 0


def parse(words: Sequence[str]) -> Plan:
    """Parse the arguments. Exit with a message if they are wrong."""
    named = not words[0].startswith("-")
    experiment, rest = choose_method(
        experiments.load_experiment(Path(words[0])) if named else Experiment(), words[named:]
    )
    default = Plan(Path(words[0] if named else "CONFIG"), experiment, topology=tyro.MISSING)
    args = tyro.cli(Plan, default=default, args=rest, prog="python -m tools.planner")
    if not named:
        raise ConfigError("expected a configuration file first, e.g. python -m tools.planner configs/boolq.py")
    return args


def plan(args: Plan) -> None:
    """Print the plan of one experiment."""
    where = topology(args.topology)
    experiment = args.experiment
    if experiment.mesh.auto:
        experiment = dataclasses.replace(experiment, mesh=_mesh(experiment, where))
    experiment = with_choices(experiment, where.devices)
    results = [estimate(program, where) for program in programs(experiment, where.devices)]
    summary = _summary(experiment, where)
    if args.json:
        print(json.dumps(summary | {"programs": [_as_json(each) for each in results]}, indent=2))
        return
    print("\n".join(f"{name}: {value}" for name, value in summary.items()))
    print("\n" + "\n".join(table([(each.program, each) for each in results])))
    print("\n" + ASSUMPTIONS, end="")


def search(args: Plan) -> None:
    """Print the best ways to run an experiment, and the options of the best one."""
    where = topology(args.topology)
    ranked = rank(candidates(args.experiment, where), where)
    best, generated = largest_evaluation(ranked[0][0].experiment, where)
    if args.json:
        plans = [
            {"candidate": candidate.label, "estimated_seconds": candidate.cost.seconds}
            | {"estimated_memory": candidate.cost.memory, "programs": list(map(_as_json, results))}
            for candidate, results in ranked
        ]
        result = {"options": options(best), "candidates": plans, "generation": _as_json(generated)}
        print(json.dumps(result, indent=2))
        return
    rows = [(f"{candidate.label}, {each.program}", each) for candidate, results in ranked for each in results]
    rows.append((f"generation, {best.train.eval_batch_size} rows", generated))
    print("\n".join(table(rows)))
    for candidate, _ in ranked:
        cost = candidate.cost
        print(
            f"\nanalytic estimate, {candidate.label}: {cost.memory / GIB:.1f} GiB, {_short(cost.seconds * 1e3)} ms",
            end="",
        )
    print(f"\n\nfastest: {options(best)}\n\n{ASSUMPTIONS}", end="")


def _summary(experiment: Experiment, where: Topology) -> dict[str, Any]:
    mesh, (source, target) = make_mesh(experiment.mesh, list(where.devices)), lengths(experiment)
    members = experiments.members(experiment)
    group = experiment.ensemble.group
    return {
        "base": f"{experiment.model.name}, {experiment.model.dtype}, remat {experiment.model.remat}",
        "members": f"{len(members)}, in groups of {group}" if group and len(members) > 1 else len(members),
        "batch": f"{experiment.train.batch_size} per member, {source} + {target} tokens per row",
        "dropout": experiment.train.dropout_rate,
        "generation": f"{experiment.train.eval_batch_size} rows",
        "topology": f"{where.name}, {len(where.devices)} chips of {where.chip.memory / GIB:.0f} GiB",
        "mesh": " x ".join(f"{name} {size}" for name, size in mesh_shape(mesh).items()),
    }


def _as_json(result: Result) -> dict[str, Any]:
    derived = {"seconds": result.seconds, "bound": result.bound} if isinstance(result, Estimate) else {}
    return dataclasses.asdict(result) | derived


# --------------------------------------------------------------------------------------------------------------
# Tables

_COLUMNS = (
    *("", "arguments", "temporaries", "outputs", "full", "TFLOP", "traffic", "collectives"),
    *("compute", "memory", "interconnect", "step", "bound by", "MFU"),
)


def table(rows: Sequence[tuple[str, Result]]) -> list[str]:
    """Return the lines of a Markdown table with one row per result."""
    cells = [_COLUMNS, *((name, *_cells(result)) for name, result in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(_COLUMNS))]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
    return [f"| {line} |" for line in (lines[0], " | ".join("-" * width for width in widths), *lines[1:])]


def _cells(result: Result) -> tuple[str, ...]:
    if isinstance(result, TooLarge):
        text = f"too large: needs {result.used / GIB:.1f} GiB, available are {result.available / GIB:.1f}"
        return "", "", "", text, *[""] * (len(_COLUMNS) - 5)
    whole = result.arguments + result.temporaries + result.outputs + result.code
    times = (result.compute, result.transfer, result.interconnect, result.seconds)
    return (
        *(f"{size / GIB:.2f} GiB" for size in (result.arguments, result.temporaries, result.outputs)),
        f"{whole / result.memory:.0%}",
        _short(result.flops / 1e12),
        f"{_short(result.traffic / 1e9)} GB",
        ", ".join(_collectives(result)) or "none",
        *(f"{_short(seconds * 1e3)} ms" for seconds in times),
        result.bound,
        f"{result.utilization:.0%}",
    )


def _collectives(result: Estimate) -> Iterator[str]:
    for kind, (count, size) in sorted(result.collectives.items()):
        overlapping = result.overlapping[kind][1] if kind in result.overlapping else 0.0
        suffix = f" ({_short(overlapping / 1e9)} GB overlap)" if overlapping else ""
        yield f"{count} {kind} {_short(size / 1e9)} GB{suffix}"


def _short(number: float) -> str:
    """Format a number with three significant digits, and at most three decimals."""
    digits = next((digits for digits, least in ((0, 100), (1, 10), (2, 1)) if number >= least), 3)
    return f"{number:.{digits}f}"


def all_plans() -> None:
    """Print the tables of all sheets as a complete file."""
    print("# What fits on which TPU\n")
    print(f"`python -m tools.planner --all > tools/planner/plans.md`, jax {jax.__version__}. No TPU was used.\n")
    print(ASSUMPTIONS)
    for sheet in SHEETS:
        source, target = lengths(sheet.experiment)
        model, train, ensemble = sheet.experiment.model, sheet.experiment.train, sheet.experiment.ensemble
        print(f"## {sheet.title}\n")
        print(
            f"In {model.dtype}, with {ensemble.size} soft prompts of {sheet.experiment.prompt.stored_length} tokens at "
            f"once, {ensemble.group} at a time on each device. A step has a batch of\n{train.batch_size} per member, "
            f"{source} tokens in and {target} out, with remat {model.remat} and dropout {train.dropout_rate:g}. "
            f"Generation has at most {train.eval_batch_size} rows.\nThe mesh, ensemble x data x model, and the number "
            "of parts of a batch (train.accumulate) have the\nshortest estimated step (mesh.auto).\n"
        )
        if sheet.before:
            print(sheet.before)
        for title in sheet.slices:
            where = topology(SLICES[title])
            print(f"### {title}: {where.name}, {len(where.devices)} chips of {where.chip.memory / GIB:.0f} GiB\n")
            print("\n".join(table(_rows(sheet, title, where))) + "\n", flush=True)


def _rows(sheet: Sheet, title: str, where: Topology) -> list[tuple[str, Result]]:
    rows = []
    for name in sheet.models:
        named = dataclasses.replace(sheet.experiment, model=dataclasses.replace(sheet.experiment.model, name=name))
        experiment = _fitted(with_choices(named, where.devices), where)
        parts = experiment.train.accumulate
        mesh = mesh_label(experiment.mesh) + (f", {parts} parts" if parts > 1 else "")
        short = name.partition("/")[2].removeprefix("t5-v1_1-").removeprefix("Meta-").removesuffix("-pt")
        for program in programs(experiment, where.devices):
            print(f"{title}, {name}, {program.name}", file=sys.stderr, flush=True)
            what = "training step"
            if program.name == "generation":
                what = f"generation of {experiment.train.eval_batch_size}"
            rows.append((f"{short}, {mesh}, {what}", estimate(program, where)))
        jax.clear_caches()
    return rows


def _fitted(experiment: Experiment, where: Topology) -> Experiment:
    """Return the experiment with the mesh and the number of parts of a batch that make its estimated step shortest.

    The evaluation batch fits too.
    """
    config, train = base_config(experiment.model.name), experiment.train
    fitting = []
    for parts in (n for n in range(1, train.batch_size + 1) if train.batch_size % n == 0):
        in_parts = dataclasses.replace(experiment, train=dataclasses.replace(train, accumulate=parts))
        work = workload(in_parts, config)
        with contextlib.suppress(ConfigError):
            mesh = choose_mesh(config, work, where.chip, len(where.devices))
            seconds = training_cost(config, work, mesh, where.chip).seconds
            fitting.append((seconds, dataclasses.replace(in_parts, mesh=mesh)))
    if fitting:
        experiment = min(fitting, key=lambda each: each[0])[1]
    else:
        experiment = dataclasses.replace(experiment, mesh=MeshConfig(model=len(where.devices)))
    mesh = experiment.mesh
    most = evaluation_rows(config, workload(experiment, config), mesh, where.chip)
    rows = max(1, min(train.eval_batch_size, most))
    return dataclasses.replace(experiment, train=dataclasses.replace(experiment.train, eval_batch_size=rows))


if __name__ == "__main__":
    sys.exit(main())
