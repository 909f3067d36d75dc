"""`prompt-jax evaluate`."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from prompt_jax.cli.common import Base, check_base, check_positive, harmless, load_base
from prompt_jax.cli.source import Source, check_source, read_examples
from prompt_jax.config import Decoding
from prompt_jax.errors import UserError

if TYPE_CHECKING:
    from prompt_jax.ensembles.members import Member


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Score prompts on a task: generated answers and, for a task with labels, the most probable label.

    Two or more prompts are an ensemble: each member, their average, the best one and the vote are scored.
    """

    files: tyro.conf.Positional[tuple[Path, ...]]
    """Prompt files; of an ensemble's file all members count, in their order."""
    base: Annotated[Base, tyro.conf.arg(name="")] = Base()
    source: Annotated[Source, tyro.conf.arg(name="")] = Source()
    metrics: tuple[str, ...] | None = None
    """Names of metrics; the task's own, or of --data the prompt's own, if left out."""
    batch_size: int = 64
    """Rows a batch: an example with the prompt of one member."""
    vote: Literal["majority", "mean-probability"] = "majority"
    """majority: the answer that most members give; of several the one with the highest log-probability summed over
    members, then the one of the earliest member. mean-probability: the label with the highest mean of the members'
    probabilities; for tasks with labels."""
    decoding: Decoding = Decoding()
    """How answers are generated."""
    early_stop: bool = False
    """Vote by majority without asking members about examples that are decided: the same votes for less work. Prints
    the vote and the share of passes saved alone, since the members' own scores are not known then."""
    out: Path | None = None
    """Write table.md, scores.json and predictions.jsonl, one JSON line an example, to this folder."""


def run(args: Evaluate) -> int:
    from prompt_jax.ensembles.members import check_distinct, read_members
    from prompt_jax.ensembles.outcome import evaluate_files

    if not args.files:
        raise UserError("name at least one prompt file, e.g. prompt-jax evaluate runs/demo/best.npz")
    check_positive(batch_size=args.batch_size, limit=args.source.limit)
    check_distinct(args.files)
    members = read_members(args.files)
    _check_together(args, members)
    first = next((member for member in members if member.metadata.base is not None), members[0])
    model = load_base(first.path, first.metadata, args.base)
    for member in members:
        check_base(member.path, member.prompt, member.metadata, model, args.base)
    examples, target_length = read_examples(args.source, members, model, args.metrics)
    outcome = evaluate_files(
        model,
        members,
        examples,
        target_length=target_length,
        batch_size=args.batch_size,
        decoding=args.decoding,
        vote=args.vote,
        early_stop=args.early_stop,
    )
    print(harmless("\n".join(table.text() for table in outcome.shown)))
    if args.out is not None:
        print(f"wrote {', '.join(map(str, outcome.write(args.out)))}")
    return 0


def _check_together(args: Evaluate, members: Sequence["Member"]) -> None:
    """Refuses options that do not go together, and members that cannot vote."""
    from prompt_jax.ensembles import members as ensemble
    from prompt_jax.models.prompt import check_alike

    source = args.source
    check_source(source, metrics=args.metrics)
    if args.early_stop and args.vote != "majority":
        raise UserError(f"--early-stop is for --vote majority: by {args.vote} every member counts to the end")
    if len(members) == 1:
        if args.early_stop or args.vote != "majority":
            raise UserError(f"--vote and --early-stop are for two prompts or more; {members[0]} is one")
        return
    if not args.base.allow_other_base:
        ensemble.check_one_base(members)
    ensemble.check_one_task(
        members,
        task_given=source.task is not None or source.data is not None,
        template_given=source.task is not None or source.template is not None,
        labels_given=source.labels is not None,
    )
    if source.task is None:
        ensemble.warn_of_lengths(members)
    check_alike([member.prompt for member in members], [str(member) for member in members])
