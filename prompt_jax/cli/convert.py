"""`prompt-jax export` and `prompt-jax import`."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import tyro

from prompt_jax.cli.common import (
    BaseOptions,
    check_model,
    check_new,
    load_base,
    load_named_base,
    print_escaped,
    read_chosen,
)
from prompt_jax.errors import UserError
from prompt_jax.report.terminal import Activity

if TYPE_CHECKING:
    from prompt_jax.prompt_files.metadata import StoredPrompt


@dataclasses.dataclass(frozen=True)
class Export:
    """Write a prompt file in another format, or one member of an ensemble as a separate file."""

    examples: ClassVar[tuple[str, ...]] = (
        "prompt-jax export runs/demo/best.npz member_1.npz --member 1",
        "prompt-jax export runs/demo/best.npz adapter --member 1 --format peft",
    )

    file: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILE")]
    """Prompt file, or the folder of a run, for its best prompt."""
    dest: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DEST")]
    """File to write. For the formats peft and model, a new or empty folder."""
    member: int | None = None
    """Member of an ensemble to write, numbered from 0. None means all members."""
    format: Literal["npz", "npy", "peft", "model"] | None = None
    """npz: this project's format, a NumPy archive. npy: the bare array, as in T5X's prompt-tuning. peft: an adapter for
    PEFT, or a folder of adapters for an ensemble; this loads the base. model: after training layers or the full model,
    the whole model in Hugging Face's format. None follows the extension of DEST."""
    as_: Annotated[Literal["prefix"] | None, tyro.conf.arg(name="as", metavar="prefix", help_behavior_hint="")] = None
    """prefix: replace a causal model's virtual tokens by their keys and values. Logits are equal, inference is faster.
    This loads the base."""
    overwrite: bool = False
    """Replace an existing file. A folder must be new or empty."""
    base: Annotated[BaseOptions, tyro.conf.arg(name="")] = BaseOptions()


@dataclasses.dataclass(frozen=True)
class Import:
    """Convert a prompt to this project's .npz: from the Hugging Face Hub, from PEFT, or from T5X's array."""

    examples: ClassVar[tuple[str, ...]] = (
        "prompt-jax import hf://USER/NAME prompt.npz",
        "prompt-jax import adapter prompt.npz",
    )

    source: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="SOURCE")]
    """Prompt file, folder with a PEFT adapter, or folder with PEFT adapters member_0, member_1, ...; or one of these on
    the Hub: hf://USER/NAME[@REVISION][/PATH]."""
    dest: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DEST")]
    """The .npz file to write."""
    member: int | None = None
    """Member of an ensemble to write, numbered from 0. None means all members."""
    overwrite: bool = False
    """Replace an existing file."""
    model: str | None = None
    """Name or folder of the prompt's base. The sizes are checked, and the .npz records this base for other verbs."""
    revision: str | None = None
    """Branch, tag or commit of --model on the Hugging Face Hub."""


def export(args: Export) -> int:
    with Activity("starting"):
        from prompt_jax.prompt_files.io import check_bases, save_ensemble, save_prompt
        from prompt_jax.prompt_files.peft import VERSIONS_NOTE

    check_new(args.dest, args.overwrite)
    members = [(each.prompt, each.metadata) for each in read_chosen([args.file], args.member)]
    count, model = len(members), None
    if args.format == "model":
        return _whole_model(args, members)
    if args.as_ == "prefix":
        members = _as_prefixes(args, members)
    if args.format == "peft":
        model = load_base(args.file, members[0][1], args.base)
        check_bases(args.file, members, model, allow_other_base=args.base.allow_other_base)
    if count == 1:
        save_prompt(args.dest, *members[0], format=args.format, model=model)
    elif (args.format or args.dest.suffix[1:]) == "npy":
        raise UserError(
            f"{args.file} is an ensemble of {count} prompts and a .npy holds one: say which with --member, from 0 to "
            f"{count - 1}"
        )
    else:
        prompts, metadata = zip(*members, strict=True)
        save_ensemble(args.dest, prompts, metadata, format=args.format, model=model)
    print_escaped(f"wrote {args.dest}" + (f"\n{VERSIONS_NOTE}" if args.format == "peft" else ""))
    return 0


def import_(args: Import) -> int:
    with Activity("starting"):
        from prompt_jax.prompt_files.io import ModelId, check_base, save_ensemble, save_prompt

    if args.dest.suffix != ".npz":
        raise UserError(f"{args.dest}: DEST must end in .npz (export writes other formats)")
    if args.model is None and args.revision is not None:
        raise UserError("--revision needs --model")
    check_new(args.dest, args.overwrite)
    members = [(each.prompt, each.metadata) for each in read_chosen([args.source], args.member)]
    if args.model is not None:
        if known := next((metadata.base for _, metadata in members if metadata.base is not None), None):
            raise UserError(f"{args.source} already names its base, {known.name}: leave out --model")
        model = load_named_base(args.model, revision=args.revision)
        base = ModelId(model.name, model.revision, model.fingerprint)
        members = [(prompt, dataclasses.replace(metadata, base=base)) for prompt, metadata in members]
        for prompt, metadata in members:
            check_base(args.source, prompt, metadata, model)
    if len(members) == 1:
        save_prompt(args.dest, *members[0])
    else:
        save_ensemble(args.dest, *zip(*members, strict=True))
    print_escaped(f"wrote {args.dest}")
    return 0


def _whole_model(args: Export, members: "Sequence[StoredPrompt]") -> int:
    from prompt_jax.checkpoints.save import save_model
    from prompt_jax.models.delta import Delta, whole_model

    if args.as_ is not None:
        raise UserError("--as prefix is for prompts, --format model for trained layers or a full model; choose one")
    if args.base.dtype not in ("float32", "bfloat16"):
        raise UserError(f"Hugging Face's format does not support --dtype {args.base.dtype}; choose float32 or bfloat16")
    if len(members) > 1:
        raise UserError(f"{args.file} has {len(members)} members; choose one with --member")
    prompt, metadata = members[0]
    model = load_base(args.file, metadata, args.base)
    check_model(args.file, prompt, metadata, model, args.base)
    if not isinstance(prompt, Delta):
        raise UserError(f"{args.file}: {' and '.join(prompt.parts)} cannot be merged into the base's weights")
    try:
        params = whole_model(model.params, prompt)
    except ValueError as error:
        raise UserError(f"{args.file}: {error}") from error
    with Activity(f"writing {args.dest}"):
        save_model(args.dest, dataclasses.replace(model, params=params))
    print_escaped(f"wrote {args.dest}")
    return 0


def _as_prefixes(args: Export, members: "Sequence[StoredPrompt]") -> "list[StoredPrompt]":
    from prompt_jax.models import check_context, family
    from prompt_jax.models.delta import Delta

    model = load_base(args.file, members[0][1], args.base)
    model_family: Any = family(model.config)
    if not model_family.causal:
        raise UserError(
            f"{model.name} is no causal model: the keys and values of its virtual tokens depend on the input, so they "
            "are no prefix"
        )
    prefixes = []
    with Activity("computing keys and values") as activity:
        for number, (prompt, metadata) in enumerate(members):
            activity.update(number, len(members))
            check_model(args.file, prompt, metadata, model, args.base)
            if isinstance(prompt, Delta):
                raise UserError(f"{args.file} changes weights of the base and cannot become a prefix")
            config = check_context(model.config, prompt, 0, 0)
            prefix = model_family.as_prefix(model.params, config, prompt)
            prefixes.append((prefix, dataclasses.replace(metadata, method="prefix")))
    return prefixes
