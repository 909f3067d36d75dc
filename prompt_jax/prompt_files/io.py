"""Prompt files: `.npz` of this project, with one prompt or an ensemble, T5X's `.npy`, and PEFT's adapters.

`prompt_jax.prompt_files.npz` has what is in a `.npz`.

A `.npy` (with or without the extension, as T5X's prompt-tuning writes it) is one array [P, D], with no metadata.
A folder is an adapter of PEFT, an ensemble of adapters (`prompt_jax.prompt_files.peft`), or a T5X checkpoint with a
prompt (`prompt_jax.checkpoints.t5x`).

`hf://USER/NAME[@REVISION][/PATH]` is a prompt on the Hugging Face Hub: see `prompt_jax.prompt_files.hub`.
"""

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from prompt_jax.checkpoints import t5x
from prompt_jax.checkpoints.load import Model
from prompt_jax.errors import CheckpointError
from prompt_jax.models import family
from prompt_jax.models.delta import check_leaves
from prompt_jax.models.prompt import Prefix, Prompt, PromptStackError, VirtualTokens, check_alike, stack_prompts
from prompt_jax.prompt_files import hub, npz, peft
from prompt_jax.prompt_files.metadata import (
    MAX_MEMBERS,
    ModelId,
    PromptFormatError,
    PromptMetadata,
    StoredPrompt,
    member_name,
)
from prompt_jax.prompt_files.peft_tensors import CONFIG
from prompt_jax.storage.files import atomic_write
from prompt_jax.storage.paths import parse_path

Format = Literal["npz", "npy", "peft"]


def save_prompt(
    path: str | Path,
    prompt: Prompt,
    metadata: PromptMetadata | None = None,
    *,
    format: Format | None = None,
    model: Model | None = None,
) -> None:
    """Writes a prompt as `.npz`, without its metadata as `.npy`, or as a folder with PEFT's adapter.

    A file appears whole or not at all.

    Args:
      path: of the file, or of a folder that is new or empty.
      prompt: a single one.
      metadata: what the file is to say of it.
      format: by the path's extension, npz or npy, if left out.
      model: the prompt's base, of which an adapter says the sizes and the name; the other formats do without.

    Raises:
      PromptFormatError: values that are not finite, another extension, a format that cannot hold the prompt, or a
        place on the Hub, to which prompts are pushed.
    """
    path = _to_write(path)
    arrays = npz.prompt_entries(str(path), prompt, metadata or PromptMetadata())
    format = format or {".npz": "npz", ".npy": "npy"}.get(path.suffix)  # type: ignore[assignment]
    if format == "peft":
        _write_adapters(path, [(prompt, metadata or PromptMetadata())], model, ensemble=False)
    elif format == "npz":
        npz.write(path, arrays)
    elif format == "npy":
        if prompt.encoder_tokens is None or len(prompt.parts) > 1 or prompt.base:
            there = " and ".join([*prompt.parts, *(["changes of the base"] if prompt.base else [])])
            raise PromptFormatError(f"{path}: a .npy has virtual tokens alone, not {there}; use npz")
        placement, mask = prompt.encoder_tokens.placement, arrays.get("encoder_tokens/mask")
        if placement != "before":
            warnings.warn(f"{path}: a .npy does not say that the tokens go {placement} the input", stacklevel=2)
        embeddings = arrays["encoder_tokens"] if mask is None else arrays["encoder_tokens"][mask]
        atomic_write(path, lambda file: np.save(file, embeddings))
    else:
        raise PromptFormatError(f"{path}: name it .npz or .npy, or say which format it is to have")


def save_ensemble(
    path: str | Path,
    prompts: Sequence[Prompt],
    metadata: Sequence[PromptMetadata],
    *,
    format: Format | None = None,
    model: Model | None = None,
) -> None:
    """Writes the members of an ensemble as one `.npz`, or as a folder of PEFT's adapters.

    The file appears whole or not at all, and an ensemble of adapters with the last of them.

    Args:
      path: of the file, or of a folder that is new or empty.
      prompts: at least one, each [P_i, D]; of one placement and width.
      metadata: of each member.
      format: npz or peft; the path must end with npz where it is left out.
      model: as for `save_prompt`.

    Raises:
      PromptFormatError: no members or too many, values that are not finite, a format that cannot hold them, or a
        place on the Hub.
      PromptStackError: members that do not go together.
    """
    path = _to_write(path)
    format = format or path.suffix.removeprefix(".")  # type: ignore[assignment]
    if format not in ("npz", "peft"):
        raise PromptFormatError(f"{path}: an ensemble is a .npz or peft; one of its members can be a .npy (--member)")
    if not 1 <= len(prompts) <= MAX_MEMBERS:
        raise PromptFormatError(f"{path}: an ensemble has from 1 to {MAX_MEMBERS} members, not {len(prompts)}")
    check_alike(prompts, [member_name(path, number) for number in range(len(prompts))])
    arrays: dict[str, np.ndarray] = {}
    for number, (prompt, own) in enumerate(zip(prompts, metadata, strict=True)):
        entries = npz.prompt_entries(member_name(path, number), prompt, own)
        arrays |= {f"{number}/{name}": array for name, array in entries.items()}
    if format == "peft":
        _write_adapters(path, list(zip(prompts, metadata, strict=True)), model, ensemble=True)
    else:
        npz.write(path, arrays)


def load_prompt(path: str | Path, model: Model | None = None, *, allow_other_base: bool = False) -> Prompt:
    """Reads a prompt file or an adapter's folder, and checks that it belongs to the model if one is given.

    An ensemble's is the stacked Prompt, which needs `prompt_ids` in the batch: a member's number for each row.

    Raises:
      PromptFormatError: not a prompt file, a damaged one, or one of another base (unless `allow_other_base`).
      FileNotFoundError: no such file.
      HubError: a prompt named `hf://...` could not be downloaded.
    """
    members, ensemble = _read(parse_path(path))
    if model is not None:
        check_bases(path, members, model, allow_other_base=allow_other_base)
    prompts = [prompt for prompt, _ in members]
    return stack_prompts(prompts) if ensemble else prompts[0]


def read_prompt(path: str | Path) -> tuple[Prompt, PromptMetadata]:
    """Reads the file of a single prompt with its metadata.

    Raises:
      PromptFormatError: not a prompt file, a damaged one, or an ensemble's.
      FileNotFoundError: no such file.
    """
    members, ensemble = _read(parse_path(path))
    if ensemble:
        raise PromptFormatError(
            f"{path} is an ensemble of {len(members)} prompts, where one is expected. `prompt-jax export "
            "--member NUMBER` writes one of them as a file of its own; in Python read_prompts reads them all"
        )
    return members[0]


def read_prompts(path: str | Path) -> list[StoredPrompt]:
    """Reads the prompts of a file with their metadata: the members of an ensemble, or a single one.

    Raises:
      PromptFormatError: not a prompt file, or a damaged one; of a member, it names which.
      FileNotFoundError: no such file.
    """
    return _read(parse_path(path))[0]


def is_prompt_folder(path: Path) -> bool:
    """Whether a folder is one prompt, or an ensemble of them, rather than a folder of prompt files."""
    return t5x.is_t5x(path) or (path / CONFIG).is_file() or (path / "member_0").is_dir()


def check_bases(
    path: str | Path, members: Sequence[StoredPrompt], model: Model, *, allow_other_base: bool = False
) -> None:
    """`check_base` of the prompts of one file."""
    checked: set[ModelId | None] = set()
    for number, (prompt, metadata) in enumerate(members):
        if metadata.base not in checked:  # the widths are one
            checked.add(metadata.base)
            name = path if len(members) == 1 else member_name(path, number)
            check_base(name, prompt, metadata, model, allow_other_base=allow_other_base)


def check_base(
    path: str | Path,
    prompt: Prompt,
    metadata: PromptMetadata,
    model: Model,
    *,
    allow_other_base: bool = False,
) -> None:
    """Checks that a prompt was trained on this model: by the fingerprint, or by shapes where it has none.

    Raises:
      PromptFormatError: another base; the message names both.
    """
    _check_sizes(path, prompt, model)
    if metadata.base is None:
        warnings.warn(
            f"{path} does not say which base it was trained on; only its shapes were checked against {model.name}",
            stacklevel=4,
        )
    elif metadata.base.fingerprint != model.fingerprint and not allow_other_base:
        raise PromptFormatError(
            f"{path} was trained on {_named(metadata.base)}, not on "
            f"{_named(ModelId(model.name, model.revision, model.fingerprint))}; load its own base, or allow another "
            "explicitly (--allow-other-base, or allow_other_base=True)"
        )


def _check_sizes(path: str | Path, prompt: Prompt, model: Model) -> None:
    try:
        check_leaves(model.params, prompt.base or {})
    except ValueError as error:
        raise PromptFormatError(f"{path} does not go with {model.name}: {error}") from error
    tokens, width = prompt.encoder_tokens, model.params["embedding"].shape[1]
    if tokens is not None and tokens.embeddings.shape[1] != width:
        raise PromptFormatError(
            f"{path}: its virtual tokens have width {tokens.embeddings.shape[1]}; {model.name} has {width}"
        )
    there: Any = family(model.config).sites(model.config)
    for site, part in prompt.parts.items():
        if isinstance(part, Prefix) and site not in there:
            raise PromptFormatError(f"{path}: it has a prefix of {site}; {model.name} has {' and '.join(there)}")
        if isinstance(part, Prefix) and (found := (part.keys.shape[0], *part.keys.shape[2:])) != there[site]:
            raise PromptFormatError(
                f"{path}: its prefix of {site} has layers, heads and width {found}; {model.name} has {there[site]}"
            )


def _named(base: ModelId) -> str:
    return f"{base.name}{f'@{base.revision}' if base.revision else ''} ({base.fingerprint[:19]})"


# --------------------------------------------------------------------------------------------------------------
# Writing


def _to_write(path: str | Path) -> Path:
    if hub.is_hub_name(path):
        raise PromptFormatError(f"{path}: a file is written here, not to the Hub; to put it there: prompt-jax push")
    return parse_path(path)


def _write_adapters(folder: Path, members: Sequence[StoredPrompt], model: Model | None, *, ensemble: bool) -> None:
    if model is None:
        raise PromptFormatError(f"{folder}: an adapter of PEFT says what its base is like; give the model")
    for prompt, _ in members:
        _check_sizes(folder, prompt, model)
    peft.write(folder, members, model, ensemble=ensemble)


# --------------------------------------------------------------------------------------------------------------
# Reading


def _read(path: Path) -> tuple[list[StoredPrompt], bool]:
    """The prompts of a file or a folder, and whether it is one of an ensemble, which may have a single member."""
    if hub.is_hub_name(path):
        with hub.download(path) as local:
            return _read(local)
    members, ensemble = _read_folder(path) if path.is_dir() else _read_file(path)
    if ensemble:
        _check_together(path, members)
    return members, ensemble


def _read_folder(path: Path) -> tuple[list[StoredPrompt], bool]:
    if t5x.is_t5x(path):
        try:
            return [_bare(str(path), t5x.read_prompt_array(path))], False
        except CheckpointError as error:
            raise PromptFormatError(str(error)) from error
    if not is_prompt_folder(path) and (steps := t5x.steps_in(path)):
        raise PromptFormatError(f"{path} has checkpoints of T5X; name one of them: {', '.join(steps[:8])}")
    return peft.read(path)


def _read_file(path: Path) -> tuple[list[StoredPrompt], bool]:
    with path.open("rb") as file, npz.reading_errors(str(path)):
        magic, size = file.read(4), file.seek(0, io.SEEK_END)
        file.seek(0)
        if magic == b"PK\x03\x04":
            return npz.read(path, file)
        if magic == b"\x93NUM":
            array = npz.read_array(str(path), "the array", file, size)
            if array.ndim != 2 or 0 in array.shape:
                raise PromptFormatError(f"{path}: {array.dtype} {list(array.shape)}; a .npy prompt is [P, D]")
            return [_bare(str(path), array)], False
    raise PromptFormatError(
        f"{path}: neither a NumPy archive (.npz) nor a NumPy array (.npy), nor a folder of PEFT's or T5X's"
    )


def _bare(where: str, array: np.ndarray) -> StoredPrompt:
    """A prompt of an array [P, D] alone."""
    return Prompt(VirtualTokens(npz.as_float32(where, "the array", array))), PromptMetadata()


def _check_together(path: Path, members: Sequence[StoredPrompt]) -> None:
    """Refuses members that cannot be stacked, or would take out of all proportion more memory than they do alone."""
    prompts = [prompt for prompt, _ in members]
    try:
        check_alike(prompts, [member_name(path, number) for number in range(len(prompts))])
    except PromptStackError as error:
        raise PromptFormatError(str(error)) from error
    for kind in prompts[0].parts:
        lengths = [prompt.parts[kind].slots for prompt in prompts]
        if len(lengths) * max(lengths) > npz.MAX_RATIO * sum(lengths):
            raise PromptFormatError(
                f"{member_name(path, int(np.argmax(lengths)))} has {kind} of {max(lengths)} slots, and all "
                f"{len(lengths)} have {sum(lengths)}; stacked they would take over {npz.MAX_RATIO} times the memory"
            )
