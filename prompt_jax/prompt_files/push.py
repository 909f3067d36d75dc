"""Putting prompts on the Hugging Face Hub, where `prompt_jax.prompt_files.hub` reads them."""

import dataclasses
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from prompt_jax.checkpoints.load import T5X, Model, hub_errors, hub_reason, without_login
from prompt_jax.errors import UserError
from prompt_jax.models import family
from prompt_jax.models.delta import flat
from prompt_jax.models.prompt import Prompt
from prompt_jax.prompt_files.hub import FILE, HubError, HubName, parse_hub_name, replace_path_in_errors, repository_info
from prompt_jax.prompt_files.hub_card import MARK, CardBase, CardMember, repository_card
from prompt_jax.prompt_files.io import StoredPrompt, check_bases, read_prompts, save_ensemble, save_prompt
from prompt_jax.prompt_files.metadata import ModelId, PromptFormatError
from prompt_jax.prompt_files.peft import CARD, MEMBER
from prompt_jax.prompt_files.peft_tensors import CONFIG, PICKLE, TENSORS

_COMMIT = re.compile(r"[0-9a-f]{40}")
# What makes a folder an adapter of PEFT, or one of several.
_OF_ADAPTERS = re.compile(rf"(?:{MEMBER.pattern}/)?(?:{'|'.join(map(re.escape, (CONFIG, TENSORS, PICKLE)))})")
_Named = TypeVar("_Named", ModelId, Model)


@dataclasses.dataclass(frozen=True)
class Pushed:
    """What is on the Hub now.

    Attributes:
      name: by which prompts are read from there.
      address: of its page.
      commit: its hash.
      files: what is in the place of the prompt.
      deleted: what was there of another prompt.
      no_adapter: why there is no adapter of PEFT; None if there is.
      notes: what else the user may not expect.
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
    """Puts a prompt, or an ensemble, on the Hub in one commit: `prompt.npz`, adapters of PEFT and a model card.

    The repository is made if there is none, and the branch too. Adapters of another prompt that are in the place are
    deleted, and a card that is not from here is kept. Of a base that is a folder only its own name is told.

    Args:
      path: of any prompt file.
      name: `hf://USER/NAME[@BRANCH][/FOLDER]`.
      model: the prompt's base, without which there are no adapters.
      private: whether a new repository is one that nobody else sees.
      message: of the commit.
      allow_other_base: as for `load_prompt`.

    Raises:
      PromptFormatError: no name on the Hub, or no prompt file.
      HubError: the Hub does not take it; the message says why, and never the token.
    """
    place = parse_place(name)
    members = read_prompts(path)
    return push_members(
        path, members, place, model, private=private, message=message, allow_other_base=allow_other_base
    )


def parse_place(name: str) -> HubName:
    """Where a prompt is pushed to. Raises PromptFormatError where none can be."""
    place = parse_hub_name(name)
    if place.revision is not None and _COMMIT.fullmatch(place.revision):
        raise PromptFormatError(f"{name}: a commit stays as it is; push to a branch")
    if place.folder.endswith(".npz"):
        raise PromptFormatError(f"{name}: a prompt is pushed to a folder, as {FILE}")
    return place


def push_members(
    path: str | Path,
    members: Sequence[StoredPrompt],
    place: HubName,
    model: Model | None,
    *,
    private: bool,
    message: str | None,
    allow_other_base: bool,
) -> Pushed:
    """`push_prompt` of prompts that were read from the path."""
    if model is not None:
        check_bases(path, members, model, allow_other_base=allow_other_base)
        model = _public(model)
    members = [
        (prompt, said if said.base is None else dataclasses.replace(said, base=_public(said.base)))
        for prompt, said in members
    ]
    base = _base(members, model)
    with tempfile.TemporaryDirectory(prefix="prompt_jax_") as folder:
        files, no_adapter = _written(Path(folder), members, model)
        shown = [CardMember(_shapes(prompt), metadata) for prompt, metadata in members]
        card = repository_card(place, shown, base, adapters=no_adapter is None)
        pushed = _commit(place, {**files, CARD: card.encode()}, private, message or "A prompt of prompt_jax")
    notes = pushed.notes
    if base is not None and not base.on_hub and base.name != "demo":
        notes += (f"its base is a folder, told of as {base.name}: others say --model with their own",)
    return dataclasses.replace(pushed, no_adapter=no_adapter, notes=notes)


def _public(base: _Named) -> _Named:
    """A base as others are told of it: of a folder its own name, and not where on this machine it is."""
    if base.name == "demo" or CardBase(base.name, base.revision, None).on_hub:
        return base
    folder = re.split(r"[/\\]", base.name.removeprefix(T5X).rstrip("/\\"))[-1]
    # With ./ it is not taken for a name on the Hub.
    return dataclasses.replace(base, name=(T5X if base.name.startswith(T5X) else "./") + folder)


def _base(members: Sequence[StoredPrompt], model: Model | None) -> CardBase | None:
    if model is not None:
        return CardBase(model.name, model.revision, family(model.config).causal)
    known = next((metadata.base for _, metadata in members if metadata.base is not None), None)
    return None if known is None else CardBase(known.name, known.revision, None)


def _shapes(prompt: Prompt) -> dict[str, list[int]]:
    base = {f"base/{name}": list(leaf.shape) for name, leaf in flat(prompt.base or {}).items()}
    return {kind: list(getattr(part, part.arrays[0]).shape) for kind, part in prompt.parts.items()} | base


def _written(folder: Path, members: Sequence[StoredPrompt], model: Model | None) -> tuple[dict[str, Path], str | None]:
    """The files of a prompt, by their paths where it is pushed to, and why there is no adapter if there is none."""

    def save(path: Path, **options: Any) -> None:
        if len(members) == 1:
            save_prompt(path, *members[0], **options)
        else:
            prompts, metadata = zip(*members, strict=True)
            save_ensemble(path, prompts, metadata, **options)

    save(folder / FILE)
    no_adapter, adapters = None, folder / "adapters"
    if model is None:
        no_adapter = "it says what its base is like, and the base is not given"
    else:
        try:
            with replace_path_in_errors(adapters, "the prompt"):
                save(adapters, format="peft", model=model)
        except PromptFormatError as error:
            no_adapter = str(error)
    found = sorted(file for file in adapters.rglob("*") if file.is_file() and file.name != CARD)
    return {FILE: folder / FILE} | {file.relative_to(adapters).as_posix(): file for file in found}, no_adapter


def _commit(place: HubName, files: Mapping[str, Path | bytes], private: bool, message: str) -> Pushed:
    """Uploads files, by their paths in the place."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token

    if get_token() is None:
        raise HubError(f"{place}: to push to it, log in with `hf auth login`, with a token that may write")
    api = HfApi()
    try:
        info = _repository(api, place, private)
        there = {file.rfilename for file in info.siblings or ()}
        kept = place.inside(CARD) in there and not _is_ours(place, info.sha)
        files = {file: content for file, content in files.items() if not (kept and file == CARD)}
        start = place.inside("")
        own = (file.removeprefix(start) for file in there if file.startswith(start))
        old = sorted(file for file in own if _OF_ADAPTERS.fullmatch(file) and file not in files)
        operations: list[Any] = [CommitOperationAdd(place.inside(file), content) for file, content in files.items()]
        operations += [CommitOperationDelete(place.inside(file)) for file in old]
        done = api.create_commit(
            place.repository,
            operations,
            commit_message=message,
            revision=place.revision,
            parent_commit=info.sha,  # what was looked at: nothing is undone that somebody else does meanwhile
        )
    except UserError:
        raise
    except hub_errors() as error:
        raise HubError(f"{place}: {hub_reason(error, 'pushing', 'repository')}") from error
    note = f"{CARD} was not written by a push, and stays as it is"
    tree = f"/tree/{quote(place.revision or 'main', safe='')}/{quote(place.folder)}".rstrip("/")
    address = f"{without_login(api.endpoint)}/{place.repository}{tree if place.folder or place.revision else ''}"
    return Pushed(str(place), address, done.oid, tuple(files), tuple(old), None, (note,) if kept else ())


def _repository(api: Any, place: HubName, private: bool) -> Any:
    """What the Hub says of the branch, which is made if it is not there, as the repository is."""
    from huggingface_hub import errors

    try:
        found = repository_info(place)
    except errors.GatedRepoError:
        raise
    except errors.RepositoryNotFoundError:
        api.create_repo(place.repository, private=private or None)  # None is what the owner has chosen
        found = None
    except errors.RevisionNotFoundError:
        found = None
    if found is None:
        if place.revision is not None:
            api.create_branch(place.repository, branch=place.revision, exist_ok=True)
        found = repository_info(place)
    if private and found.private is False:
        raise HubError(
            f"{place}: the repository is there already, and is public. Make it private in its settings, push to "
            "another, or leave --private out"
        )
    return found


def _is_ours(place: HubName, commit: str) -> bool:
    """Whether the card that is there was written by a push."""
    import huggingface_hub

    file = Path(huggingface_hub.hf_hub_download(place.repository, place.inside(CARD), revision=commit))
    return MARK.encode() in file.read_bytes()
