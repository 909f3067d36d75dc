"""`prompt-jax similarity`."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import tyro

from prompt_jax.cli.common import choose_members, print_escaped, print_note
from prompt_jax.errors import UserError
from prompt_jax.report.terminal import Activity

if TYPE_CHECKING:
    from prompt_jax.ensembles.members import LoadedPrompt

_MATRIX = 12  # the terminal shows all pairs for up to this many prompts


@dataclasses.dataclass(frozen=True)
class Similarity:
    """Compare prompts in pairs, to find similar tasks (SPoT's retrieval)."""

    examples: ClassVar[tuple[str, ...]] = ("prompt-jax similarity runs",)

    paths: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="[PATH ...]", help_behavior_hint="")]
    """Prompt files, or folders of prompt files or runs. The prompt of a run is its best.npz."""
    member: int | None = None
    """Use only this member of each ensemble, numbered from 0."""
    html: Path | None = None
    """Also write a self-contained HTML page with heat maps."""


def run(args: Similarity) -> int:
    with Activity("starting"):
        from prompt_jax.ensembles.tables import Table
        from prompt_jax.inspection.similarity import nearest_others, task_similarity

    if not args.paths:
        raise UserError("name prompt files or a folder of them, e.g. prompt-jax similarity runs")
    with Activity("reading prompts") as activity:
        members, skipped = _read(list(_files(args.paths)), activity)
    members, skipped = _comparable(choose_members(members, args.member), skipped)
    for line in skipped:
        print_note(f"skipped {line}")
    if len(members) < 2:
        raise UserError(f"{len(members)} prompts to compare; name two or more that have the same parts, sizes and base")
    with Activity(f"comparing {len(members)} prompts"):
        means, pairs = task_similarity([member.prompt for member in members])
    names = [str(member) for member in members]
    order = nearest_others(means)
    rows = [
        [
            f"{i} {name}",
            f"{order[i][0]} {names[order[i][0]]}",
            *(f"{cosines[i, order[i][0]]:.3f}" for cosines in (means, pairs)),
        ]
        for i, name in enumerate(names)
    ]
    tables = [Table("each prompt and the most similar other, by cosine", [["", "", "mean tokens", "all pairs"], *rows])]
    if len(members) <= _MATRIX:
        for title, matrix in (("cosines of mean tokens", means), ("mean cosines of all pairs of tokens", pairs)):
            cells = [[str(i), *(f"{value:.3f}" for value in row)] for i, row in enumerate(matrix)]
            tables.append(Table(title, [["", *map(str, range(len(names)))], *cells]))
    print_escaped("\n\n".join(table.text() for table in tables))
    if args.html is not None:
        from prompt_jax.report.inspection_page import write_similarity

        with Activity(f"writing {args.html}"):
            write_similarity(args.html, names, means, pairs, skipped)
        print_escaped(f"\nwrote {args.html}")
    return 0


def _files(paths: Sequence[Path]) -> Iterator[Path]:
    """Yield the files, and from folders all files, PEFT folders, and the best prompts of runs."""
    from prompt_jax.prompt_files.io import is_prompt_folder

    for path in paths:
        if not path.is_dir() or is_prompt_folder(path):
            yield path
        elif (path / "best.npz").is_file():
            yield path / "best.npz"
        else:
            for child in sorted(path.iterdir()):
                if child.name.startswith("."):
                    continue
                if not child.is_dir() or is_prompt_folder(child):
                    yield child
                elif (child / "best.npz").is_file():
                    yield child / "best.npz"


def _read(files: Sequence[Path], activity: Activity) -> tuple[list["LoadedPrompt"], list[str]]:
    """Return the prompts of the files, and a reason for each file without prompts."""
    from prompt_jax.ensembles.members import read_members
    from prompt_jax.prompt_files.io import PromptFormatError

    members, skipped = [], []
    for number, path in enumerate(files):
        activity.update(number, len(files))
        try:
            members += read_members([path])
        except PromptFormatError as error:
            skipped.append(str(error))
        except FileNotFoundError:
            if not path.is_symlink():
                raise
            skipped.append(f"{path}: a broken link")
    return members, skipped


def _comparable(members: Sequence["LoadedPrompt"], skipped: Sequence[str]) -> tuple[list["LoadedPrompt"], list[str]]:
    """Return the prompts that can be compared with the first. Add the other prompts to `skipped`, with reasons."""
    from prompt_jax.ensembles.members import MemberError, check_one_base
    from prompt_jax.models.prompt import PromptStackError, check_stackable

    kept: list[LoadedPrompt] = []
    reasons = list(skipped)
    for member in members:
        first = kept[0] if kept else member
        try:
            check_stackable([first.prompt, member.prompt], [str(first), str(member)])
            check_one_base([first, member])
        except (PromptStackError, MemberError) as error:
            reasons.append(f"{member}: {error}")
        else:
            kept.append(member)
    return kept, reasons
