"""Saving and loading prompts, in any format.

- `.npz`: this project's format, with one prompt or an ensemble (`prompt_jax.prompt_files.npz`).
- `.npy`, or no extension: T5X's prompt-tuning format, one array [P, D] without metadata.
- A folder: a PEFT adapter or an ensemble of them (`prompt_jax.prompt_files.peft`), or a T5X checkpoint with a prompt
  (`prompt_jax.checkpoints.t5x`).
- `hf://USER/NAME[@REVISION][/PATH]`: a prompt on the Hugging Face Hub (`prompt_jax.prompt_files.hub`).
"""

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from prompt_jax.checkpoints import t5x
from prompt_jax.checkpoints.load import Model
from prompt_jax.config.ensemble import MAX_MEMBERS
from prompt_jax.errors import CheckpointError
from prompt_jax.models import family
from prompt_jax.models.delta import Delta, check_delta, check_ensemble
from prompt_jax.models.prompt import Prefix, Prompt, PromptStackError, VirtualTokens, stack_prompts
from prompt_jax.prompt_files import hub, npz, peft
from prompt_jax.prompt_files.metadata import (
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
    prompt: Prompt | Delta,
    metadata: PromptMetadata | None = None,
    *,
    format: Format | None = None,
    model: Model | None = None,
) -> None:
    """Save a prompt as `.npz`, as `.npy` (without metadata), or as a PEFT adapter. Files are written atomically.

    Args:
      path: the file; for PEFT, a folder that is new or empty.
      prompt: a single prompt.
      metadata: stored in the file.
      format: npz, npy or peft; by default the path's extension decides.
      model: the prompt's base. Only an adapter needs it, for its sizes and name.

    Raises:
      PromptFormatError: the prompt has values that are not finite, or the format cannot hold it; the extension is
        unknown; or the path is on the Hub (use `push_prompt`).
    """
    path = _local_path(path)
    arrays = npz.prompt_entries(str(path), prompt, metadata or PromptMetadata())
    format = format or {".npz": "npz", ".npy": "npy"}.get(path.suffix)  # type: ignore[assignment]
    if format == "peft":
        _write_adapters(path, [(prompt, metadata or PromptMetadata())], model, ensemble=False)
    elif format == "npz":
        npz.write(path, arrays)
    elif format == "npy":
        if isinstance(prompt, Delta) or prompt.encoder_tokens is None or len(prompt.parts) > 1:
            content = "weights of the base" if isinstance(prompt, Delta) else " and ".join(prompt.parts)
            raise PromptFormatError(f"{path}: a .npy holds only virtual tokens, not {content}; use npz")
        placement, mask = prompt.encoder_tokens.placement, arrays.get("encoder_tokens/mask")
        if placement != "before":
            warnings.warn(f"{path}: a .npy does not record that the tokens go {placement} the input", stacklevel=2)
        embeddings = arrays["encoder_tokens"] if mask is None else arrays["encoder_tokens"][mask]
        atomic_write(path, lambda file: np.save(file, embeddings))
    else:
        raise PromptFormatError(f"{path}: name it .npz or .npy, or give a format")


def save_ensemble(
    path: str | Path,
    prompts: Sequence[Prompt | Delta],
    metadata: Sequence[PromptMetadata],
    *,
    format: Format | None = None,
    model: Model | None = None,
) -> None:
    """Save the members of an ensemble as one `.npz`, or as a folder of PEFT adapters.

    The file is written atomically. A folder of adapters becomes an ensemble when the last adapter is written.

    Args:
      path: the file; for PEFT, a folder that is new or empty.
      prompts: at least one, each [P_i, D], with the same placement and width.
      metadata: one for each member.
      format: npz or peft; by default the path must end with npz.
      model: as for `save_prompt`.

    Raises:
      PromptFormatError: there are no members or too many, a value is not finite, the format cannot hold them, or the
        path is on the Hub.
      PromptStackError: the members cannot be stacked.
    """
    path = _local_path(path)
    format = format or path.suffix.removeprefix(".")  # type: ignore[assignment]
    if format not in ("npz", "peft"):
        raise PromptFormatError(f"{path}: an ensemble is a .npz or peft; a single member can be a .npy (--member)")
    if not 1 <= len(prompts) <= MAX_MEMBERS:
        raise PromptFormatError(f"{path}: an ensemble has from 1 to {MAX_MEMBERS} members, not {len(prompts)}")
    check_ensemble(prompts, [member_name(path, number) for number in range(len(prompts))])
    arrays: dict[str, np.ndarray] = {}
    for number, (prompt, its_metadata) in enumerate(zip(prompts, metadata, strict=True)):
        entries = npz.prompt_entries(member_name(path, number), prompt, its_metadata)
        arrays |= {f"{number}/{name}": array for name, array in entries.items()}
    if format == "peft":
        _write_adapters(path, list(zip(prompts, metadata, strict=True)), model, ensemble=True)
    else:
        npz.write(path, arrays)


def load_prompt(path: str | Path, model: Model | None = None, *, allow_other_base: bool = False) -> Prompt | Delta:
    """Load a prompt from a file, a folder or the Hub. If a model is given, check that the prompt belongs to it.

    For an ensemble, returns the stacked Prompt. It needs `prompt_ids` in the batch: the member of each row.

    Raises:
      PromptFormatError: not a prompt file, a damaged one, or one for another base (unless `allow_other_base`).
      FileNotFoundError: no such file.
      HubError: a prompt named `hf://...` could not be downloaded.
    """
    members, ensemble = _read(parse_path(path))
    if model is not None:
        check_bases(path, members, model, allow_other_base=allow_other_base)
    prompts = [prompt for prompt, _ in members]
    return stack_prompts(prompts) if ensemble else prompts[0]


def read_prompt(path: str | Path) -> StoredPrompt:
    """Read a single prompt and its metadata.

    Raises:
      PromptFormatError: not a prompt file, a damaged one, or an ensemble.
      FileNotFoundError: no such file.
    """
    members, ensemble = _read(parse_path(path))
    if ensemble:
        raise PromptFormatError(
            f"{path} is an ensemble of {len(members)} prompts, and one is expected. `prompt-jax export --member "
            "NUMBER` writes one of them to a file; in Python, read_prompts reads all of them"
        )
    return members[0]


def read_prompts(path: str | Path) -> list[StoredPrompt]:
    """Read the prompts of a file and their metadata: the members of an ensemble, or a single prompt.

    Raises:
      PromptFormatError: not a prompt file, or a damaged one; the message names the member.
      FileNotFoundError: no such file.
    """
    return _read(parse_path(path))[0]


def is_prompt_folder(path: Path) -> bool:
    """Return whether a folder is itself a prompt or an ensemble, rather than a folder of prompt files."""
    return t5x.is_t5x(path) or (path / CONFIG).is_file() or (path / "member_0").is_dir()


def check_bases(
    path: str | Path, members: Sequence[StoredPrompt], model: Model, *, allow_other_base: bool = False
) -> None:
    """Run `check_base` for the prompts of one file."""
    checked: set[ModelId | None] = set()
    for number, (prompt, metadata) in enumerate(members):
        if metadata.base not in checked:  # all members have the same shapes
            checked.add(metadata.base)
            name = path if len(members) == 1 else member_name(path, number)
            check_base(name, prompt, metadata, model, allow_other_base=allow_other_base)


def check_base(
    path: str | Path,
    prompt: Prompt | Delta,
    metadata: PromptMetadata,
    model: Model,
    *,
    allow_other_base: bool = False,
) -> None:
    """Check that a prompt was trained on this model: by the fingerprint, or by shapes if the prompt has none.

    Raises:
      PromptFormatError: the prompt has another base; the message names both.
    """
    _check_sizes(path, prompt, model)
    if isinstance(prompt, Delta) and metadata.long_rope:
        warnings.warn(
            f"{path} was trained on long texts, with the factors of longrope for them. A call with short texts only "
            "uses the others, for which it was not trained",
            stacklevel=4,
        )
    if metadata.base is None:
        warnings.warn(
            f"{path} does not say which base it was trained on; only its shapes were compared with {model.name}",
            stacklevel=4,
        )
    elif metadata.base.fingerprint != model.fingerprint and not allow_other_base:
        raise PromptFormatError(
            f"{path} was trained on {_describe(metadata.base)}, not on "
            f"{_describe(ModelId(model.name, model.revision, model.fingerprint))}; load its base, or allow another one "
            "(--allow-other-base, or allow_other_base=True)"
        )


def _check_sizes(path: str | Path, prompt: Prompt | Delta, model: Model) -> None:
    if isinstance(prompt, Delta):
        try:
            return check_delta(model.params, prompt)
        except ValueError as error:
            raise PromptFormatError(f"{path} does not go with {model.name}: {error}") from error
    tokens, width = prompt.encoder_tokens, model.params["embedding"].shape[1]
    if tokens is not None and tokens.embeddings.shape[1] != width:
        raise PromptFormatError(
            f"{path}: its virtual tokens have width {tokens.embeddings.shape[1]}; {model.name} has {width}"
        )
    sites: Any = family(model.config).sites(model.config)
    for site, part in prompt.parts.items():
        if isinstance(part, Prefix) and site not in sites:
            raise PromptFormatError(f"{path}: it has a prefix for {site}; {model.name} has {' and '.join(sites)}")
        if isinstance(part, Prefix) and (sizes := (part.keys.shape[0], *part.keys.shape[2:])) != sites[site]:
            raise PromptFormatError(
                f"{path}: its prefix for {site} has layers, heads and width {sizes}; {model.name} has {sites[site]}"
            )


def _describe(base: ModelId) -> str:
    return f"{base.name}{f'@{base.revision}' if base.revision else ''} ({base.fingerprint[:19]})"


# --------------------------------------------------------------------------------------------------------------
# Writing


def _local_path(path: str | Path) -> Path:
    if hub.is_hub_name(path):
        raise PromptFormatError(f"{path}: a file is written to this machine, not to the Hub; use prompt-jax push")
    return parse_path(path)


def _write_adapters(folder: Path, members: Sequence[StoredPrompt], model: Model | None, *, ensemble: bool) -> None:
    if model is None:
        raise PromptFormatError(f"{folder}: a PEFT adapter stores sizes of its base; give the model")
    for prompt, _ in members:
        _check_sizes(folder, prompt, model)
    peft.write(folder, members, model, ensemble=ensemble)


# --------------------------------------------------------------------------------------------------------------
# Reading


def _read(path: Path) -> tuple[list[StoredPrompt], bool]:
    """Return the prompts of a file or a folder, and whether it is an ensemble, which may have a single member."""
    if hub.is_hub_name(path):
        with hub.download(path) as local:
            return _read(local)
    members, ensemble = _read_folder(path) if path.is_dir() else _read_file(path)
    if ensemble:
        _check_stackable(path, members)
    return members, ensemble


def _read_folder(path: Path) -> tuple[list[StoredPrompt], bool]:
    if t5x.is_t5x(path):
        try:
            return [_prompt_of_array(str(path), t5x.read_prompt_array(path))], False
        except CheckpointError as error:
            raise PromptFormatError(str(error)) from error
    if not is_prompt_folder(path) and (steps := t5x.steps_in(path)):
        raise PromptFormatError(f"{path} has T5X checkpoints; name one of them: {', '.join(steps[:8])}")
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
            return [_prompt_of_array(str(path), array)], False
    raise PromptFormatError(
        f"{path}: neither a NumPy archive (.npz), nor a NumPy array (.npy), nor a folder of PEFT or T5X"
    )


def _prompt_of_array(where: str, array: np.ndarray) -> StoredPrompt:
    """Return the prompt of an array [P, D] without metadata."""
    return Prompt(VirtualTokens(npz.as_float32(where, "the array", array))), PromptMetadata()


def _check_stackable(path: Path, members: Sequence[StoredPrompt]) -> None:
    """Raise PromptFormatError for members that cannot be stacked, or whose stack would need far more memory."""
    prompts = [prompt for prompt, _ in members]
    try:
        check_ensemble(prompts, [member_name(path, number) for number in range(len(prompts))])
    except PromptStackError as error:
        raise PromptFormatError(str(error)) from error
    stackable = [prompt for prompt in prompts if isinstance(prompt, Prompt)]
    for kind in stackable[0].parts if stackable else ():
        lengths = [prompt.parts[kind].slots for prompt in stackable]
        if len(lengths) * max(lengths) > npz.MAX_RATIO * sum(lengths):
            raise PromptFormatError(
                f"{member_name(path, int(np.argmax(lengths)))} has {kind} of {max(lengths)} slots, and all "
                f"{len(lengths)} have {sum(lengths)}; stacked they would need over {npz.MAX_RATIO} times the memory"
            )
