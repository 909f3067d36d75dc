"""Makes a table of the papers, from training to Markdown and plot.

    python -m tools.reproduction                                 # which tables there are
    python -m tools.reproduction domain-shift                    # the paper's, at its sizes
    python -m tools.reproduction domain-shift --model demo       # its small edition, on two CPU cores
    python -m tools.reproduction domain-shift --model demo --quick --dry-run
    python -m tools.reproduction domain-shift -- --mesh.data 4 --mesh.model 8

What a table needs is trained and evaluated by commands of `prompt-jax`, with seeds as members of an ensemble; the
commands stand below the table. What an earlier call, or another table, has left in --out is taken from there, and a run
that was interrupted goes on. Several calls may go side by side: one waits for a run that another is making. Rows whose
data or checkpoints are missing say so in a line, and the others are made.
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

PARAMETERS, PARAMETERS_TITLE = "parameters", "Parameters that are trained and stored"
LENGTHS = (1, 5, 20, 50, 100, 150)


@dataclasses.dataclass(frozen=True)
class Reproduce:
    """Run what a table of the papers needs, and write it as Markdown with the paper's figures, a plot and commands.

    What comes after ` -- ` are further options of every training, as in `-- --mesh.model 8`.
    """

    tables: tyro.conf.Positional[tuple[str, ...]] = ()
    """Names of tables, or `all`; none prints which there are."""
    model: str | None = None
    """Another base (a name or folder) in place of the paper's. `demo` is the small edition of a table that has one,
    with other data and less training; `all` is then those."""
    quick: bool = False
    """A few steps and examples of everything, to see that it runs; the figures say nothing."""
    further: tyro.conf.Suppress[tuple[str, ...]] = ()
    out: Path = Path("reproduction")
    """Folder of the tables, of `runs/`, `evaluations/` and `logs/`."""
    data_dir: Path | None = None
    """Folder with E2E and other data (PROMPT_JAX_DATA of tasks/*.py)."""
    supplied: Path | None = None
    """For one table: a JSON file with figures of metrics that are not computed here, as they are to be shown, {ROW:
    {COLUMN: [one for each prompt]}}."""
    into: Path | None = None
    """A Markdown file in which each table takes the place of what stands between `<!-- TABLE -->` and
    `<!-- /TABLE -->`; plots go into a folder `results` beside it."""
    dry_run: bool = False
    """Print the commands alone. Of learning rates that are searched for, they have the first."""


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, 1 for an error or a row that could not be run, 130 where it was interrupted."""
    words = list(sys.argv[1:] if argv is None else argv)
    end = words.index("--") if "--" in words else len(words)
    args = tyro.cli(Reproduce, args=words[:end], prog="python -m tools.reproduction", description=Reproduce.__doc__)
    args = dataclasses.replace(args, further=tuple(words[end + 1 :]))
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return _make(args)
    except UserError as error:
        print(f"reproduction: {error}", file=sys.stderr)
        return 1
    except UnicodeDecodeError as error:
        print(f"reproduction: --into {args.into}: no text in UTF-8: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"reproduction: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("reproduction: interrupted; the same command goes on from what is saved", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)


def _make(args: Reproduce) -> int:
    if args.model is not None and Path(args.model).is_dir():
        args = dataclasses.replace(args, model=os.path.abspath(args.model))  # as said from here
    if args.data_dir is not None and Path.cwd() != ROOT:  # which commands are started in
        args = dataclasses.replace(args, data_dir=Path(os.path.abspath(args.data_dir)))
    every = (*(SMALL if args.model == "demo" else TABLES), PARAMETERS)
    if not args.tables:
        for name in every:
            print(f"{name:24}{PARAMETERS_TITLE if name == PARAMETERS else TABLES[name](args.model).title}")
        return 0
    names = every if "all" in args.tables else args.tables
    known = (*TABLES, PARAMETERS)
    if unknown := set(names) - set(known):
        raise UserError(f"no table is called {sorted(unknown)[0]!r}; there are {', '.join(known)}")
    supplied = _check(args, names)
    complete = True
    for name in names:
        complete &= _parameters(args) if name == PARAMETERS else _table(name, args, supplied)
    return 0 if complete else 1


def _check(args: Reproduce, names: Sequence[str]) -> dict[str, Any]:
    """What could go wrong after hours of training: refused before. Gives the figures that are supplied."""
    if own := {"--name", "--runs"} & {word.partition("=")[0] for word in args.further}:
        raise UserError(f"{min(own)} is what each run has of its own here; --out is the folder of all of them")
    if args.further:
        cli.parse("train", [str(ROOT / "configs" / "demo.py"), *args.further])  # which leaves, and says which is none
    if args.into is not None:
        if args.quick:
            raise UserError("--quick makes figures that say nothing, which --into would put in place of others")
        for name in names:
            put(args.into.read_text(), name, "")
    if not args.dry_run:
        args.out.mkdir(parents=True, exist_ok=True)
    if args.supplied is None:
        return {}
    if len(names) != 1 or names[0] == PARAMETERS:
        raise UserError("--supplied has figures for one table; name one")
    try:
        supplied = json.loads(args.supplied.read_text())
    except ValueError as error:
        raise UserError(f"--supplied {args.supplied}: no JSON: {error}") from error
    table = TABLES[names[0]](args.model)
    supply(table, [{} for _ in table.rows], supplied)
    return supplied


def _table(name: str, args: Reproduce, supplied: dict[str, Any]) -> bool:
    """Makes one table. Returns whether it has all its rows."""
    table = TABLES[name](args.model)
    if args.model == "demo" and name not in SMALL:
        print(f"reproduction: {name} has no small edition: this is the paper's amount of training", file=sys.stderr)
    if args.model is not None and not (args.model == "demo" and name in SMALL):
        table = dataclasses.replace(table, title=f"{table.title}, with {args.model}")
    out = args.out if Path.cwd() == ROOT else Path(os.path.abspath(args.out))  # runs have this working directory
    runner = Runner(out, args.quick, args.data_dir, args.dry_run, args.further)
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
            f"reproduction: {args.into} keeps its table {name}, since not all of this one could be run", file=sys.stderr
        )
        args = dataclasses.replace(args, into=None)
    plots = args.out if args.into is None else args.into.parent / "results"
    plots.mkdir(parents=True, exist_ok=True)
    plot = plots / f"{_stem(name, args)}.svg"
    drawn = draw(table, scores, plot)
    notes = [*table.notes]
    if runner.gains:
        gains = "\n".join(f"- {gain}" for gain in dict.fromkeys(runner.gains))
        notes.append(f"What the vote gains, with 95 % bootstrap intervals over the test's examples:\n\n{gains}")
    if args.quick:
        notes.append("Made with --quick: the figures say nothing.")
    table = dataclasses.replace(table, notes=tuple(notes))
    shown = str(plot.relative_to(args.out if args.into is None else args.into.parent)) if drawn else None
    _write(name, markdown(table, scores, missing, shown) + commands_block(runner.commands), args)
    if drawn:
        print(f"wrote {plot}")
    return not missing


def _stem(name: str, args: Reproduce) -> str:
    """The name of a table's files."""
    model = [] if args.model is None or args.into is not None else [short(args.model)]
    return "-".join((["quick"] if args.quick else []) + [name] + model)


def _parameters(args: Reproduce) -> bool:
    """Table 4 of Lester et al. 2021, for which nothing is trained."""
    models = parameters.T5 if args.model is None else (args.model,)
    command = (
        f"python -m tools.planner.parameters --models {shlex.join(models)} --lengths {' '.join(map(str, LENGTHS))}"
    )
    if args.dry_run:
        print(command)
        return True
    source = (
        "Lester et al. 2021, table 4, whose share of T5 large is a slip: 102,400 of 783,252,480 are 0.01307 %. What is "
        "stored is in float32; the MLP of a prefix is not. What multitask prompts train is for 8 tasks together."
    )
    lines = "\n".join(parameters.table(models, LENGTHS))
    _write(PARAMETERS, f"### {PARAMETERS_TITLE}\n\n{source}\n\n{lines}\n{commands_block([command])}", args)
    return True


def _write(name: str, text: str, args: Reproduce) -> None:
    """Writes and prints a table."""
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
