"""The command line: `prompt-jax VERB ...`. Parses first, then imports what the verb needs."""

import dataclasses
import difflib
import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from prompt_jax import config as configuration
from prompt_jax.config import ConfigError, Experiment
from prompt_jax.errors import MissingPackage, UserError
from prompt_jax.task_format import TaskFormat

if TYPE_CHECKING:
    from prompt_jax.examples import Examples
    from prompt_jax.models.hub import Model
    from prompt_jax.models.prompt import Prompt
    from prompt_jax.prompts.files import PromptMetadata


@dataclasses.dataclass(frozen=True)
class Train:
    """Train what an experiment describes; begun before, it goes on from the last checkpoint."""

    config: tyro.conf.Positional[Path]
    """A configuration file that builds an Experiment; it comes first."""
    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    tasks: Path | None = None
    """Folder or file with seqio tasks; `tasks` in the working directory if there is one."""
    overwrite: bool = False
    """Begin anew, deleting a run of this name."""


@dataclasses.dataclass(frozen=True)
class Base:
    """Which base a prompt file is used with."""

    model: str | None = None
    """Name or folder of the base. Without it the one that the prompt file names is used if it is on this machine:
    nothing is downloaded or opened because a file says so."""
    revision: str | None = None
    """Branch, tag or commit of --model on the hub."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the base's weights and the activations."""
    allow_other_base: bool = False
    """Use the prompt although it was trained on another base."""


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Score prompt files on a task: greedy answers and, for a task with labels, the most probable label."""

    files: tyro.conf.Positional[tuple[Path, ...]]
    """Prompt files."""
    base: Annotated[Base, tyro.conf.arg(name="")] = Base()
    task: str | None = None
    """A task of the tasks folder, instead of the one that the prompt was trained on."""
    data: Path | None = None
    """A .jsonl, .csv or .tsv file of your own, instead of a task; read with the prompt's template and labels."""
    target: str = "label"
    """The column of --data with the answers."""
    template: str | None = None
    """Input text of a row of --data, with its columns in braces; the prompt's own if left out."""
    labels: tuple[str, ...] | None = None
    """Possible answers of --data in the order of their numbers; the prompt's own if left out."""
    metrics: tuple[str, ...] | None = None
    """Names of metrics for --data; the prompt's own if left out."""
    split: str = "test"
    """The split of the task."""
    tasks: Path | None = None
    """Folder or file with seqio tasks; `tasks` in the working directory if there is one."""
    limit: int | None = None
    """Only so many examples."""
    batch_size: int = 64
    """Examples a batch."""
    predictions: Path | None = None
    """Write one JSON line an example to this file; for one prompt file."""


@dataclasses.dataclass(frozen=True)
class Predict:
    """Answer texts from the arguments, a file or standard input, a line each."""

    file: tyro.conf.Positional[Path]
    """A prompt file."""
    texts: tyro.conf.Positional[tuple[str, ...]] = ()
    """Inputs; without any they come from --input. Where the template has several columns, JSON objects."""
    template: str | None = None
    """Input text with columns in braces; the prompt's own if left out."""
    labels: tuple[str, ...] | None = None
    """Possible answers, which --json scores; the prompt's own if left out."""
    base: Annotated[Base, tyro.conf.arg(name="")] = Base()
    input: Path | None = None
    """A file with an input a line, or a .jsonl, .csv or .tsv file with the template's columns; standard input if
    left out."""
    json: bool = False
    """Print a JSON object a line, with the labels' log-probabilities (nats) where the task has labels."""
    batch_size: int = 64
    """Examples a batch."""


@dataclasses.dataclass(frozen=True)
class Export:
    """Write a prompt file in another format."""

    file: tyro.conf.Positional[Path]
    """A prompt file."""
    dest: tyro.conf.Positional[Path]
    """The file to write."""
    format: Literal["npz", "npy"] | None = None
    """npz: this project's archive, readable with NumPy. npy: the bare array, as T5X's prompt-tuning has it. By the
    extension of DEST if left out."""


@dataclasses.dataclass(frozen=True)
class Inspect:
    """Print a prompt's provenance, norms and nearest vocabulary neighbours."""

    file: tyro.conf.Positional[Path]
    """A prompt file."""
    base: Annotated[Base, tyro.conf.arg(name="")] = Base()
    neighbours: int = 5
    """How many for each virtual token."""


# --------------------------------------------------------------------------------------------------------------
# The verbs


def train(args: Train) -> int:
    from prompt_jax.training.loop import train
    from prompt_jax.training.summary import finish

    setup = train(args.experiment, tasks=args.tasks, overwrite=args.overwrite)
    print(finish(args.experiment, setup))
    return 0


def evaluate(args: Evaluate) -> int:
    from prompt_jax import evaluation
    from prompt_jax.prompts.files import read_prompt

    if not args.files:
        raise UserError("name at least one prompt file, e.g. prompt-jax evaluate runs/demo/best.npz")
    if args.predictions is not None and len(args.files) > 1:
        raise UserError("--predictions is for one prompt file; evaluate them one after the other")
    _check_positive(batch_size=args.batch_size, limit=args.limit)
    model: Model | None = None
    for path in args.files:
        prompt, metadata = read_prompt(path)
        if model is None or metadata.base is None or metadata.base.fingerprint != model.fingerprint:
            model = _load_base(path, metadata, args.base)
        _check_base(path, prompt, metadata, model, args.base)
        examples, target_length = _examples(args, path, metadata, model)
        result = evaluation.evaluate(
            model,
            prompt,
            examples,
            target_length=target_length,
            batch_size=args.batch_size,
        )
        cut = "".join(f", {count} {part} cut" for part, count in examples.truncated.items() if count)
        print(f"{path}: {examples.name}, {examples.split}, {len(examples)} examples{cut}")
        for name, value in result.scores.items():
            print(f"  {name:<24}{value:.4f}")
        if args.predictions is not None:
            evaluation.write_predictions(args.predictions, examples, result)
    return 0


def predict(args: Predict) -> int:
    from prompt_jax import evaluation
    from prompt_jax.prompts.files import read_prompt

    _check_positive(batch_size=args.batch_size)
    prompt, metadata = read_prompt(args.file)
    model = _load_base(args.file, metadata, args.base)
    _check_base(args.file, prompt, metadata, model, args.base)
    task_format = _format(metadata.format, args.template, args.labels, None)
    cut = 0
    for texts in _chunks(_texts(args, task_format), args.batch_size):
        inputs, cut_here = evaluation.tokenise(model, texts, task_format.input_length)
        cut += cut_here
        given = evaluation.answers(
            model, prompt, inputs, target_length=task_format.target_length, batch_size=args.batch_size
        )
        if not args.json:
            print("\n".join(answer.replace("\n", " ") for answer in given), flush=True)
            continue
        scores: Iterable[Any] = [None] * len(texts)
        if task_format.labels:
            ranked = evaluation.label_scores(model, prompt, inputs, task_format.labels, batch_size=args.batch_size)
            scores = [dict(zip(task_format.labels, row, strict=True)) for row in ranked.round(5).tolist()]
        for text, answer, row_scores in zip(texts, given, scores, strict=True):
            print(json.dumps({"input": text, "prediction": answer, "label_scores": row_scores}), flush=True)
    if cut:
        _say(f"{cut} inputs were cut to {task_format.input_length} tokens", 0)
    return 0


def export(args: Export) -> int:
    from prompt_jax.prompts.files import read_prompt, save_prompt

    prompt, metadata = read_prompt(args.file)
    save_prompt(args.dest, prompt, metadata, format=args.format)
    print(f"wrote {args.dest}")
    return 0


def inspect(args: Inspect) -> int:
    from prompt_jax.inspection import describe
    from prompt_jax.prompts.files import read_prompt

    _check_positive(neighbours=args.neighbours)
    prompt, metadata = read_prompt(args.file)
    try:
        model: Model | None = _load_base(args.file, metadata, args.base)
    except UserError as error:
        if args.base.model is not None:
            raise
        _say(f"{error}\n", 0)
        model = None
    if model is not None:
        _check_base(args.file, prompt, metadata, model, args.base)
    print(describe(args.file, prompt, metadata, model, args.neighbours))
    return 0


# --------------------------------------------------------------------------------------------------------------
# What the verbs share


# What a prompt file may name as its base, to be looked for on this machine: a name on the hub, and a commit.
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")


def _load_base(path: Path, metadata: "PromptMetadata", base: Base) -> "Model":
    """The base that the user names, or the one that the prompt file names if it is on this machine."""
    from prompt_jax.models.hub import load_model

    if base.model is not None:
        return load_model(base.model, base.dtype, base.revision)
    if metadata.base is None:
        raise UserError(f"{path} does not say which base it was trained on; name it with --model")
    name, revision = metadata.base.name, metadata.base.revision
    harmless = len(name) <= 96 and _HUB_NAME.fullmatch(name) and (revision is None or _COMMIT.fullmatch(revision))
    if name != "demo" and (not harmless or Path(name).exists()):
        raise UserError(
            f"{path} was trained on {name}, which is no name on the hub; if you trust it, say --model {name}"
        )
    try:
        return load_model(name, base.dtype, revision, local_files_only=True)
    except MissingPackage:
        raise
    except UserError as error:
        raise UserError(
            f"{path} was trained on {name}, which is not on this machine. To download it, say --model {name}"
        ) from error


def _check_base(path: Path, prompt: "Prompt", metadata: "PromptMetadata", model: "Model", base: Base) -> None:
    from prompt_jax.prompts.files import check_base

    if model.tokenizer is None:
        raise UserError(f"the model {model.name} has no tokenizer (spiece.model or tokenizer.json)")
    check_base(path, prompt, metadata, model, allow_other_base=base.allow_other_base)


def _format(
    own: TaskFormat | None,
    template: str | None,
    labels: tuple[str, ...] | None,
    metrics: tuple[str, ...] | None,
) -> TaskFormat:
    """The prompt's own task format, or one of a single column, with what the user says instead."""
    base = own or TaskFormat("{text}")
    given: dict[str, Any] = {"template": template, "labels": labels, "metrics": metrics}
    return dataclasses.replace(base, **{name: value for name, value in given.items() if value is not None})


def _examples(args: Evaluate, path: Path, metadata: "PromptMetadata", model: "Model") -> tuple["Examples", int]:
    """The examples that the user names, or those of the task that the prompt was trained on; the length of answers."""
    from prompt_jax import data

    own = metadata.format
    if args.data is not None:
        if own is None and args.template is None:
            raise UserError(f"{path} has no template, which --data needs; give one with --template")
        own = _format(own, args.template, args.labels, args.metrics)
        task: Any = data.file_task(args.data.name, {args.split: args.data}, own, target=args.target)
    else:
        name = args.task or metadata.task
        if name is None:
            raise UserError(f"{path} does not say what it was trained on; give --task NAME or --data FILE")
        data.discover_tasks(args.tasks)
        if args.task is None and name not in data.task_names():
            raise UserError(
                f"{path} was trained on {name}, which is no task here; give --data FILE, --task NAME or --tasks DIR"
            )
        task = data.find_task(name)
        if args.task is None and not data.on_this_machine(task):
            raise UserError(f"the data of {name} are not on this machine; to download them, say --task {name}")
        theirs = getattr(task, "task_format", None)
        if args.task is None and own is not None and theirs is not None and own.template != theirs.template:
            warnings.warn(
                f"{path} was trained with the template {own.template!r}; {name} has {theirs.template!r}",
                stacklevel=2,
            )
        own = theirs if args.task is not None else own or theirs
    lengths = own or TaskFormat("{inputs}")
    assert model.tokenizer is not None  # _check_base
    examples = data.load_examples(
        task,
        model.tokenizer,
        args.split,
        input_length=lengths.input_length,
        target_length=lengths.target_length,
        limit=args.limit,
    )
    return examples, lengths.target_length


def _texts(args: Predict, task_format: TaskFormat) -> Iterator[str]:
    """The input texts to answer."""
    from prompt_jax.data_files import DataError, file_kind, read_rows, render

    if args.texts:
        lines: Iterable[str] = args.texts
    elif args.input is not None:
        try:
            file_kind(args.input)
        except DataError:  # not one with columns
            lines = args.input.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        else:
            for number, row in read_rows(args.input):
                yield render(row, task_format, f"{args.input}:{number}")
            return
    else:
        lines = (line.removesuffix("\n") for line in sys.stdin)

    columns = task_format.columns
    for number, line in enumerate(lines, 1):
        if len(columns) == 1:
            yield task_format.render({columns[0]: line})
            continue
        wanted = f"a JSON object with {', '.join(columns)}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"input {number}: expected {wanted}; {error}") from error
        if not isinstance(row, dict):
            raise UserError(f"input {number}: expected {wanted}, not a JSON {type(row).__name__}")
        yield render(row, task_format, f"input {number}")


def _check_positive(**options: int | None) -> None:
    for name, value in options.items():
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} must be positive, not {value}")


def _chunks(rows: Iterable[Any], size: int) -> Iterator[list[Any]]:
    chunk: list[Any] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


# --------------------------------------------------------------------------------------------------------------
# The command itself

VERBS: dict[str, tuple[type, Callable[[Any], int]]] = {
    "train": (Train, train),
    "evaluate": (Evaluate, evaluate),
    "predict": (Predict, predict),
    "export": (Export, export),
    "inspect": (Inspect, inspect),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb. Returns the exit status: 0, 1 for an error, 2 for wrong arguments, 3 for a diverged run."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage())
        return 0 if argv else 2
    verb, rest = argv[0], argv[1:]
    if verb not in VERBS:
        return _say(f"there is no verb {verb!r}.{_nearest(verb, VERBS)}\n\n{_usage()}", 2)
    try:
        args = _parse(verb, rest)
        _prepare_jax()
        return VERBS[verb][1](args)
    except UserError as error:
        return _say(str(error), error.exit_status)
    except BrokenPipeError:  # the reader of the output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except FileNotFoundError as error:
        return _say(f"no such file: {error.filename}", 1)
    except OSError as error:
        return _say(f"{error.filename or verb}: {error.strerror or error}", 1)
    except UnicodeError as error:
        return _say(f"{verb}: text that is not UTF-8: {error}", 1)
    except KeyboardInterrupt:
        return _say(
            "interrupted" + ("; the same command goes on from the last checkpoint" if verb == "train" else ""), 130
        )


def _parse(verb: str, rest: list[str]) -> Any:
    kind = VERBS[verb][0]
    default = None
    if kind is Train:
        named = bool(rest) and not rest[0].startswith("-")
        if not named and not {"-h", "--help"} & set(rest):
            raise ConfigError("train needs a configuration file first, e.g. prompt-jax train configs/demo.py")
        path = Path(rest[0]) if named else Path("CONFIG")
        default = Train(path, configuration.load_experiment(path) if named else Experiment())
        rest = rest[1:] if named else rest
    return tyro.cli(kind, default=default, args=rest, prog=f"prompt-jax {verb}")


def _prepare_jax() -> None:
    """Settings that must stand before JAX is imported, where the user has not made them."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache / "prompt_jax" / "compilations"))
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow only reads data here, and looks for GPUs
    warnings.formatwarning = lambda message, *_: f"prompt-jax: warning: {_harmless(str(message))}\n"


def _usage() -> str:
    lines = ["usage: prompt-jax VERB ...", "", "Tuning frozen language models with soft prompts, in JAX.", ""]
    lines += [f"  {verb:<10}{(kind.__doc__ or '').splitlines()[0]}" for verb, (kind, _) in VERBS.items()]
    return "\n".join([*lines, "", "prompt-jax VERB --help says what a verb takes."])


def _nearest(word: str, words: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(words), n=1, cutoff=0.4)
    return f" Did you mean {near[0]!r}?" if near else ""


def _say(text: str, status: int) -> int:
    print(f"prompt-jax: {_harmless(text)}", file=sys.stderr)
    return status


def _harmless(text: str) -> str:
    """Text that may come from a stranger's file, with the characters escaped that a terminal would obey."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


if __name__ == "__main__":
    sys.exit(main())
