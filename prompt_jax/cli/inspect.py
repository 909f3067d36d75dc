"""`prompt-jax inspect`."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import tyro

from prompt_jax.cli.common import (
    BaseOptions,
    check_model,
    check_positive,
    load_base,
    print_escaped,
    print_note,
    read_chosen,
)
from prompt_jax.cli.source import ExampleOptions, check_source, read_examples
from prompt_jax.errors import UserError
from prompt_jax.report.terminal import Activity

if TYPE_CHECKING:
    from prompt_jax.checkpoints.load import Model
    from prompt_jax.data.examples import Examples
    from prompt_jax.ensembles.members import LoadedPrompt
    from prompt_jax.inspection.ablation import Ablation
    from prompt_jax.task_format import TaskFormat

_LIMIT = 100  # examples; each one runs once for each virtual token


@dataclasses.dataclass(frozen=True)
class Inspect:
    """Print where prompts come from, their norms, nearest vocabulary neighbors, and similarity to each other.

    With --task or --data, also print how much the loss rises when each virtual token is left out.
    """

    examples: ClassVar[tuple[str, ...]] = (
        "prompt-jax inspect runs/demo --task sentiment_movie --limit 40 --html prompts.html",
    )

    files: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="[FILE ...]", help_behavior_hint="")]
    """Prompt files or runs of one base. All members of an ensemble are used."""
    member: int | None = None
    """Use only this member of each ensemble, numbered from 0."""
    base: Annotated[BaseOptions, tyro.conf.arg(name="")] = BaseOptions()
    neighbors: int = 5
    """Number of nearest neighbors of each virtual token, by cosine and by Euclidean distance."""
    html: Path | None = None
    """Also write a self-contained HTML page with figures."""
    source: Annotated[ExampleOptions, tyro.conf.arg(name="")] = ExampleOptions(limit=_LIMIT)
    batch_size: int = 64
    """Rows in a batch. Each row is one example with a prompt that lacks one virtual token."""


def run(args: Inspect) -> int:
    with Activity("starting"):
        from prompt_jax.ensembles.members import check_one_base
        from prompt_jax.ensembles.tables import Table
        from prompt_jax.inspection.findings import collect_findings
        from prompt_jax.inspection.similarity import prompt_similarity
        from prompt_jax.inspection.text import describe, printable
        from prompt_jax.models.delta import check_ensemble

    if not args.files:
        raise UserError("name at least one prompt file, e.g. prompt-jax inspect runs/demo/best.npz")
    check_positive(neighbors=args.neighbors, limit=args.source.limit, batch_size=args.batch_size)
    check_source(args.source)
    members = read_chosen(args.files, args.member)
    if len(members) > 1:
        check_ensemble([member.prompt for member in members], [str(member) for member in members])
        if not args.base.allow_other_base:
            check_one_base(members)
    model = _model(args, members)
    ablations = _ablations(args, members, model)
    with Activity("finding neighbors"):
        findings = [
            collect_findings(str(member), member.prompt, member.metadata, model, args.neighbors, ablation)
            for member, ablation in zip(members, ablations, strict=True)
        ]
    print_escaped("\n\n".join(describe(each, model) for each in findings))
    if len(members) > 1 and members[0].prompt.parts:
        cosines = prompt_similarity([member.prompt for member in members])
        rows = [[f"{i} {printable(str(m))}", *(f"{c:.2f}" for c in cosines[i])] for i, m in enumerate(members)]
        print_escaped("\n" + Table("cosines of the prompts", [["", *map(str, range(len(members)))], *rows]).text())
    if args.html is not None:
        with Activity(f"writing {args.html}"):
            from prompt_jax.report.inspection_page import write_inspection

            write_inspection(args.html, findings, model)
        print_escaped(f"\nwrote {args.html}")
    return 0


def _model(args: Inspect, members: Sequence["LoadedPrompt"]) -> "Model | None":
    """Load the base. Return None if it is not available and no option needs it."""
    first = next((member for member in members if member.metadata.base is not None), members[0])
    try:
        model = load_base(first.path, first.metadata, args.base)
    except UserError as error:
        if args.base.model is not None or args.source.task is not None or args.source.data is not None:
            raise
        print_note(f"{error}\n")
        return None
    for member in members:
        check_model(member.path, member.prompt, member.metadata, model, args.base)
    return model


def _ablations(args: Inspect, members: Sequence["LoadedPrompt"], model: "Model | None") -> "list[Ablation | None]":
    """Return each prompt's ablation on the user's examples, in the prompt's task format; None without examples."""
    if model is None or (args.source.task is None and args.source.data is None):
        return [None] * len(members)
    from prompt_jax.inspection.ablation import leave_one_out

    read: dict[TaskFormat | None, Examples] = {}
    ablations: list[Ablation | None] = []
    for member in members:
        key = member.metadata.format if args.source.data is not None else None
        if key not in read:
            read[key], _ = read_examples(args.source, [member], model)
        with Activity(f"leaving out tokens of {member}") as activity:
            ablations.append(
                leave_one_out(
                    model, member.prompt, read[key], batch_size=args.batch_size, before_batch=activity.before_batch
                )
            )
    return ablations
