"""Reproduce a table of the papers, from training to Markdown and a plot.

    python -m tools.reproduction                                 # list the tables
    python -m tools.reproduction domain-shift                    # the paper's table at its model sizes
    python -m tools.reproduction domain-shift --model demo       # its small edition, for two CPU cores
    python -m tools.reproduction domain-shift --model demo --quick --dry-run
    python -m tools.reproduction domain-shift -- --mesh.data 4 --mesh.model 8

A table is made by `prompt-jax` commands, which are listed below it. Seeds are members of an ensemble. Finished runs in
--out, also those of other tables, are reused, and interrupted ones resume. Several calls may run at once: one waits for
a run that another is making. A row whose data or checkpoint is missing is skipped with a one-line reason.
"""

import dataclasses
import json
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro

from prompt_jax import cli
from prompt_jax.errors import UserError
from tools.planner import parameters
from tools.reproduction import SMALL, TABLES
from tools.reproduction.markdown import commands_block, markdown, put
from tools.reproduction.plot import draw
from tools.reproduction.running import ROOT, Runner
from tools.reproduction.scores import Scores, supply
from tools.reproduction.table import short

PARAMETERS, PARAMETERS_TITLE = "parameters", "Trained and stored parameters"
LENGTHS = (1, 5, 20, 50, 100, 150)


@dataclasses.dataclass(frozen=True)
class Reproduce:
    """Reproduce tables of the papers. Writes each as Markdown, with the paper's figures, a plot and the commands.

    Words after ` -- ` are options for every training, e.g. `-- --mesh.model 8`.
    """

    tables: tyro.conf.Positional[tuple[str, ...]] = ()
    """Names of tables, or `all`. Without a name, all names are listed."""
    model: str | None = None
    """Base (a name or folder) that replaces the paper's. `demo` selects the small edition of a table, if it has one,
    with other data and less training; `all` then means the tables with one."""
    quick: bool = False
    """Use a few steps and examples of everything, as a test. The figures are meaningless."""
    train_options: tyro.conf.Suppress[tuple[str, ...]] = ()
    out: Path = Path("reproduction")
    """Folder of the tables, `runs/`, `evaluations/` and `logs/`."""
    data_dir: Path | None = None
    """Folder with E2E and other data (PROMPT_JAX_DATA in tasks/*.py)."""
    supplied: Path | None = None
    """JSON file with one table's figures for metrics that are not computed here: {ROW: {COLUMN: [FIGURE, ...]}}, with
    one figure per prompt, in the table's units."""
    into: Path | None = None
    """Markdown file in which each table replaces the text between `<!-- TABLE -->` and `<!-- /TABLE -->`. Plots go into
    the folder `results` beside it."""
    dry_run: bool = False
    """Only print the commands. Where a learning rate is searched for, they contain the first candidate."""


def main(argv: Sequence[str] | None = None) -> int:
    """Make the tables. Returns 0, 1 for an error or a row that could not be run, or 130 if interrupted."""
    words = list(sys.argv[1:] if argv is None else argv)
    end = words.index("--") if "--" in words else len(words)
    args = tyro.cli(Reproduce, args=words[:end], prog="python -m tools.reproduction", description=Reproduce.__doc__)
    args = dataclasses.replace(args, train_options=tuple(words[end + 1 :]))
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return _make(args)
    except UserError as error:
        print(f"reproduction: {error}", file=sys.stderr)
        return 1
    except UnicodeDecodeError as error:
        print(f"reproduction: --into {args.into} is not UTF-8 text: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"reproduction: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("reproduction: interrupted; repeat the command to resume", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)


def _make(args: Reproduce) -> int:
    if args.model is not None and Path(args.model).is_dir():
        args = dataclasses.replace(args, model=os.path.abspath(args.model))  # before commands run in ROOT
    if args.data_dir is not None and Path.cwd() != ROOT:  # commands run in ROOT
        args = dataclasses.replace(args, data_dir=Path(os.path.abspath(args.data_dir)))
    every = (*(SMALL if args.model == "demo" else TABLES), PARAMETERS)
    if not args.tables:
        for name in every:
            print(f"{name:24}{PARAMETERS_TITLE if name == PARAMETERS else TABLES[name](args.model).title}")
        return 0
    names = every if "all" in args.tables else args.tables
    known = (*TABLES, PARAMETERS)
    if unknown := set(names) - set(known):
        raise UserError(f"no table {sorted(unknown)[0]!r}; known tables: {', '.join(known)}")
    supplied = _check(args, names)
    complete = True
    for name in names:
        complete &= _parameters(args) if name == PARAMETERS else _table(name, args, supplied)
    return 0 if complete else 1


def _check(args: Reproduce, names: Sequence[str]) -> dict[str, Any]:
    """Check everything that could otherwise fail after hours of training. Returns the supplied figures."""
    if reserved := {"--name", "--runs"} & {word.partition("=")[0] for word in args.train_options}:
        raise UserError(f"{min(reserved)} is set for each run; use --out for the folder of all runs")
    if args.train_options:
        cli.parse(
            "train", [str(ROOT / "configs" / "demo.py"), *args.train_options]
        )  # exits with an error for an unknown option
    if args.into is not None:
        if args.quick:
            raise UserError("--quick makes meaningless figures, so it cannot be combined with --into")
        for name in names:
            put(args.into.read_text(), name, "")
    if not args.dry_run:
        args.out.mkdir(parents=True, exist_ok=True)
    if args.supplied is None:
        return {}
    if len(names) != 1 or names[0] == PARAMETERS:
        raise UserError("--supplied has the figures of one table: name exactly one")
    try:
        supplied = json.loads(args.supplied.read_text())
    except ValueError as error:
        raise UserError(f"--supplied {args.supplied} is not JSON: {error}") from error
    table = TABLES[names[0]](args.model)
    supply(table, [{} for _ in table.rows], supplied)
    return supplied


def _table(name: str, args: Reproduce, supplied: dict[str, Any]) -> bool:
    """Make one table. Returns whether it has all its rows."""
    table = TABLES[name](args.model)
    if args.model == "demo" and name not in SMALL:
        print(f"reproduction: {name} has no small edition, so this trains as long as the paper", file=sys.stderr)
    if args.model is not None and not (args.model == "demo" and name in SMALL):
        table = dataclasses.replace(table, title=f"{table.title}, with {args.model}")
    out = args.out if Path.cwd() == ROOT else Path(os.path.abspath(args.out))  # commands run in ROOT
    runner = Runner(out, args.quick, args.data_dir, args.dry_run, args.train_options)
    scores: list[Scores] = []
    missing: dict[str, list[str]] = {}
    for row in table.rows:
        found, wrong = runner.scores(row)
        scores.append(found)
        if wrong:
            missing[row.name] = wrong
            print(f"reproduction: {name}, {row.name}: {'; '.join(wrong)}", file=sys.stderr, flush=True)
    if args.dry_run:
        print("\n".join(runner.commands))
        return True
    supply(table, scores, supplied)
    if not runner.complete and args.into is not None:
        print(
            f"reproduction: {args.into} keeps its table {name}, because not all rows of the new one could be run",
            file=sys.stderr,
        )
        args = dataclasses.replace(args, into=None)
    plots = args.out if args.into is None else args.into.parent / "results"
    plots.mkdir(parents=True, exist_ok=True)
    plot = plots / f"{_stem(name, args)}.svg"
    drawn = draw(table, scores, plot)
    notes = [*table.notes]
    if runner.gains:
        gains = "\n".join(f"- {gain}" for gain in dict.fromkeys(runner.gains))
        notes.append(f"Gain of the vote, with 95 % bootstrap intervals over the test examples:\n\n{gains}")
    if args.quick:
        notes.append("Made with --quick: the figures are meaningless.")
    table = dataclasses.replace(table, notes=tuple(notes))
    shown = str(plot.relative_to(args.out if args.into is None else args.into.parent)) if drawn else None
    _write(name, markdown(table, scores, missing, shown) + commands_block(runner.commands), args)
    if drawn:
        print(f"wrote {plot}")
    return not missing


def _stem(name: str, args: Reproduce) -> str:
    """Return the name of a table's files, without their suffixes."""
    model = [] if args.model is None or args.into is not None else [short(args.model)]
    return "-".join((["quick"] if args.quick else []) + [name] + model)


def _parameters(args: Reproduce) -> bool:
    """Make table 4 of Lester et al. 2021, which needs no training."""
    models = parameters.T5 if args.model is None else (args.model,)
    command = (
        f"python -m tools.planner.parameters --models {shlex.join(models)} --lengths {' '.join(map(str, LENGTHS))}"
    )
    if args.dry_run:
        print(command)
        return True
    source = (
        "Lester et al. 2021, table 4, whose share for T5 large is a slip: 102,400 of 783,252,480 are 0.01307 %. Stored "
        "parameters are float32, without a prefix's MLP. Multitask prompts train parameters for 8 tasks together."
    )
    lines = "\n".join(parameters.table(models, LENGTHS))
    _write(PARAMETERS, f"### {PARAMETERS_TITLE}\n\n{source}\n\n{lines}\n{commands_block([command])}", args)
    return True


def _write(name: str, text: str, args: Reproduce) -> None:
    """Write and print a table."""
    if args.into is None:
        path = args.out / f"{_stem(name, args)}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    else:
        path = args.into
        path.write_text(put(path.read_text(), name, text))
    print(f"{text}\nwrote {path}")


if __name__ == "__main__":
    sys.exit(main())
