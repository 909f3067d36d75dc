"""`prompt-jax push`."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import tyro

from prompt_jax.cli.common import BaseOptions, load_base, print_escaped, read_chosen
from prompt_jax.errors import UserError
from prompt_jax.report.terminal import Activity

if TYPE_CHECKING:
    from prompt_jax.checkpoints.load import Model


@dataclasses.dataclass(frozen=True)
class Push:
    """Upload a prompt to the Hugging Face Hub, with a model card and, if PEFT supports the prompt, an adapter.

    The account is that of `hf auth login` or of the environment variable HF_TOKEN."""

    examples: ClassVar[tuple[str, ...]] = ("prompt-jax push runs/demo/best.npz hf://USER/NAME --private",)

    file: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILE")]
    """Prompt file, or the folder of a run, for its best prompt."""
    dest: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DEST")]
    """hf://USER/NAME[@BRANCH][/FOLDER]. The repository is created if it does not exist."""
    member: int | None = None
    """Upload only this member of an ensemble, numbered from 0."""
    private: bool = False
    """Create a private repository."""
    message: str | None = None
    """Commit message. None means a default message."""
    base: Annotated[BaseOptions, tyro.conf.arg(name="")] = BaseOptions()


def run(args: Push) -> int:
    with Activity("starting"):
        from prompt_jax.prompt_files.push import parse_target, push_members

    place = parse_target(args.dest)  # before anything is loaded
    members = [(each.prompt, each.metadata) for each in read_chosen([args.file], args.member)]
    why = None
    try:
        model: Model | None = load_base(args.file, members[0][1], args.base)
    except UserError as error:
        if args.base.model is not None:
            raise
        model, why = None, str(error)
    with Activity(f"uploading to {args.dest}"):
        pushed = push_members(
            args.file,
            members,
            place,
            model,
            private=args.private,
            message=args.message,
            allow_other_base=args.base.allow_other_base,
        )
    print_escaped(
        f"wrote {', '.join(pushed.files)}" + (f"; deleted {', '.join(pushed.deleted)}" if pushed.deleted else "")
    )
    if pushed.no_adapter is not None:
        print_escaped(f"no PEFT adapter: {why or pushed.no_adapter}")
    for note in pushed.notes:
        print_escaped(note)
    print_escaped(f"{pushed.name}\n{pushed.address}\ncommit {pushed.commit}")
    return 0
