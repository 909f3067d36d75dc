"""The command line: `prompt-jax VERB ...`. Parses first, then imports what the verb needs."""

import dataclasses
import difflib
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from prompt_jax import config as configuration
from prompt_jax.config import ConfigError, Experiment
from prompt_jax.errors import UserError

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
    split: str = "test"
    """The split of the task."""
    tasks: Path | None = None
    """Folder or file with seqio tasks; `tasks` in the working directory if there is one."""
    limit: int | None = None
    """Only so many examples."""
    batch_size: int = 64
    """Examples a batch."""
    predictions: Path | None = None
    """Write one JSON line an example to this file."""


@dataclasses.dataclass(frozen=True)
class Predict:
    """Answer texts from the arguments, a file or standard input, a line each."""

    file: tyro.conf.Positional[Path]
    """A prompt file."""
    texts: tyro.conf.Positional[tuple[str, ...]] = ()
    """Inputs; without any they come from --input. Where the template has several columns, JSON objects."""
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
    model: Model | None = None
    for path in args.files:
        prompt, metadata = read_prompt(path)
        if model is None or metadata.base is None or metadata.base.fingerprint != model.fingerprint:
            model = _load_base(path, metadata, args.base)
        _check_base(path, prompt, metadata, model, args.base)
        examples = _examples(args, path, metadata, model)
        result = evaluation.evaluate(
            model,
            prompt,
            examples,
            target_length=examples.format.target_length if examples.format else 16,
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
    from prompt_jax.task_format import TaskFormat

    prompt, metadata = read_prompt(args.file)
    model = _load_base(args.file, metadata, args.base)
    _check_base(args.file, prompt, metadata, model, args.base)
    task_format = metadata.format or TaskFormat("{text}")
    for rows in _chunks(_rows(args, task_format.columns), args.batch_size):
        inputs = evaluation.tokenise(model, [task_format.render(row) for row in rows], task_format.input_length)
        given = evaluation.answers(
            model, prompt, inputs, target_length=task_format.target_length, batch_size=args.batch_size
        )
        if not args.json:
            print("\n".join(answer.replace("\n", " ") for answer in given), flush=True)
            continue
        scores: Iterable[Any] = [None] * len(rows)
        if task_format.labels:
            ranked = evaluation.label_scores(model, prompt, inputs, task_format.labels, batch_size=args.batch_size)
            scores = [dict(zip(task_format.labels, row, strict=True)) for row in ranked.round(5).tolist()]
        for row, answer, row_scores in zip(rows, given, scores, strict=True):
            print(json.dumps({"input": row, "prediction": answer, "label_scores": row_scores}), flush=True)
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

    prompt, metadata = read_prompt(args.file)
    try:
        model: Model | None = _load_base(args.file, metadata, args.base)
    except UserError as error:
        if args.base.model is not None:
            raise
        print(f"prompt-jax: {error}\n", file=sys.stderr)
        model = None
    if model is not None:
        _check_base(args.file, prompt, metadata, model, args.base)
    print(describe(args.file, prompt, metadata, model, args.neighbours))
    return 0


# --------------------------------------------------------------------------------------------------------------
# What the verbs share


def _load_base(path: Path, metadata: "PromptMetadata", base: Base) -> "Model":
    """The base that the user names, or the one that the prompt file names if it is on this machine."""
    from prompt_jax.models.hub import load_model

    if base.model is not None:
        return load_model(base.model, base.dtype, base.revision)
    if metadata.base is None:
        raise UserError(f"{path} does not say which base it was trained on; name it with --model")
    name = metadata.base.name
    if name != "demo" and (Path(name).is_absolute() or Path(name).exists()):
        raise UserError(f"{path} was trained on the folder {name}; if you trust it, say --model {name}")
    try:
        return load_model(name, base.dtype, metadata.base.revision, local_files_only=True)
    except UserError as error:
        raise UserError(
            f"{path} was trained on {name}, which is not on this machine. To download it, say --model {name}"
        ) from error


def _check_base(path: Path, prompt: "Prompt", metadata: "PromptMetadata", model: "Model", base: Base) -> None:
    from prompt_jax.prompts.files import check_base

    if model.tokenizer is None:
        raise UserError(f"the model {model.name} has no tokenizer (spiece.model or tokenizer.json)")
    check_base(path, prompt, metadata, model, allow_other_base=base.allow_other_base)


def _examples(args: Evaluate, path: Path, metadata: "PromptMetadata", model: "Model") -> "Examples":
    """The examples that the user names, or those of the task that the prompt was trained on."""
    from prompt_jax import data

    task_format = metadata.format
    if args.data is not None:
        if task_format is None:
            raise UserError(f"{path} has no template, which --data needs")
        task: Any = data.file_task(args.data.name, {args.split: args.data}, task_format, target=args.target)
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
    lengths = task_format or getattr(task, "task_format", None)
    assert model.tokenizer is not None  # _check_base
    return data.load_examples(
        task,
        model.tokenizer,
        args.split,
        input_length=lengths.input_length if lengths else 512,
        target_length=lengths.target_length if lengths else 16,
        limit=args.limit,
    )


def _rows(args: Predict, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The rows to answer, by column."""
    if args.texts:
        lines: Iterable[str] = args.texts
    elif args.input is not None and any(ending in args.input.suffixes for ending in (".jsonl", ".csv", ".tsv")):
        from prompt_jax.data_files import read_rows

        for _, row in read_rows(args.input):
            yield row
        return
    elif args.input is not None:
        lines = args.input.read_text(encoding="utf-8").splitlines()
    else:
        lines = (line.rstrip("\n") for line in sys.stdin)

    for number, line in enumerate(lines, 1):
        if len(columns) == 1:
            yield {columns[0]: line}
            continue
        wanted = f"a JSON object with {', '.join(columns)}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"input {number}: expected {wanted}; {error}") from error
        if not isinstance(row, dict):
            raise UserError(f"input {number}: expected {wanted}, not a JSON {type(row).__name__}")
        yield row


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
    except FileNotFoundError as error:
        return _say(f"no such file: {error.filename}", 1)
    except KeyboardInterrupt:
        return _say("interrupted; the same command goes on from the last checkpoint", 130)


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
    warnings.formatwarning = lambda message, *_: f"prompt-jax: warning: {message}\n"


def _usage() -> str:
    lines = ["usage: prompt-jax VERB ...", "", "Tuning frozen language models with soft prompts, in JAX.", ""]
    lines += [f"  {verb:<10}{(kind.__doc__ or '').splitlines()[0]}" for verb, (kind, _) in VERBS.items()]
    return "\n".join([*lines, "", "prompt-jax VERB --help says what a verb takes."])


def _nearest(word: str, words: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(words), n=1, cutoff=0.4)
    return f" Did you mean {near[0]!r}?" if near else ""


def _say(text: str, status: int) -> int:
    print(f"prompt-jax: {text}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
