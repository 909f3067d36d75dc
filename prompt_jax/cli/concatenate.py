"""`prompt-jax concatenate`."""

import dataclasses
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from prompt_jax.cli.average import combined_metadata, read_sources
from prompt_jax.cli.common import print_escaped
from prompt_jax.report.terminal import Activity


@dataclasses.dataclass(frozen=True)
class Concatenate:
    """Write several prompts or prefixes, one after the other, as a new one."""

    examples: ClassVar[tuple[str, ...]] = ("prompt-jax concatenate manual.npz style.npz both.npz",)

    files: Annotated[
        tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="FILE ... DEST", help_behavior_hint="")
    ]
    """Prompt files or runs of the same base, in order, then the .npz file to write. All members of an ensemble are
    used."""
    member: int | None = None
    """Use only this member of each ensemble, numbered from 0."""
    overwrite: bool = False
    """Replace an existing DEST."""


def run(args: Concatenate) -> int:
    with Activity("starting"):
        from prompt_jax.models.prompt import concatenate_prompts
        from prompt_jax.prompt_files.io import save_prompt

    members, dest = read_sources("concatenate", args.files, args.member, args.overwrite)
    prompt = concatenate_prompts([member.prompt for member in members], [str(member) for member in members])
    frozen = members[0].metadata.frozen_tokens  # only these stand at the start of the result
    save_prompt(dest, prompt, combined_metadata("concatenate", members, {}, frozen))
    slots = max(part.slots for part in prompt.parts.values())
    print_escaped(f"wrote {dest}, {len(members)} prompts with {slots} slots in all")
    return 0
