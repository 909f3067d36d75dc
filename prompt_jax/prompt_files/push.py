"""Pushing prompts to the Hugging Face Hub, from which `prompt_jax.prompt_files.hub` reads them."""

import dataclasses
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from prompt_jax.checkpoints.load import T5X, Model, hub_errors, hub_reason, without_login
from prompt_jax.checkpoints.packaged import PACKAGED
from prompt_jax.errors import UserError
from prompt_jax.models import family
from prompt_jax.models.delta import Delta, flat
from prompt_jax.models.prompt import Prompt
from prompt_jax.prompt_files.hub import FILE, HubError, HubName, parse_hub_name, replace_path_in_errors, repository_info
from prompt_jax.prompt_files.hub_card import MARK, OLD_MARK, CardBase, CardMember, repository_card
from prompt_jax.prompt_files.io import StoredPrompt, check_bases, read_prompts, save_ensemble, save_prompt
from prompt_jax.prompt_files.metadata import ModelId, PromptFormatError
from prompt_jax.prompt_files.peft import CARD, MEMBER
from prompt_jax.prompt_files.peft_tensors import CONFIG, PICKLE, TENSORS

_COMMIT = re.compile(r"[0-9a-f]{40}")
# The files of a PEFT adapter, or of one member of an ensemble.
_ADAPTER_FILE = re.compile(rf"(?:{MEMBER.pattern}/)?(?:{'|'.join(map(re.escape, (CONFIG, TENSORS, PICKLE)))})")
_Base = TypeVar("_Base", ModelId, Model)


@dataclasses.dataclass(frozen=True)
class Pushed:
    """The result of a push.

    Attributes:
      name: the name under which the prompt is loaded.
      address: the URL of its page.
      commit: the commit's hash.
      files: the uploaded files.
      deleted: the deleted files of an earlier prompt.
      no_adapter: the reason why no PEFT adapter was uploaded; None if one was uploaded.
      notes: further results that the user may not expect.
    """

    name: str
    address: str
    commit: str
    files: tuple[str, ...]
    deleted: tuple[str, ...]
    no_adapter: str | None
    notes: tuple[str, ...]


def push_prompt(
    path: str | Path,
    name: str,
    model: Model | None = None,
    *,
    private: bool = False,
    message: str | None = None,
    allow_other_base: bool = False,
) -> Pushed:
    """Push a prompt or an ensemble in one commit: `prompt.npz`, PEFT adapters and a model card.

    The repository and the branch are created if necessary. Adapters of an earlier prompt in the same folder are
    deleted. A card that was not written by a push is kept. If the base is a folder, only its name is published.

    Args:
      path: any prompt file.
      name: `hf://USER/NAME[@BRANCH][/FOLDER]`.
      model: the prompt's base; adapters need it.
      private: make a new repository private.
      message: the commit message.
      allow_other_base: as for `load_prompt`.

    Raises:
      PromptFormatError: not a name on the Hub, or not a prompt file.
      HubError: the Hub refused. The message gives the reason, without the token.
    """
    target = parse_target(name)
    members = read_prompts(path)
    return push_members(
        path, members, target, model, private=private, message=message, allow_other_base=allow_other_base
    )


def parse_target(name: str) -> HubName:
    """Parse the destination of a push. Raises PromptFormatError if nothing can be pushed there."""
    target = parse_hub_name(name)
    if target.revision is not None and _COMMIT.fullmatch(target.revision):
        raise PromptFormatError(f"{name}: a commit cannot change; push to a branch")
    if target.folder.endswith(".npz"):
        raise PromptFormatError(f"{name}: a prompt is pushed to a folder, as {FILE}")
    return target


def push_members(
    path: str | Path,
    members: Sequence[StoredPrompt],
    target: HubName,
    model: Model | None,
    *,
    private: bool,
    message: str | None,
    allow_other_base: bool,
) -> Pushed:
    """Push prompts that were read from the path; see `push_prompt`."""
    if model is not None:
        check_bases(path, members, model, allow_other_base=allow_other_base)
        model = _without_local_path(model)
    members = [
        (prompt, said if said.base is None else dataclasses.replace(said, base=_without_local_path(said.base)))
        for prompt, said in members
    ]
    base = _base(members, model)
    with tempfile.TemporaryDirectory(prefix="prompt_jax_") as folder:
        files, no_adapter = _write_files(Path(folder), members, model)
        card_members = [CardMember(_shapes(prompt), metadata) for prompt, metadata in members]
        card = repository_card(target, card_members, base, adapters=no_adapter is None)
        pushed = _commit(target, {**files, CARD: card.encode()}, private, message or "A prompt from prompt_jax")
    notes = pushed.notes
    if base is not None and not base.on_hub and base.name not in PACKAGED:
        notes += (f"its base is a folder, published as {base.name}: others must give --model",)
    return dataclasses.replace(pushed, no_adapter=no_adapter, notes=notes)


def _without_local_path(base: _Base) -> _Base:
    """Return a base without local paths: a folder becomes its last component."""
    if base.name in PACKAGED or CardBase(base.name, base.revision, None).on_hub:
        return base
    folder = re.split(r"[/\\]", base.name.removeprefix(T5X).rstrip("/\\"))[-1]
    # ./ distinguishes it from a name on the Hub.
    return dataclasses.replace(base, name=(T5X if base.name.startswith(T5X) else "./") + folder)


def _base(members: Sequence[StoredPrompt], model: Model | None) -> CardBase | None:
    if model is not None:
        base = family(model.config)
        start = model.tokenizer.start if model.tokenizer is not None else ()
        separator = model.config.start_id
        return CardBase(model.name, model.revision, base.causal, separator, start, base.leading_space)
    known = next((metadata.base for _, metadata in members if metadata.base is not None), None)
    return None if known is None else CardBase(known.name, known.revision, None)


def _shapes(prompt: Prompt | Delta) -> dict[str, list[int]]:
    if isinstance(prompt, Delta):
        return {f"base/{name}": list(leaf.shape) for name, leaf in flat(prompt.leaves).items()}
    return {kind: list(getattr(part, part.arrays[0]).shape) for kind, part in prompt.parts.items()}


def _write_files(
    folder: Path, members: Sequence[StoredPrompt], model: Model | None
) -> tuple[dict[str, Path], str | None]:
    """Write a prompt. Returns the files by their destination paths, and the reason if there is no adapter."""

    def save(path: Path, **options: Any) -> None:
        if len(members) == 1:
            save_prompt(path, *members[0], **options)
        else:
            prompts, metadata = zip(*members, strict=True)
            save_ensemble(path, prompts, metadata, **options)

    save(folder / FILE)
    no_adapter, adapters = None, folder / "adapters"
    if model is None:
        no_adapter = "an adapter stores sizes of its base, and the base is not given"
    else:
        try:
            with replace_path_in_errors(adapters, "the prompt"):
                save(adapters, format="peft", model=model)
        except PromptFormatError as error:
            no_adapter = str(error)
    adapter_files = sorted(file for file in adapters.rglob("*") if file.is_file() and file.name != CARD)
    return {FILE: folder / FILE} | {file.relative_to(adapters).as_posix(): file for file in adapter_files}, no_adapter


def _commit(target: HubName, files: Mapping[str, Path | bytes], private: bool, message: str) -> Pushed:
    """Commit files, given by their paths in the destination folder."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token

    if get_token() is None:
        raise HubError(f"{target}: log in with `hf auth login` and a write token before you push")
    api = HfApi()
    try:
        info = _repository(api, target, private)
        existing = {file.rfilename for file in info.siblings or ()}
        kept = target.inside(CARD) in existing and not _is_pushed_card(target, info.sha)
        files = {file: content for file, content in files.items() if not (kept and file == CARD)}
        start = target.inside("")
        inside = (file.removeprefix(start) for file in existing if file.startswith(start))
        old = sorted(file for file in inside if _ADAPTER_FILE.fullmatch(file) and file not in files)
        operations: list[Any] = [CommitOperationAdd(target.inside(file), content) for file, content in files.items()]
        operations += [CommitOperationDelete(target.inside(file)) for file in old]
        done = api.create_commit(
            target.repository,
            operations,
            commit_message=message,
            revision=target.revision,
            parent_commit=info.sha,  # fails if somebody else has pushed meanwhile
        )
    except UserError:
        raise
    except hub_errors() as error:
        raise HubError(f"{target}: {hub_reason(error, 'pushing', 'repository')}") from error
    note = f"{CARD} was not written by a push and is kept"
    tree = f"/tree/{quote(target.revision or 'main', safe='')}/{quote(target.folder)}".rstrip("/")
    address = f"{without_login(api.endpoint)}/{target.repository}{tree if target.folder or target.revision else ''}"
    return Pushed(str(target), address, done.oid, tuple(files), tuple(old), None, (note,) if kept else ())


def _repository(api: Any, target: HubName, private: bool) -> Any:
    """Return the Hub's info about the branch. Creates the repository and the branch if necessary."""
    from huggingface_hub import errors

    try:
        info = repository_info(target)
    except errors.GatedRepoError:
        raise
    except errors.RepositoryNotFoundError:
        api.create_repo(target.repository, private=private or None)  # None means the owner's default
        info = None
    except errors.RevisionNotFoundError:
        info = None
    if info is None:
        if target.revision is not None:
            api.create_branch(target.repository, branch=target.revision, exist_ok=True)
        info = repository_info(target)
    if private and info.private is False:
        raise HubError(
            f"{target}: the repository exists and is public. Make it private in its settings, push to another one, or "
            "omit --private"
        )
    return info


def _is_pushed_card(target: HubName, commit: str) -> bool:
    """Return whether a push wrote the existing card."""
    import huggingface_hub

    file = Path(huggingface_hub.hf_hub_download(target.repository, target.inside(CARD), revision=commit))
    return any(mark.encode() in file.read_bytes() for mark in (MARK, OLD_MARK))
