"""The data of tasks from TFDS: where it is on disk, and its download."""

from typing import Any
from urllib.parse import urlsplit

from prompt_jax.data.files import FileTask
from prompt_jax.data.seqio_import import import_seqio
from prompt_jax.data.seqio_tasks import seqio_source
from prompt_jax.data.text_tasks import TextSource, TokenTask
from prompt_jax.errors import DataError

# TFDS first looks here for data sets that its authors prepared.
_PREPARED = "https://storage.googleapis.com/tfds-data"


def is_downloaded(task: Any) -> bool:
    """Return whether a task can be loaded without a download. False only if TFDS has yet to prepare its data."""
    builder = _tfds_builder(task)
    return builder is None or builder.data_path.exists()


def source_dataset(task: Any, split: str) -> Any:
    """Return the tf.data.Dataset of a split of a seqio.Task's source, in order. TFDS downloads the data if needed.

    Raises:
      DataError: the download failed. Names the data set, the folder that was searched, and the reason.
    """
    if is_downloaded(task):
        return task.source.get_dataset(split=split, shuffle=False)
    builder = _tfds_builder(task)
    try:
        _check_reachable(builder)
        return task.source.get_dataset(split=split, shuffle=False)
    except Exception as error:  # raised by requests, TFDS or the data set's code
        raise DataError(
            f"the data of {task.name}, TFDS's {task.source.tfds_dataset.name}, are not in {builder.data_dir_root} "
            f"(set TFDS_DATA_DIR if they are elsewhere), and cannot be downloaded: {_reason(error)}"
        ) from error


def _tfds_builder(task: Any) -> Any:
    """Return the TFDS builder of a task's data; None if the data is not TFDS's, or each split is another data set."""
    if isinstance(task, FileTask | TokenTask) or isinstance(task.source, TextSource):
        return None
    source = seqio_source(task.source)
    if not isinstance(source, import_seqio().TfdsDataSource):
        return None
    loader = source.tfds_dataset
    return loader.builder if loader.tfds_splits is None else None


def _check_reachable(builder: Any) -> None:
    """Raise requests.ConnectionError if none of a data set's hosts can be reached.

    Without a network, TFDS would retry for minutes. Any response counts as reachable. If a file was
    downloaded earlier, the check is skipped and TFDS tries.
    """
    import requests  # TFDS downloads with it

    urls = [url for url in builder.url_infos or () if url.startswith("http")]
    downloaded = "".join(path.read_text() for path in builder.data_dir_root.glob("downloads/*.INFO"))
    if any(url in downloaded for url in urls):
        return
    failure = None
    hosts = {urlsplit(url).netloc: url for url in (*urls, _PREPARED)} if urls else {}
    for url in hosts.values():
        try:
            requests.head(url, timeout=(10, None))  # seconds to connect; no limit for the response, as in TFDS
            return
        except requests.ConnectionError as error:
            failure = error
    if failure is not None:
        raise failure


def _reason(error: BaseException) -> str:
    """Return the first line of an error's root cause."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return (str(error).strip() or type(error).__name__).splitlines()[0]
