"""Prompts on the Hugging Face Hub, by the name `hub:USER/NAME[/FOLDER][@REVISION]` wherever a prompt file is named.

A repository, or a folder of it, has a prompt as `prompt.npz`, as an adapter of PEFT, as adapters `member_0`, `member_1`
and so on, or as one `.npz` of another name; the first of these is read, and only its files are fetched, into the Hub's
usual cache. A single file can be named as well: `hub:USER/NAME/FOLDER/FILE.npz`.

Repositories come from strangers: names are checked before anything is asked, sizes before anything is fetched, and what
is fetched is read as any other prompt file is.
"""

import contextlib
import dataclasses
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from prompt_jax.checkpoints.load import hub_errors, hub_reason
from prompt_jax.errors import UserError
from prompt_jax.prompt_files.metadata import MAX_MEMBERS, PromptFormatError
from prompt_jax.prompt_files.peft import CONFIG, MEMBER, PICKLE, TENSORS

FILE = "prompt.npz"  # as `prompt_jax.prompt_files.push` names it
MAX_SIZE = 4 << 30  # bytes of a prompt's files; prefixes of T5-XXL at all sites have 236 MB for 100 slots
TIMEOUT = 30.0  # seconds that the Hub has for a list of files

_PREFIX = "hub:"
_WANTED = "expected hub:USER/NAME, hub:USER/NAME/FOLDER or either with @REVISION"
# The Hub's rules for users and repositories, and Git's for references, or a little less.
_OWN_NAME = re.compile(r"(?!.*(?:--|\.\.|\.git$))[A-Za-z0-9_](?:[\w.-]{0,94}[A-Za-z0-9_])?", re.ASCII)
_REVISION = re.compile(r"(?!.*(?:\.\.|//|/\.|\.lock$))[A-Za-z0-9_](?:[\w./+-]{0,198}[\w+-])?", re.ASCII)


class HubError(UserError, OSError):
    """The Hub does not give or take what it was asked for; the message names it and says why."""


@dataclasses.dataclass(frozen=True)
class HubName:
    """What a name stands for; as a text it is the name again.

    Attributes:
      repository: USER/NAME.
      folder: in the repository, or a file there; "" for all of it.
      revision: a branch, tag or commit; None for the branch that the Hub has as the first, main.
    """

    repository: str
    folder: str
    revision: str | None

    def __str__(self) -> str:
        at = "" if self.revision is None else f"@{self.revision}"
        return f"{_PREFIX}{self.repository}{'/' if self.folder else ''}{self.folder}{at}"

    def inside(self, file: str) -> str:
        """The path in the repository of a file of the folder."""
        return f"{self.folder}/{file}" if self.folder else file


def is_name(path: str | Path) -> bool:
    """Whether it is a name on the Hub; a file whose path begins so is named by its absolute path."""
    return str(path).startswith(_PREFIX)


def parse_name(text: str) -> HubName:
    """Takes a name apart.

    Raises:
      PromptFormatError: no name on the Hub; the message says which part is wrong.
    """
    place, at, revision = text.removeprefix(_PREFIX).partition("@")
    parts = place.split("/")
    if not text.startswith(_PREFIX) or len(parts) < 2:
        raise PromptFormatError(f"{text!r} names no repository on the Hub; {_WANTED}")
    for part in parts[:2]:
        if not _OWN_NAME.fullmatch(part):
            raise PromptFormatError(f"{text!r}: {part!r} is no user or repository of the Hub; {_WANTED}")
    for part in parts[2:]:
        if part in ("", ".", "..") or len(part) > 255 or "\\" in part or not part.isprintable():
            raise PromptFormatError(f"{text!r}: {part!r} is no folder or file of a repository; {_WANTED}")
    if at and not _REVISION.fullmatch(revision):
        raise PromptFormatError(f"{text!r}: {revision!r} is no branch, tag or commit; {_WANTED}")
    return HubName("/".join(parts[:2]), "/".join(parts[2:]), revision if at else None)


@contextlib.contextmanager
def fetched(path: str | Path) -> Iterator[Path]:
    """The prompt of a name on this machine: a file, or a folder with an adapter or several.

    The Hub's cache has links in place of files. A file is given as what its link leads to, and a folder is a copy of
    ordinary files, which is gone afterwards: nothing that reads them has to follow a link. A PromptFormatError that is
    raised meanwhile names the prompt on the Hub instead.

    Raises:
      HubError: the Hub, or without it the cache, does not give the files.
      PromptFormatError: it is no name, or names nothing that is a prompt.
    """
    name = parse_name(str(path))
    whole, files = _fetch(name)
    with contextlib.ExitStack() as stack:
        if whole:
            (local,) = files.values()
        else:
            local = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="prompt_jax_")))
            for file, source in files.items():
                (local / file).parent.mkdir(exist_ok=True)
                shutil.copyfile(source, local / file)
        with renamed(local, str(name)):
            yield local


@contextlib.contextmanager
def renamed(local: Path, name: str) -> Iterator[None]:
    """Puts the name that a user knows into the messages of PromptFormatErrors, in the place of a path."""
    try:
        yield
    except PromptFormatError as error:
        text = str(error).replace(f"{local}/", f"{name}: ").replace(str(local), name)
        raise PromptFormatError(text) from error


# --------------------------------------------------------------------------------------------------------------
# Fetching


def _fetch(name: HubName) -> tuple[bool, dict[str, Path]]:
    """Whether the prompt is a single file, and its files by their paths in the folder."""
    sizes = _listed(name)
    whole, files = _needed(name, sizes)
    size = 0
    for file in files:
        own = sizes[name.inside(file) if file else name.folder]
        if own is None:
            raise HubError(f"{name}: the Hub does not say how large {file or name.folder} is, and it is not fetched")
        size += own
    if size > MAX_SIZE:
        raise PromptFormatError(f"{name}: {size} bytes in {len(files)} files; a prompt has at most {MAX_SIZE}")
    places, revision = {}, name.revision
    for file in files:
        inside = name.inside(file) if file else name.folder
        entry = _download(name, inside, revision)
        snapshot = entry.parents[inside.count("/")]  # .../snapshots/COMMIT
        places[file], revision = _followed(name, entry, snapshot.parents[1]), snapshot.name
    return whole, places


def repository_info(name: HubName) -> Any:
    """What the Hub says of a repository at a revision, as its client has it: `siblings` are the files.

    Raises:
      one of `hub_errors`: a ValueError where the answer, which may be a proxy's, is no list of files.
    """
    from huggingface_hub import HfApi

    try:
        info = HfApi().model_info(name.repository, revision=name.revision, files_metadata=True, timeout=TIMEOUT)
        for file in info.siblings or ():
            if not isinstance(file.rfilename, str):
                raise TypeError(f"a file is called {file.rfilename!r:.60}")
            if file.size is not None and (type(file.size) is not int or file.size < 0):
                raise TypeError(f"{file.rfilename:.60} has the size {file.size!r:.60}")
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"the answer is no list of a repository's files: {type(error).__name__}: {error}") from error
    return info


def _listed(name: HubName) -> Mapping[str, int | None]:
    """The repository's files and their sizes; those in the cache where the Hub is not to be reached."""
    try:
        info = repository_info(name)
    except hub_errors() as error:
        reason = hub_reason(error, "listing its files", "repository")
        if not _is_away(error):
            raise HubError(f"{name}: {reason}") from error
        if cached := _cached(name):
            return cached
        raise HubError(f"{name} is not in the cache, and {reason}") from error
    return {file.rfilename: file.size for file in info.siblings or ()}


def _is_away(error: Exception) -> bool:
    """Whether the Hub was not reached or has a fault of its own, when its client takes the cache's files too."""
    from huggingface_hub import errors

    if isinstance(error, errors.HfHubHTTPError):
        return error.response.status_code >= 500
    return isinstance(error, errors.HTTPError | ConnectionError)


def _cached(name: HubName) -> dict[str, int | None]:
    """The files of a name that are in the cache, and their sizes (https://huggingface.co/docs/hub/local-cache)."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE, f"models--{name.repository.replace('/', '--')}")
    reference = folder / "refs" / (name.revision or constants.DEFAULT_REVISION)
    commit = reference.read_text() if reference.is_file() else name.revision
    if not commit:
        return {}
    snapshot = folder / "snapshots" / commit
    files = (file for file in snapshot.rglob("*") if file.is_file())
    return {file.relative_to(snapshot).as_posix(): file.stat().st_size for file in files}


def _needed(name: HubName, sizes: Mapping[str, int | None]) -> tuple[bool, list[str]]:
    """Whether the prompt is a single file, and the paths of its files in the folder; "" is the folder itself."""
    if name.folder in sizes:
        return True, [""]
    start = name.inside("")
    files = {file.removeprefix(start) for file in sizes if file.startswith(start)}
    archives = sorted(file for file in files if file.endswith(".npz") and "/" not in file)
    if FILE in archives:
        return True, [FILE]
    folders = [""] if CONFIG in files else _members(name, files)
    if len(archives) == 1 and not folders:
        return True, archives
    if archives and not folders:
        one = dataclasses.replace(name, folder=name.inside(archives[0]))
        raise PromptFormatError(f"{name} has several prompts, {_some(archives)}; name one, e.g. {one}")
    if not files:
        there = _some(_shown(set(sizes))) or "nothing"
        raise PromptFormatError(f"{name}: there is no {name.folder or 'file'} in the repository, but {there}")
    if not folders:
        arrays = sorted(file for file in files if file.endswith(".npy") and "/" not in file)
        wanted = "a repository or a folder that has one of them"
        if arrays:
            wanted = f"the file, e.g. {dataclasses.replace(name, folder=name.inside(arrays[0]))}"
        raise PromptFormatError(
            f"{name}: there is no {FILE} in it and no adapter of PEFT, but {_some(_shown(files))}; name {wanted}"
        )
    for folder in folders:
        if folder + PICKLE in files and folder + TENSORS not in files:
            raise PromptFormatError(
                f"{name}: {folder + PICKLE} is a pickle, which can run code, and is not fetched. Where you trust it, "
                f"load the adapter with PEFT and save it again: that writes {TENSORS}"
            )
    return False, [folder + file for folder in folders for file in (CONFIG, TENSORS) if folder + file in files]


def _members(name: HubName, files: set[str]) -> list[str]:
    """The folders of an ensemble's adapters; what is wrong with their numbers is for the reader to say."""
    folders = [file.removesuffix(CONFIG) for file in files if file.endswith(f"/{CONFIG}")]
    folders = sorted(folder for folder in folders if MEMBER.fullmatch(folder[:-1]))
    if len(folders) > MAX_MEMBERS:
        raise PromptFormatError(f"{name}: {len(folders)} members; an ensemble has at most {MAX_MEMBERS}")
    return folders


def _shown(files: set[str]) -> list[str]:
    """What a folder has, subfolders with a prompt of their own by their whole paths."""
    prompts = {file.rpartition("/")[0] + "/" for file in files if file.endswith((f"/{CONFIG}", ".npz"))}
    others = {file.partition("/")[0] + "/" * ("/" in file) for file in files}
    return sorted(prompts) + sorted(others - {folder.partition("/")[0] + "/" for folder in prompts})


def _some(names: list[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(name[:100] for name in names[:most]) + more


def _download(name: HubName, file: str, revision: str | None) -> Path:
    """A file in the cache, where it is brought unless it is there."""
    import huggingface_hub
    from huggingface_hub import errors

    try:
        return Path(huggingface_hub.hf_hub_download(name.repository, file, revision=revision))
    except errors.LocalEntryNotFoundError as error:
        raise HubError(f"{name}: the Hub could not be reached for {file}, which is not in the cache") from error
    except hub_errors() as error:
        raise HubError(f"{name}: {hub_reason(error, f'fetching {file}', 'repository')}") from error


def _followed(name: HubName, entry: Path, repository: Path) -> Path:
    """The file that an entry of the cache is, or that its link leads to: one among the Hub's, and none elsewhere."""
    from huggingface_hub import constants

    file = entry.resolve()
    shared = Path(constants.HF_HUB_CACHE, "blobs")  # by all repositories
    if not file.is_file() or not any(file.is_relative_to(folder.resolve()) for folder in (repository, shared)):
        raise PromptFormatError(f"{name}: {entry} leads out of the Hub's cache, to {file}; delete this link")
    return file
