"""`prompt-jax average`."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import tyro

from prompt_jax.cli.common import print_escaped, read_chosen
from prompt_jax.errors import UserError
from prompt_jax.report.terminal import Activity

if TYPE_CHECKING:
    from prompt_jax.ensembles.members import LoadedPrompt
    from prompt_jax.prompt_files.io import PromptMetadata


@dataclasses.dataclass(frozen=True)
class Average:
    """Write the average or a weighted sum of prompts as a new prompt."""

    examples: ClassVar[tuple[str, ...]] = ("prompt-jax average a.npz b.npz between.npz --weights 0.3 0.7",)

    files: Annotated[
        tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="FILE ... DEST", help_behavior_hint="")
    ]
    """Prompt files or runs of the same base and size, then the .npz file to write. All members of an ensemble are
    used."""
    weights: tuple[float, ...] | None = None
    """One weight for each prompt; they must sum to 1. `1.5 -0.5` extrapolates from the second prompt past the first.
    None means equal weights."""
    member: int | None = None
    """Use only this member of each ensemble, numbered from 0."""
    overwrite: bool = False
    """Replace an existing DEST."""


def run(args: Average) -> int:
    with Activity("starting"):
        from prompt_jax.ensembles.average import average_prompts
        from prompt_jax.prompt_files.io import save_prompt

    members, dest = read_sources("average", args.files, args.member, args.overwrite)
    names = [str(member) for member in members]
    with Activity("averaging"):
        prompt = average_prompts([member.prompt for member in members], args.weights, names)
        weights = {} if args.weights is None else {"average.weights": list(args.weights)}
        save_prompt(dest, prompt, combined_metadata("average", members, weights))
    print_escaped(f"wrote {dest}, the average of {len(members)} prompts")
    return 0


def read_sources(
    verb: str, files: Sequence[Path], member: int | None, overwrite: bool
) -> tuple[list["LoadedPrompt"], Path]:
    """Return the prompts of all files but the last, which is the file to write, and that file.

    Raises:
      UserError: a file is missing or exists already, or the prompts have different bases.
    """
    from prompt_jax.ensembles.members import check_one_base

    if len(files) < 2:
        raise UserError(f"name prompt files and then the file to write, e.g. prompt-jax {verb} a.npz b.npz new.npz")
    *sources, dest = files
    if dest.suffix != ".npz":
        raise UserError(f"{dest}: DEST must end in .npz (export writes other formats)")
    if dest.exists() and not overwrite:
        raise UserError(f"{dest} exists already; the last file is the one to write: add --overwrite to replace it")
    members = read_chosen(sources, member)
    check_one_base(members)
    return members, dest


def combined_metadata(
    verb: str, members: Sequence["LoadedPrompt"], settings: Mapping[str, Any], frozen_tokens: int | None = None
) -> "PromptMetadata":
    """Return the metadata that all members share. The names of the members join the settings as `VERB.of`."""
    from prompt_jax.prompt_files.io import PromptMetadata

    metadata = [member.metadata for member in members]
    bases = [each.base for each in metadata if each.base is not None]

    def common(name: str) -> Any:
        values = [getattr(each, name) for each in metadata]
        return values[0] if all(value == values[0] for value in values) else None

    # The last two parts of each path identify the file and reveal nothing about the machine.
    names = ["/".join([*member.path.parts[-2:]]) for member in members]
    numbered = [
        name if member.number is None else f"{name}, member {member.number}"
        for name, member in zip(names, members, strict=True)
    ]
    return PromptMetadata(
        base=bases[0] if bases else None,
        method=common("method"),
        placement=metadata[0].placement,
        shift_positions=metadata[0].shift_positions,
        always_visible=metadata[0].always_visible,
        frozen_tokens=frozen_tokens if frozen_tokens is not None else common("frozen_tokens") or 0,
        task=common("task"),
        format=common("format"),
        settings={f"{verb}.of": numbered, **settings},
    )
