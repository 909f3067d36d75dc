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
from prompt_jax.config import ConfigError, Decoding, Dtype, Experiment
from prompt_jax.errors import MissingPackage, UserError
from prompt_jax.paths import as_path
from prompt_jax.task_format import TaskFormat

if TYPE_CHECKING:
    from prompt_jax.ensembles.members import Member
    from prompt_jax.ensembles.streams import Line, Mixed, Voting
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
    distributed: bool = False
    """Be one of several processes, each started with this command: on the hosts of a TPU pod, under Slurm, or where
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID say who is who."""
    heartbeat: int = 100
    """Seconds without a sign of life of another process after which this one ends."""


@dataclasses.dataclass(frozen=True)
class Base:
    """Which base a prompt file is used with."""

    model: str | None = None
    """Name or folder of the base. Without it the one that the prompt file names is used if it is on this machine:
    nothing is downloaded or opened because a file says so."""
    revision: str | None = None
    """Branch, tag or commit of --model on the hub."""
    dtype: Dtype = "float32"
    """Of the base's weights and the activations."""
    allow_other_base: bool = False
    """Use the prompt although it was trained on another base."""


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Score prompts on a task: generated answers and, for a task with labels, the most probable label.

    Two or more prompts are an ensemble: each member, their average, the best one and the vote are scored.
    """

    files: tyro.conf.Positional[tuple[Path, ...]]
    """Prompt files; of an ensemble's file all members count, in their order."""
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
    """Names of metrics; the task's own, or of --data the prompt's own, if left out."""
    split: str = "test"
    """The split of the task."""
    tasks: Path | None = None
    """Folder or file with seqio tasks; `tasks` in the working directory if there is one."""
    limit: int | None = None
    """Only so many examples, drawn at random but always the same."""
    batch_size: int = 64
    """Rows a batch: an example with the prompt of one member."""
    vote: Literal["majority", "mean-probability"] = "majority"
    """majority: the answer that most members give; of several the one with the highest log-probability summed over
    members, then the one of the earliest member. mean-probability: the label with the highest mean of the members'
    probabilities; for tasks with labels."""
    decoding: Decoding = Decoding()
    """How answers are generated."""
    early_stop: bool = False
    """Vote by majority without asking members about examples that are decided: the same votes for less work. Prints
    the vote and the share of passes saved alone, since the members' own scores are not known then."""
    out: Path | None = None
    """Write table.md, scores.json and predictions.jsonl, one JSON line an example, to this folder."""


@dataclasses.dataclass(frozen=True)
class Predict:
    """Answer texts from the arguments, a file or standard input, a line each.

    An ensemble answers with the vote of its members' majority."""

    words: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="[FILE] [TEXT ...]")] = ()
    """A prompt file, and inputs; without any they come from --input. Where the template has several columns, JSON
    objects."""
    prompts: Annotated[str | None, tyro.conf.arg(metavar="[NAME=]FILE,[NAME=]FILE...")] = None
    """Several prompt files of one base instead of FILE. Inputs are then JSON objects with the field `prompt`: the
    NAME of a file (its own without the extension if none is given), or of a member of an ensemble (`sentiment/0`), or
    null for the base alone; and the columns of that prompt's template (of the base alone: `text`). They are answered in
    batches mixed over prompts, in their order."""
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
    decoding: Decoding = Decoding()
    """How answers are generated."""


@dataclasses.dataclass(frozen=True)
class Export:
    """Write a prompt file in another format, or one prompt of an ensemble as a file of its own."""

    file: tyro.conf.Positional[Path]
    """A prompt file."""
    dest: tyro.conf.Positional[Path]
    """The file to write; for peft a folder that is new or empty."""
    member: int | None = None
    """Which prompt of an ensemble, numbered from 0; all of them if left out."""
    format: Literal["npz", "npy", "peft"] | None = None
    """npz: this project's archive, readable with NumPy. npy: the bare array, as T5X's prompt-tuning has it. peft: an
    adapter of Hugging Face's PEFT, or for an ensemble a folder of them; the base, of which they say the sizes, is
    loaded. By the extension of DEST if left out."""
    as_: Annotated[Literal["prefix"] | None, tyro.conf.arg(name="as")] = None
    """prefix: the keys and values that a causal model has of its virtual tokens, in place of these; they depend on the
    base, which is loaded. The same logits for less work."""
    base: Annotated[Base, tyro.conf.arg(name="")] = Base()


@dataclasses.dataclass(frozen=True)
class Import:
    """Write a prompt of another project as this project's .npz: an adapter of PEFT, or T5X's array."""

    source: tyro.conf.Positional[Path]
    """A folder with an adapter of PEFT or with adapters member_0, member_1, ..., or any prompt file."""
    dest: tyro.conf.Positional[Path]
    """The .npz to write."""
    model: str | None = None
    """Name or folder of the prompt's base: their sizes are compared, and the .npz names it, so that the other verbs
    find it."""
    revision: str | None = None
    """Branch, tag or commit of --model on the hub."""


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
    from prompt_jax import processes

    if args.distributed:
        processes.initialize(args.heartbeat)
    from prompt_jax.training.loop import train
    from prompt_jax.training.summary import finish

    with processes.others_may_be_lost():
        setup, progress = train(args.experiment, tasks=args.tasks, overwrite=args.overwrite)
        if text := finish(args.experiment, setup, progress):
            print(text)
    return 0


def evaluate(args: Evaluate) -> int:
    from prompt_jax.ensembles.members import check_distinct, read_members
    from prompt_jax.ensembles.outcome import evaluate_files

    if not args.files:
        raise UserError("name at least one prompt file, e.g. prompt-jax evaluate runs/demo/best.npz")
    _check_positive(batch_size=args.batch_size, limit=args.limit)
    check_distinct(args.files)
    members = read_members(args.files)
    _check_together(args, members)
    first = next((member for member in members if member.metadata.base is not None), members[0])
    model = _load_base(first.path, first.metadata, args.base)
    for member in members:
        _check_base(member.path, member.prompt, member.metadata, model, args.base)
    examples, target_length = _examples(args, members, model)
    outcome = evaluate_files(
        model,
        members,
        examples,
        target_length=target_length,
        batch_size=args.batch_size,
        decoding=args.decoding,
        vote=args.vote,
        early_stop=args.early_stop,
    )
    print(_harmless("\n".join(table.text() for table in outcome.shown)))
    if args.out is not None:
        print(f"wrote {', '.join(map(str, outcome.write(args.out)))}")
    return 0


def predict(args: Predict) -> int:
    _check_positive(batch_size=args.batch_size)
    lines, answers = _stream(args) if args.prompts is None else _mixed_stream(args)
    for chunk in _chunks(lines, args.batch_size):
        for line, answer in zip(chunk, answers(chunk, args.batch_size, rank=args.json), strict=True):
            shown = {**line._asdict(), **answer._asdict()}
            if args.prompts is None:
                del shown["prompt"]
            print(json.dumps(shown) if args.json else answer.prediction.replace("\n", " "))
        sys.stdout.flush()
    if answers.cut:
        _say(f"{answers.cut} inputs were cut to the longest that their prompt's task has", 0)
    return 0


def export(args: Export) -> int:
    from prompt_jax.prompts.files import check_bases, read_prompts, save_ensemble, save_prompt

    members = read_prompts(args.file)
    count = len(members)
    model = None
    if args.member is not None and not 0 <= args.member < count:
        has = "a single prompt, number 0" if count == 1 else f"{count} prompts, numbered from 0 to {count - 1}"
        raise UserError(f"--member {args.member}: {args.file} has {has}")
    if args.as_ == "prefix":
        members = _as_prefixes(args, members)
    if args.format == "peft":
        model = _load_base(args.file, members[0][1], args.base)
        check_bases(args.file, members, model, allow_other_base=args.base.allow_other_base)
    if args.member is not None or count == 1:
        save_prompt(args.dest, *members[args.member or 0], format=args.format, model=model)
    elif (args.format or args.dest.suffix[1:]) == "npy":
        raise UserError(
            f"{args.file} is an ensemble of {count} prompts and a .npy holds one: say which with --member, from 0 to "
            f"{count - 1}"
        )
    else:
        prompts, metadata = zip(*members, strict=True)
        save_ensemble(args.dest, prompts, metadata, format=args.format, model=model)
    print(f"wrote {args.dest}")
    return 0


def import_(args: Import) -> int:
    from prompt_jax.models.hub import load_model
    from prompt_jax.prompts.files import Base as Trained
    from prompt_jax.prompts.files import check_base, read_prompts, save_ensemble, save_prompt

    if args.dest.suffix != ".npz":
        raise UserError(f"{args.dest}: what is imported is a .npz; name it so (export writes other formats)")
    if args.model is None and args.revision is not None:
        raise UserError("--revision is of --model, which is not given")
    members = read_prompts(args.source)
    if args.model is not None:
        if known := next((said.base for _, said in members if said.base is not None), None):
            raise UserError(f"{args.source} says itself that it was trained on {known.name}: leave --model out")
        model = load_model(args.model, revision=args.revision)
        own = Trained(model.name, model.revision, model.fingerprint)
        members = [(prompt, dataclasses.replace(said, base=own)) for prompt, said in members]
        for prompt, said in members:
            check_base(args.source, prompt, said, model)
    if len(members) == 1:
        save_prompt(args.dest, *members[0])
    else:
        prompts, metadata = zip(*members, strict=True)
        save_ensemble(args.dest, prompts, metadata)
    print(f"wrote {args.dest}")
    return 0


def _as_prefixes(
    args: Export, members: Sequence[tuple["Prompt", "PromptMetadata"]]
) -> list[tuple["Prompt", "PromptMetadata"]]:
    from prompt_jax.models import family

    model = _load_base(args.file, members[0][1], args.base)
    as_prefix = getattr(family(model.config), "as_prefix", None)
    if as_prefix is None:
        raise UserError(
            f"{model.name} is no causal model: what its encoder makes of virtual tokens depends on the input and is no "
            "prefix"
        )
    made = []
    for prompt, metadata in members:
        _check_base(args.file, prompt, metadata, model, args.base)
        made.append((as_prefix(model.params, model.config, prompt), dataclasses.replace(metadata, method="prefix")))
    return made


def inspect(args: Inspect) -> int:
    from prompt_jax.inspection import describe
    from prompt_jax.prompts.files import read_prompts

    _check_positive(neighbours=args.neighbours)
    found = read_prompts(args.file)
    try:
        model: Model | None = _load_base(args.file, found[0][1], args.base)
    except UserError as error:
        if args.base.model is not None:
            raise
        _say(f"{error}\n", 0)
        model = None
    for number, (prompt, metadata) in enumerate(found):
        if model is not None:
            _check_base(args.file, prompt, metadata, model, args.base)
        name = f"{args.file}, member {number} of {len(found)}" if len(found) > 1 else str(args.file)
        print(describe(name, prompt, metadata, model, args.neighbours), end="\n\n" if number + 1 < len(found) else "\n")
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
        raise UserError(f"the model {model.name} has no tokenizer (spiece.model, tokenizer.json or vocab.json)")
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


def _check_together(args: Evaluate, members: Sequence["Member"]) -> None:
    """Refuses options that do not go together, and members that cannot vote."""
    from prompt_jax.ensembles import members as ensemble
    from prompt_jax.models.prompt import check_alike

    given = {"template": args.template, "labels": args.labels, "metrics": args.metrics}
    if args.data is None and (ignored := [f"--{name}" for name, value in given.items() if value is not None]):
        raise UserError(f"{' and '.join(ignored)} say how --data is read, which is not given; a task has its own")
    if args.early_stop and args.vote != "majority":
        raise UserError(f"--early-stop is for --vote majority: by {args.vote} every member counts to the end")
    if len(members) == 1:
        if args.early_stop or args.vote != "majority":
            raise UserError(f"--vote and --early-stop are for two prompts or more; {members[0]} is one")
        return
    if not args.base.allow_other_base:
        ensemble.check_one_base(members)
    ensemble.check_one_task(
        members,
        task_given=args.task is not None or args.data is not None,
        template_given=args.task is not None or args.template is not None,
        labels_given=args.labels is not None,
    )
    if args.task is None:
        ensemble.warn_of_lengths(members)
    check_alike([member.prompt for member in members], [str(member) for member in members])


def _examples(args: Evaluate, members: Sequence["Member"], model: "Model") -> tuple["Examples", int]:
    """The examples that the user names, or those of the task that the prompts were trained on; the length of answers.

    What prompts say is taken from the first that says it.
    """
    from prompt_jax import data

    first = next((member for member in members if member.metadata.format is not None), members[0])
    path, own = first.path, first.metadata.format
    if args.data is not None:
        if own is None and args.template is None:
            raise UserError(f"{path} has no template, which --data needs; give one with --template")
        own = _format(own, args.template, args.labels, args.metrics)
        task: Any = data.file_task(args.data.name, {args.split: args.data}, own, target=args.target)
    else:
        name = args.task or next((member.metadata.task for member in members if member.metadata.task), None)
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
        metric_names=args.metrics or (),
    )
    return examples, lengths.target_length


def _stream(args: Predict) -> tuple[Iterator["Line"], "Voting"]:
    """The inputs for a prompt file, and what answers them: its prompt, or the vote of an ensemble's members."""
    from prompt_jax.ensembles.streams import Line, Voting
    from prompt_jax.prompts.files import check_bases, read_prompts

    if not args.words:
        raise UserError("name a prompt file, e.g. prompt-jax predict runs/demo/best.npz, or several with --prompts")
    file = as_path(args.words[0])
    members = read_prompts(file)
    model = _load_base(file, members[0][1], args.base)
    check_bases(file, members, model, allow_other_base=args.base.allow_other_base)
    formats = [metadata.format for _, metadata in members]
    other = next((number for number, own in enumerate(formats) if own != formats[0]), None)
    if other is not None:
        raise UserError(
            f"members 0 and {other} of {file} are for different tasks and cannot vote; name a member for each input "
            f"with --prompts {file}, or write one to a file with prompt-jax export --member"
        )
    task_format = _format(formats[0], args.template, args.labels, None)
    texts = _texts(_inputs(args.words[1:], args.input), task_format)
    return (Line(None, text) for text in texts), Voting(
        model, [prompt for prompt, _ in members], task_format, args.decoding
    )


def _mixed_stream(args: Predict) -> tuple[Iterator["Line"], "Mixed"]:
    """The inputs that name their prompts, and what answers them."""
    from prompt_jax.ensembles import streams
    from prompt_jax.ensembles.members import check_one_base

    assert args.prompts is not None  # predict
    words = [word for word in args.prompts.split(",") if word]
    if not words or args.template is not None or args.labels is not None:
        raise UserError("--prompts names files, separated by commas, and each prompt has its own template and labels")
    named = streams.read_named(words)
    members = list(named.values())
    if not args.base.allow_other_base:
        check_one_base(members)
    first = next((member for member in members if member.metadata.base is not None), members[0])
    model = _load_base(first.path, first.metadata, args.base)
    for member in members:
        _check_base(member.path, member.prompt, member.metadata, model, args.base)
    wanted = 'a JSON object with "prompt" and the columns of its template'
    rows = ((where, _as_row(line, where, wanted)) for where, line in _inputs(args.words, args.input))
    return streams.read_lines(rows, named), streams.Mixed(model, named, args.decoding)


def _inputs(words: Sequence[str], file: Path | None) -> Iterator[tuple[str, Any]]:
    """Where each input is from, and the input: a line of text or, from a file with columns, a row."""
    from prompt_jax.data_files import DataError, file_kind, read_rows

    if words or file is None:
        lines: Iterable[str] = words or (line.removesuffix("\n") for line in sys.stdin)
    else:
        try:
            file_kind(file)
        except DataError:  # not one with columns
            lines = file.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        else:
            yield from ((f"{file}:{number}", row) for number, row in read_rows(file))
            return
    yield from ((f"input {number}", line) for number, line in enumerate(lines, 1))


def _texts(inputs: Iterable[tuple[str, Any]], task_format: TaskFormat) -> Iterator[str]:
    """The texts of inputs of one format, whose lines are JSON if it has several columns."""
    from prompt_jax.data_files import render

    columns = task_format.columns
    for where, line in inputs:
        if len(columns) == 1 and isinstance(line, str):
            yield task_format.render({columns[0]: line})
        else:
            yield render(_as_row(line, where, f"a JSON object with {', '.join(columns)}"), task_format, where)


def _as_row(line: Any, where: str, wanted: str) -> dict[str, Any]:
    """A row as it is, and a line as the JSON object that it is to be."""
    if not isinstance(line, str):
        return line
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: expected {wanted}; {error}") from error
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected {wanted}, not a JSON {type(row).__name__}")
    return row


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
    "import": (Import, import_),
    "inspect": (Inspect, inspect),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb. Returns the exit status: 0, 1 for an error, 2 for wrong arguments, 3 for a diverged run, 75 for
    one that was asked to leave and has saved, 76 for one that lost another process."""
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
        path = as_path(rest[0]) if named else Path("CONFIG")
        default = Train(path, configuration.load_experiment(path) if named else Experiment())
        rest = rest[1:] if named else rest
    return tyro.cli(kind, default=default, args=rest, prog=f"prompt-jax {verb}", registry=_with_buckets())


def _with_buckets() -> tyro.constructors.ConstructorRegistry:
    """How paths are read: those of a bucket too, which pathlib would take for a folder `gs:`."""
    registry = tyro.constructors.ConstructorRegistry()

    @registry.primitive_rule
    def path(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec | None:
        if info.type is not Path:
            return None
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar="PATH",
            instance_from_str=lambda words: as_path(words[0]),
            is_instance=lambda value: isinstance(value, Path),
            str_from_instance=lambda value: [str(value)],
        )

    return registry


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
