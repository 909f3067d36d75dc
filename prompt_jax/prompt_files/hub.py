"""Prompts on the Hugging Face Hub, named `hf://USER/NAME[@REVISION][/PATH]` wherever a prompt file is expected.

A repository, or a folder of it, holds a prompt as `prompt.npz`, as a PEFT adapter, as adapters `member_0`, `member_1`
and so on, or as one `.npz` of another name. The first of these is read. Only its files are downloaded, into the Hub's
usual cache. PATH may also name a single file: `hf://USER/NAME/FOLDER/FILE.npz`.

Repositories may come from strangers: names are checked before any request, sizes before any download, and the files are
read like any other prompt file.
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
from prompt_jax.config.ensemble import MAX_MEMBERS
from prompt_jax.errors import UserError
from prompt_jax.prompt_files.metadata import PromptFormatError
from prompt_jax.prompt_files.peft import MEMBER
from prompt_jax.prompt_files.peft_tensors import CONFIG, PICKLE, TENSORS

FILE = "prompt.npz"  # the file that `prompt_jax.prompt_files.push` writes
MAX_SIZE = 4 << 30  # bytes of a prompt's files; prefixes of T5-XXL at all sites have 236 MB for 100 slots
TIMEOUT = 30.0  # seconds to wait for a list of files

_SCHEME, _OLD_SCHEME = "hf://", "hub:"
_EXPECTED = "expected hf://USER/NAME[@REVISION][/PATH]"
# Git's rules for references, or slightly stricter.
_REVISION = re.compile(r"(?!.*(?:\.\.|//|/\.|\.lock$))[A-Za-z0-9_](?:[\w./+-]{0,198}[\w+-])?", re.ASCII)
_REVISION_WITH_SLASH = re.compile(r"refs/(?:pr/\d+|convert/[\w.-]+)", re.ASCII)


class HubError(UserError, OSError):
    """The Hub refused a request or could not be reached; the message names the prompt and the reason."""


@dataclasses.dataclass(frozen=True)
class HubName:
    """The parts of a name on the Hub. `str` returns the name.

    Attributes:
      repository: USER/NAME.
      folder: a folder or file of the repository; "" for its root.
      revision: a branch, tag or commit; None for the default branch.
    """

    repository: str
    folder: str
    revision: str | None

    def __str__(self) -> str:
        revision = self.revision or ""
        if not _REVISION_WITH_SLASH.fullmatch(revision):
            revision = revision.replace("/", "%2F")
        return f"{_SCHEME}{self.repository}{'@' * bool(revision)}{revision}{'/' * bool(self.folder)}{self.folder}"

    def inside(self, file: str) -> str:
        """Return the repository path of a file in the folder."""
        return f"{self.folder}/{file}" if self.folder else file


def is_hub_name(path: str | Path) -> bool:
    """Return whether a path is a name on the Hub. pathlib shortens `hf://` to `hf:/`."""
    return str(path).startswith(("hf:/", _OLD_SCHEME))


def parse_hub_name(text: str) -> HubName:
    """Parse a name on the Hub as `huggingface_hub` does, or in the earlier form `hub:USER/NAME[/PATH][@REVISION]`.

    Raises:
      PromptFormatError: not a valid name; the message says which part is wrong.
    """
    from huggingface_hub.errors import HfUriError
    from huggingface_hub.utils import parse_hf_uri

    if not is_hub_name(text):
        raise PromptFormatError(f"{text!r} is not a name on the Hub; {_EXPECTED}")
    uri, at, old_revision = text, "", ""
    if text.startswith(_OLD_SCHEME):
        uri, at, old_revision = text.removeprefix(_OLD_SCHEME).partition("@")
    try:
        parsed = parse_hf_uri(_SCHEME + uri.removeprefix("hf:").lstrip("/"))
    except HfUriError as error:
        raise PromptFormatError(f"{text!r}: {error.msg.strip().rstrip('.')}; {_EXPECTED}") from error
    if parsed.type != "model":
        raise PromptFormatError(f"{text!r} is a {parsed.type}; prompts are in repositories of models: {_EXPECTED}")
    name = HubName(parsed.id, parsed.path_in_repo, old_revision if at else parsed.revision)
    for part in name.folder.split("/") if name.folder else ():
        if part in ("", ".", "..") or len(part) > 255 or "\\" in part or not part.isprintable():
            raise PromptFormatError(f"{text!r}: {part!r} is not a folder or file of a repository; {_EXPECTED}")
    if name.revision is not None and not _REVISION.fullmatch(name.revision):
        raise PromptFormatError(f"{text!r}: {name.revision!r} is not a branch, tag or commit; {_EXPECTED}")
    return name


@contextlib.contextmanager
def download(path: str | Path) -> Iterator[Path]:
    """Download a prompt from the Hub and yield its local path: a file, or a folder with one or several adapters.

    The Hub's cache holds links. A single file is yielded as the target of its link. A folder is yielded as a temporary
    copy with ordinary files, so that readers need not follow links. In PromptFormatErrors raised inside, the local path
    is replaced by the name on the Hub.

    Raises:
      HubError: neither the Hub nor the cache has the files.
      PromptFormatError: not a valid name, or there is no prompt under that name.
    """
    name = parse_hub_name(str(path))
    single, files = _download_files(name)
    with contextlib.ExitStack() as stack:
        if single:
            (local,) = files.values()
        else:
            local = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="prompt_jax_")))
            for file, source in files.items():
                (local / file).parent.mkdir(exist_ok=True)
                shutil.copyfile(source, local / file)
        with replace_path_in_errors(local, str(name)):
            yield local


@contextlib.contextmanager
def replace_path_in_errors(local: Path, name: str) -> Iterator[None]:
    """Replace a temporary path in the messages of PromptFormatErrors by a name that the user knows."""
    try:
        yield
    except PromptFormatError as error:
        text = str(error).replace(f"{local}/", f"{name}: ").replace(str(local), name)
        raise PromptFormatError(text) from error


# --------------------------------------------------------------------------------------------------------------
# Downloading


def _download_files(name: HubName) -> tuple[bool, dict[str, Path]]:
    """Return whether the prompt is a single file, and the local files by their paths in the folder."""
    sizes = _list_files(name)
    single, files = _select_files(name, sizes)
    total = 0
    for file in files:
        size = sizes[name.inside(file) if file else name.folder]
        if size is None:
            raise HubError(f"{name}: not downloaded, because the Hub does not report the size of {file or name.folder}")
        total += size
    if total > MAX_SIZE:
        raise PromptFormatError(f"{name}: {total} bytes in {len(files)} files; a prompt has at most {MAX_SIZE}")
    local, revision = {}, name.revision
    for file in files:
        inside = name.inside(file) if file else name.folder
        entry = _download_file(name, inside, revision)
        snapshot = entry.parents[inside.count("/")]  # .../snapshots/COMMIT
        local[file], revision = _resolve_link(name, entry, snapshot.parents[1]), snapshot.name
    return single, local


def repository_info(name: HubName) -> Any:
    """Return huggingface_hub's `ModelInfo` of a repository at a revision; `siblings` are the files.

    Raises:
      one of `hub_errors`: a ValueError if the answer, which may be a proxy's, is not a list of files.
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
        raise ValueError(f"the answer is not a list of files: {type(error).__name__}: {error}") from error
    return info


def _list_files(name: HubName) -> Mapping[str, int | None]:
    """Return the sizes of the repository's files, or of the cached files if the Hub cannot be reached."""
    try:
        info = repository_info(name)
    except hub_errors() as error:
        reason = hub_reason(error, "listing its files", "repository")
        if not _is_unavailable(error):
            raise HubError(f"{name}: {reason}") from error
        if cached := _list_cached_files(name):
            return cached
        raise HubError(f"{name} is not in the cache, and {reason}") from error
    return {file.rfilename: file.size for file in info.siblings or ()}


def _is_unavailable(error: Exception) -> bool:
    """Return whether the Hub was unreachable or failed, so that huggingface_hub falls back to the cache too."""
    from huggingface_hub import errors

    if isinstance(error, errors.HfHubHTTPError):
        return error.response.status_code >= 500
    return isinstance(error, errors.HTTPError | ConnectionError)


def _list_cached_files(name: HubName) -> dict[str, int | None]:
    """Return the sizes of a repository's cached files (https://huggingface.co/docs/hub/local-cache)."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE, f"models--{name.repository.replace('/', '--')}")
    reference = folder / "refs" / (name.revision or constants.DEFAULT_REVISION)
    commit = reference.read_text() if reference.is_file() else name.revision
    if not commit:
        return {}
    snapshot = folder / "snapshots" / commit
    files = (file for file in snapshot.rglob("*") if file.is_file())
    return {file.relative_to(snapshot).as_posix(): file.stat().st_size for file in files}


def _select_files(name: HubName, sizes: Mapping[str, int | None]) -> tuple[bool, list[str]]:
    """Return whether the prompt is a single file, and the paths of its files in the folder; "" is the folder itself."""
    if name.folder in sizes:
        return True, [""]
    start = name.inside("")
    files = {file.removeprefix(start) for file in sizes if file.startswith(start)}
    archives = sorted(file for file in files if file.endswith(".npz") and "/" not in file)
    if FILE in archives:
        return True, [FILE]
    folders = [""] if CONFIG in files else _member_folders(name, files)
    if len(archives) == 1 and not folders:
        return True, archives
    if archives and not folders:
        example = dataclasses.replace(name, folder=name.inside(archives[0]))
        raise PromptFormatError(f"{name} has several prompts, {_join(archives)}; name one, e.g. {example}")
    if not files:
        content = _join(_summarize(set(sizes))) or "nothing"
        raise PromptFormatError(f"{name}: the repository has no {name.folder or 'file'}; it has {content}")
    if not folders:
        arrays = sorted(file for file in files if file.endswith(".npy") and "/" not in file)
        expected = "a repository or a folder that has one of them"
        if arrays:
            expected = f"the file, e.g. {dataclasses.replace(name, folder=name.inside(arrays[0]))}"
        raise PromptFormatError(
            f"{name} has neither {FILE} nor a PEFT adapter; it has {_join(_summarize(files))}; name {expected}"
        )
    for folder in folders:
        if folder + PICKLE in files and folder + TENSORS not in files:
            raise PromptFormatError(
                f"{name}: {folder + PICKLE} is a pickle, which can run code, and is not downloaded. If you trust it, "
                f"load the adapter with PEFT and save it again: that writes {TENSORS}"
            )
    return False, [folder + file for folder in folders for file in (CONFIG, TENSORS) if folder + file in files]


def _member_folders(name: HubName, files: set[str]) -> list[str]:
    """Return the folders of an ensemble's adapters. The reader checks their numbers."""
    folders = [file.removesuffix(CONFIG) for file in files if file.endswith(f"/{CONFIG}")]
    folders = sorted(folder for folder in folders if MEMBER.fullmatch(folder[:-1]))
    if len(folders) > MAX_MEMBERS:
        raise PromptFormatError(f"{name}: {len(folders)} members; an ensemble has at most {MAX_MEMBERS}")
    return folders


def _summarize(files: set[str]) -> list[str]:
    """Return the files and subfolders of a folder, first the subfolders that hold a prompt."""
    inner = {file for file in files if "/" in file}
    prompts = {file.rpartition("/")[0] + "/" for file in inner if file.endswith((f"/{CONFIG}", ".npz"))}
    others = {file.partition("/")[0] + "/" * ("/" in file) for file in files}
    return sorted(prompts) + sorted(others - {folder.partition("/")[0] + "/" for folder in prompts})


def _join(names: list[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(name[:100] for name in names[:most]) + more


def _download_file(name: HubName, file: str, revision: str | None) -> Path:
    """Return a file's path in the cache, after downloading it if necessary."""
    import huggingface_hub
    from huggingface_hub import errors

    try:
        return Path(huggingface_hub.hf_hub_download(name.repository, file, revision=revision))
    except errors.LocalEntryNotFoundError as error:
        raise HubError(f"{name}: the Hub could not be reached for {file}, which is not in the cache") from error
    except hub_errors() as error:
        raise HubError(f"{name}: {hub_reason(error, f'downloading {file}', 'repository')}") from error


def _resolve_link(name: HubName, entry: Path, repository: Path) -> Path:
    """Return the file that a cache entry links to. It must be in the Hub's cache."""
    from huggingface_hub import constants

    file = entry.resolve()
    shared = Path(constants.HF_HUB_CACHE, "blobs")  # by all repositories
    if not file.is_file() or not any(file.is_relative_to(folder.resolve()) for folder in (repository, shared)):
        raise PromptFormatError(f"{name}: {entry} leads out of the Hub's cache, to {file}; delete this link")
    return file
