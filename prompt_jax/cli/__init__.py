"""The command line: `prompt-jax VERB ...`, with one file for each verb.

A verb's dataclass defines its options; the docstrings of its fields are the help texts. Verbs import JAX and other slow
modules only when they run.
"""

import contextlib
import difflib
import importlib.metadata
import logging
import os
import shutil
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from prompt_jax import experiment as experiments
from prompt_jax.cli import (
    average,
    concatenate,
    convert,
    diff,
    doctor,
    evaluate,
    inspect,
    new,
    predict,
    push,
    similarity,
    train,
)
from prompt_jax.cli.common import print_error, print_escaped
from prompt_jax.cli.options import parse_words
from prompt_jax.errors import ConfigError, UserError
from prompt_jax.experiment import Experiment
from prompt_jax.report.terminal import escape_control_characters
from prompt_jax.storage.paths import parse_path

VERBS: dict[str, tuple[type, Callable[[Any], int]]] = {
    "train": (train.Train, train.run),
    "evaluate": (evaluate.Evaluate, evaluate.run),
    "predict": (predict.Predict, predict.run),
    "export": (convert.Export, convert.export),
    "import": (convert.Import, convert.import_),
    "push": (push.Push, push.run),
    "inspect": (inspect.Inspect, inspect.run),
    "diff": (diff.Diff, diff.run),
    "average": (average.Average, average.run),
    "concatenate": (concatenate.Concatenate, concatenate.run),
    "similarity": (similarity.Similarity, similarity.run),
    "new": (new.New, new.run),
    "doctor": (doctor.Doctor, doctor.run),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit status.

    Args:
      argv: the arguments; None for the program's arguments.

    Returns:
      0 for success, 1 for an error, 2 for wrong arguments, 3 for a diverged run, 75 for a run that was preempted after
      saving, 76 for a run that lost another process. `diff` returns 1 for a difference and 2 for an error.
    """
    if argv is not None:
        return _run(list(argv))
    _silence_tracebacks()
    status = _run(sys.argv[1:])
    if status and not _is_distributed():  # otherwise Python waits minutes for the threads of a failed save
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, AttributeError):  # a full disk, a closed stream
                stream.flush()
        os._exit(status)
    return status


def _is_distributed() -> bool:
    """Return whether this is one of several processes. `prompt_jax.distributed.processes` ends those."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()


def _run(argv: list[str]) -> int:
    verb, rest = (argv[0], argv[1:]) if argv else ("", [])
    try:
        if verb in ("", "-h", "--help"):
            print_escaped(_usage())
            return 0 if verb else 2
        if verb == "--version":
            print_escaped(f"prompt-jax {importlib.metadata.version('prompt-jax')}")
            return 0
        if verb not in VERBS:
            return print_error(f"there is no verb {verb!r}.{_nearest(verb, VERBS)}\n\n{_usage()}", 2)
        args = parse(verb, rest)
        _prepare_jax()
        return VERBS[verb][1](args)
    except UserError as error:
        return print_error(str(error), error.exit_status)
    except BrokenPipeError:  # the reader of the output exited, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except FileNotFoundError as error:
        return print_error(f"no such file: {error.filename}", 1)
    except OSError as error:
        return print_error(f"{error.filename or verb}: {error.strerror or error}", 1)
    except UnicodeError as error:
        return print_error(f"{verb}: text that is not UTF-8: {error}", 1)
    except KeyboardInterrupt:
        return print_error(
            "interrupted" + ("; the same command resumes from the last checkpoint" if verb == "train" else ""), 130
        )


def parse(verb: str, rest: list[str]) -> Any:
    """Parse a verb's arguments to an instance of its class in VERBS. Exit with a message if they are wrong."""
    kind = VERBS[verb][0]
    default = None
    if kind is train.Train:
        config, rest = train.split_config(rest)
        if config is None and not {"-h", "--help", "--help-all"} & set(rest):
            raise ConfigError("train needs a configuration file, e.g. prompt-jax train configs/demo.py")
        path = Path("CONFIG") if config is None else parse_path(config)
        experiment = Experiment() if config is None else experiments.load_experiment(path)
        experiment, rest = train.choose_method(experiment, rest)
        default = train.Train(path, experiment)
    return parse_words(kind, default, rest, verb)


def _prepare_jax() -> None:
    """Set environment variables that JAX reads at import, unless the user has set them."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache / "prompt_jax" / "compilations"))
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow only reads data here, but warns about GPUs
    warnings.formatwarning = lambda message, *_: f"prompt-jax: warning: {escape_control_characters(str(message))}\n"


def _silence_tracebacks() -> None:
    """Silence the tracebacks that libraries print for checkpoint errors, which we report in one line.

    When a checkpoint cannot be read or written, orbax logs warnings and a traceback before it raises the error,
    tensorstore prints that an event loop is closed, and asyncio logs the errors of all arrays but the first.
    """
    unretrieved = "Task exception was never retrieved"
    logging.getLogger("asyncio").addFilter(lambda record: not record.getMessage().startswith(unretrieved))
    logging.getLogger("absl").addFilter(lambda record: record.levelno > logging.WARNING and record.exc_info is None)
    sys.unraisablehook = _print_unraisable


def _print_unraisable(unraisable: Any) -> None:
    if unraisable.object is not None or str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def _usage() -> str:
    lines = [
        "usage: prompt-jax VERB ...",
        "",
        "Prompt tuning and prefix tuning for frozen language models, in JAX.",
        "",
    ]
    width = min(shutil.get_terminal_size().columns, 100)
    for verb, (kind, _) in VERBS.items():
        summary = (kind.__doc__ or "").split("\n\n")[0]
        first = f"  {verb:<12}"
        lines.append(textwrap.fill(" ".join(summary.split()), width, initial_indent=first, subsequent_indent=" " * 14))
    return "\n".join(
        [*lines, "", "prompt-jax VERB --help lists a verb's options, prompt-jax --version prints the version."]
    )


def _nearest(word: str, words: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(words), n=1, cutoff=0.4)
    return f" Did you mean {near[0]!r}?" if near else ""
