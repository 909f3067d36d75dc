"""Makes a table of the papers, from training to Markdown and plot.

    python tools/reproduce.py                                 # which tables there are
    python tools/reproduce.py domain-shift                    # the paper's, at its sizes
    python tools/reproduce.py domain-shift --model demo       # its small edition, on two CPU cores
    python tools/reproduce.py domain-shift --model demo --quick --dry-run

What a table needs is trained and evaluated by commands of `prompt-jax`, with seeds as members of an ensemble; the
commands stand below the table. What an earlier call, or another table, has left in --out is taken from there, and a run
that was interrupted goes on. Rows whose data or checkpoints are missing say so in a line, and the others are made.
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import parameters
import tyro
from reproduction import TABLES
from reproduction.running import Runner, Scores, StepFailed
from reproduction.table import Table
from reproduction.writing import draw, markdown

from prompt_jax.errors import UserError
from prompt_jax.metrics import is_share

PARAMETERS, PARAMETERS_TITLE = "parameters", "Parameters that are trained and stored"
LENGTHS = (1, 5, 20, 50, 100, 150)


@dataclasses.dataclass(frozen=True)
class Reproduce:
    """Run what a table of the papers needs, and write it as Markdown with the paper's figures, a plot and commands."""

    tables: tyro.conf.Positional[tuple[str, ...]] = ()
    """Names of tables, or `all`; none prints which there are."""
    model: str | None = None
    """`demo` is the small edition of a table: other data and less training. Another base (a name or folder) takes the
    place of the paper's. Left out, the paper's own."""
    quick: bool = False
    """A few steps and examples of everything, to see that it runs; the figures say nothing."""
    out: Path = Path("reproduction")
    """Folder of the tables, of `runs/` and `evaluations/`."""
    data_dir: Path | None = None
    """Folder with E2E and other data (PROMPT_JAX_DATA of tasks/*.py)."""
    supplied: Path | None = None
    """A JSON file with figures of metrics that are not computed here, as they are to be shown: {ROW: {COLUMN: [one for
    each prompt]}}."""
    into: Path | None = None
    """A Markdown file in which each table takes the place of what stands between `<!-- TABLE -->` and
    `<!-- /TABLE -->`; plots go into a folder `results` beside it."""
    dry_run: bool = False
    """Print the commands alone. Of learning rates that are searched for, they have the first."""


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 1 for an error or a row that could not be run."""
    args = tyro.cli(Reproduce, args=argv, prog="reproduce.py", description=Reproduce.__doc__)
    try:
        return _make(args)
    except UserError as error:
        print(f"reproduce: {error}", file=sys.stderr)
        return 1


def _make(args: Reproduce) -> int:
    if not args.tables:
        for name, make in TABLES.items():
            print(f"{name:24}{make(args.model).title}")
        print(f"{PARAMETERS:24}{PARAMETERS_TITLE}")
        return 0
    known = (*TABLES, PARAMETERS)
    names = known if args.tables == ("all",) else args.tables
    if unknown := set(names) - set(known):
        raise UserError(f"no table is called {sorted(unknown)[0]!r}; there are {', '.join(known)}")
    complete = True
    for name in names:
        complete &= _parameters(args) if name == PARAMETERS else _table(name, args)
    return 0 if complete else 1


def _table(name: str, args: Reproduce) -> bool:
    """Makes one table. Returns whether it has all its rows."""
    table = TABLES[name](args.model)
    runner = Runner(args.out.resolve(), args.quick, args.data_dir, args.dry_run)
    scores: list[Scores] = []
    missing: dict[str, str] = {}
    for row in table.rows:
        try:
            scores.append(runner.scores(row))
        except StepFailed as error:
            print(f"reproduce: {name}, {row.name}: {error}", file=sys.stderr, flush=True)
            missing[row.name] = str(error)
            scores.append({})
    if args.dry_run:
        print("\n".join(runner.commands))
        return True
    if args.supplied is not None:
        supply(table, scores, args.supplied)
    plots = args.out if args.into is None else args.into.parent / "results"
    plots.mkdir(parents=True, exist_ok=True)
    plot = plots / f"{name}.svg"
    drawn = draw(table, scores, plot)
    if args.quick:
        table = dataclasses.replace(table, notes=(*table.notes, "Made with --quick: the figures say nothing."))
    shown = str(plot.relative_to(args.out if args.into is None else args.into.parent)) if drawn else None
    text = markdown(table, scores, missing, shown) + _commands(runner.commands)
    _write(name, text, args)
    if drawn:
        print(f"wrote {plot}")
    return not missing


def supply(table: Table, scores: Sequence[Scores], path: Path) -> None:
    """Puts the figures of a file among the scores of the rows.

    Raises:
      UserError: the file is not what it should be, or names what is not in the table.
    """
    try:
        supplied = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"--supplied {path}: cannot be read: {error}") from error
    columns = {column.title: column for column in table.columns}
    rows = {row.name: own for row, own in zip(table.rows, scores, strict=True)}
    if not isinstance(supplied, dict):
        raise UserError(f"--supplied {path}: expected {{ROW: {{COLUMN: [FIGURE, ...]}}}}, not {supplied!r}")
    for row, figures in supplied.items():
        if row not in rows or not isinstance(figures, dict):
            raise UserError(f"--supplied {path}: {row!r} is no row with its figures; rows are {', '.join(rows)}")
        for title, values in figures.items():
            column = columns.get(title)
            if column is None or column.task is None:
                raise UserError(f"--supplied {path}: no column {title!r} of a metric; there are {', '.join(columns)}")
            if not isinstance(values, list) or not all(type(value) in (int, float) for value in values):
                raise UserError(f"--supplied {path}: {row!r}, {title!r} must be a list of numbers, not {values!r}")
            scale = 100 if is_share(column.metric) else 1
            rows[row][column.task, column.split, column.metric] = [value / scale for value in values]


def _parameters(args: Reproduce) -> bool:
    """Table 4 of Lester et al. 2021, for which nothing is trained."""
    models = parameters.T5 if args.model is None else (args.model,)
    command = f"python tools/parameters.py --models {' '.join(models)} --lengths {' '.join(map(str, LENGTHS))}"
    if args.dry_run:
        print(command)
        return True
    source = (
        "Lester et al. 2021, table 4, whose share of T5 large is a slip: 102,400 of 783,252,480 are 0.01307 %. What is "
        "stored is in float32; the MLP of a prefix is not."
    )
    lines = "\n".join(parameters.table(models, LENGTHS))
    _write(PARAMETERS, f"### {PARAMETERS_TITLE}\n\n{source}\n\n{lines}\n{_commands([command])}", args)
    return True


def _write(name: str, text: str, args: Reproduce) -> None:
    """Writes and prints a table."""
    if args.into is None:
        path = args.out / f"{name}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    else:
        path = args.into
        path.write_text(put(path.read_text(), name, text))
    print(f"{text}\nwrote {path}")


def _commands(commands: Sequence[str]) -> str:
    lines = "\n".join(f"    {command}" for command in commands)
    return f"\n<details><summary>Commands</summary>\n\n{lines}\n\n</details>\n"


def put(text: str, name: str, table: str) -> str:
    """A text with the table between its two marks, in place of what is there.

    Raises:
      UserError: the text has no such marks.
    """
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise UserError(f"--into: the file has no place for the table: {begin.strip()} and, below it, {end}")
    return f"{before}{begin}{table}{end}{after}"


if __name__ == "__main__":
    sys.exit(main())
