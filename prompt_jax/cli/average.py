"""`prompt-jax average`."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from prompt_jax.cli.common import show
from prompt_jax.errors import UserError

if TYPE_CHECKING:
    from prompt_jax.ensembles.members import LoadedPrompt
    from prompt_jax.prompt_files.io import PromptMetadata


@dataclasses.dataclass(frozen=True)
class Average:
    """Write the average of prompts, or with weights a point between or beyond them, as a prompt."""

    dest: tyro.conf.Positional[Path]
    """The .npz to write."""
    files: tyro.conf.Positional[tuple[Path, ...]]
    """Prompt files of one base, with prompts of one size; of an ensemble's file all members count."""
    weights: tuple[float, ...] | None = None
    """Of each prompt, in their order; they add up to 1. 1.5 -0.5 goes on from the second to the first and beyond it.
    Left out, all are equal."""


def run(args: Average) -> int:
    from prompt_jax.ensembles.average import average_prompts
    from prompt_jax.ensembles.members import check_distinct, check_one_base, read_members
    from prompt_jax.prompt_files.io import save_prompt

    if args.dest.suffix != ".npz":
        raise UserError(f"{args.dest}: what is averaged is a .npz; name it so (export writes other formats)")
    if args.dest.exists():
        raise UserError(f"{args.dest} is there already; the file to write comes first, and is a new one")
    check_distinct(args.files)
    members = read_members(args.files)
    check_one_base(members)
    prompt = average_prompts([member.prompt for member in members], args.weights, [str(member) for member in members])
    save_prompt(args.dest, prompt, _metadata(members, args.weights))
    show(f"wrote {args.dest}, the average of {len(members)} prompts")
    return 0


def _metadata(members: Sequence["LoadedPrompt"], weights: Sequence[float] | None) -> "PromptMetadata":
    """What all members say, and what the average is made of; scores and steps are nobody's."""
    from prompt_jax.prompt_files.io import PromptMetadata

    own = [member.metadata for member in members]
    bases = [metadata.base for metadata in own if metadata.base is not None]

    def common(name: str) -> Any:
        values = [getattr(metadata, name) for metadata in own]
        return values[0] if all(value == values[0] for value in values) else None

    # The last two names of each path: enough to know it by, and nothing of the machine.
    names = ["/".join([*member.path.parts[-2:]]) for member in members]
    numbered = [
        name if member.number is None else f"{name}, member {member.number}"
        for name, member in zip(names, members, strict=True)
    ]
    made_of: dict[str, Any] = {"average.of": numbered}
    if weights is not None:
        made_of["average.weights"] = list(weights)
    return PromptMetadata(
        base=bases[0] if bases else None,
        method=common("method"),
        placement=own[0].placement,
        shift_positions=own[0].shift_positions,
        task=common("task"),
        format=common("format"),
        settings=made_of,
    )
