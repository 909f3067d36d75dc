"""`prompt-jax export` and `prompt-jax import`: prompts in other formats."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from prompt_jax.cli.common import BaseOptions, check_base, check_member, load_base, show
from prompt_jax.errors import UserError

if TYPE_CHECKING:
    from prompt_jax.prompt_files.metadata import StoredPrompt


@dataclasses.dataclass(frozen=True)
class Export:
    """Write a prompt file in another format, or one prompt of an ensemble as a file of its own."""

    file: tyro.conf.Positional[Path]
    """A prompt file."""
    dest: tyro.conf.Positional[Path]
    """The file to write; for peft and model a folder that is new or empty."""
    member: int | None = None
    """Which prompt of an ensemble, numbered from 0; all of them if left out."""
    format: Literal["npz", "npy", "peft", "model"] | None = None
    """npz: this project's archive, readable with NumPy. npy: the bare array, as T5X's prompt-tuning has it. peft: an
    adapter of Hugging Face's PEFT, or for an ensemble a folder of them; the base, of which they say the sizes, is
    loaded. model: of layers or a full model that were trained, the whole model in Hugging Face's layout. By the
    extension of DEST if left out."""
    as_: Annotated[Literal["prefix"] | None, tyro.conf.arg(name="as")] = None
    """prefix: the keys and values that a causal model has of its virtual tokens, in place of these; they depend on the
    base, which is loaded. The same logits for less work."""
    base: Annotated[BaseOptions, tyro.conf.arg(name="")] = BaseOptions()


@dataclasses.dataclass(frozen=True)
class Import:
    """Write a prompt from elsewhere as this project's .npz: one on the Hub, an adapter of PEFT, or T5X's array."""

    source: tyro.conf.Positional[Path]
    """A folder with an adapter of PEFT or with adapters member_0, member_1, ..., or any prompt file; also on the Hub,
    as hf://USER/NAME[@REVISION][/PATH]."""
    dest: tyro.conf.Positional[Path]
    """The .npz to write."""
    model: str | None = None
    """Name or folder of the prompt's base: their sizes are compared, and the .npz names it, so that the other verbs
    find it."""
    revision: str | None = None
    """Branch, tag or commit of --model on the hub."""


def export(args: Export) -> int:
    from prompt_jax.prompt_files.io import check_bases, read_prompts, save_ensemble, save_prompt
    from prompt_jax.prompt_files.peft import VERSIONS_NOTE

    members = read_prompts(args.file)
    count = len(members)
    model = None
    check_member(args.member, args.file, count)
    if args.format == "model":
        return _whole_model(args, members)
    if args.as_ == "prefix":
        members = _as_prefixes(args, members)
    if args.format == "peft":
        model = load_base(args.file, members[0][1], args.base)
        check_bases(args.file, members, model, allow_other_base=args.base.allow_other_base)
    if args.member is not None or count == 1:
        save_prompt(args.dest, *members[args.member or 0], format=args.format, model=model)
    elif (args.format or args.dest.suffix[1:]) == "npy":
        raise UserError(
            f"{args.file} is an ensemble of {count} prompts and a .npy holds one: say which with --member, from 0 to "
            f"{count - 1}"
        )
    else:
        prompts, metadata = zip(*members, strict=True)
        save_ensemble(args.dest, prompts, metadata, format=args.format, model=model)
    show(f"wrote {args.dest}" + (f"\n{VERSIONS_NOTE}" if args.format == "peft" else ""))
    return 0


def import_(args: Import) -> int:
    from prompt_jax.checkpoints.load import load_model
    from prompt_jax.prompt_files.io import ModelId, check_base, read_prompts, save_ensemble, save_prompt

    if args.dest.suffix != ".npz":
        raise UserError(f"{args.dest}: what is imported is a .npz; name it so (export writes other formats)")
    if args.model is None and args.revision is not None:
        raise UserError("--revision is of --model, which is not given")
    members = read_prompts(args.source)
    if args.model is not None:
        if known := next((said.base for _, said in members if said.base is not None), None):
            raise UserError(f"{args.source} says itself that it was trained on {known.name}: leave --model out")
        model = load_model(args.model, revision=args.revision)
        own = ModelId(model.name, model.revision, model.fingerprint)
        members = [(prompt, dataclasses.replace(said, base=own)) for prompt, said in members]
        for prompt, said in members:
            check_base(args.source, prompt, said, model)
    if len(members) == 1:
        save_prompt(args.dest, *members[0])
    else:
        prompts, metadata = zip(*members, strict=True)
        save_ensemble(args.dest, prompts, metadata)
    show(f"wrote {args.dest}")
    return 0


def _whole_model(args: Export, members: "Sequence[StoredPrompt]") -> int:
    from prompt_jax.checkpoints.save import save_model
    from prompt_jax.models.delta import Delta, whole_model

    if args.as_ is not None:
        raise UserError("--as prefix is of prompts, and --format model of what was trained of the base itself")
    if args.base.dtype == "int8":
        raise UserError("--dtype int8 has no layout in Hugging Face's files; take float32 or bfloat16")
    if len(members) > 1 and args.member is None:
        raise UserError(f"{args.file} has {len(members)} members; say with --member which is to be a model")
    prompt, metadata = members[args.member or 0]
    model = load_base(args.file, metadata, args.base)
    check_base(args.file, prompt, metadata, model, args.base)
    if not isinstance(prompt, Delta):
        raise UserError(f"{args.file}: {' and '.join(prompt.parts)} cannot be merged into the base's weights")
    try:
        params = whole_model(model.params, prompt)
    except ValueError as error:
        raise UserError(f"{args.file}: {error}") from error
    save_model(args.dest, dataclasses.replace(model, params=params))
    show(f"wrote {args.dest}")
    return 0


def _as_prefixes(args: Export, members: "Sequence[StoredPrompt]") -> "list[StoredPrompt]":
    from prompt_jax.models import family
    from prompt_jax.models.delta import Delta

    model = load_base(args.file, members[0][1], args.base)
    model_family: Any = family(model.config)
    if not model_family.causal:
        raise UserError(
            f"{model.name} is no causal model: what its encoder makes of virtual tokens depends on the input and is no "
            "prefix"
        )
    made = []
    for prompt, metadata in members:
        check_base(args.file, prompt, metadata, model, args.base)
        if isinstance(prompt, Delta):
            raise UserError(f"{args.file} changes weights of the base and cannot become a prefix")
        prefix = model_family.as_prefix(model.params, model.config, prompt)
        made.append((prefix, dataclasses.replace(metadata, method="prefix")))
    return made
