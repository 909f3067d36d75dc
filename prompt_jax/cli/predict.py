"""`prompt-jax predict`."""

import contextlib
import dataclasses
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import tyro

from prompt_jax.cli.common import (
    BaseOptions,
    check_model,
    check_positive,
    check_tokenizer,
    load_base,
    override_format,
    print_note,
    read_chosen,
)
from prompt_jax.cli.inputs import as_row, input_texts, read_inputs
from prompt_jax.config.decoding import Decoding
from prompt_jax.control_tokens import remove_marks
from prompt_jax.errors import UserError
from prompt_jax.report.terminal import Activity, escape_control_characters
from prompt_jax.storage.json_text import json_text
from prompt_jax.storage.paths import parse_path

if TYPE_CHECKING:
    from prompt_jax.ensembles.streams import Line, Mixed, Voting


@dataclasses.dataclass(frozen=True)
class Predict:
    """Answer texts from arguments, a file or standard input, with one line for each answer.

    An ensemble answers by majority vote. A terminal shows control characters as escapes such as \\x1b. In files and
    pipes, only line breaks are replaced, by spaces."""

    examples: ClassVar[tuple[str, ...]] = (
        'prompt-jax predict runs/demo "a gripping, beautifully acted film"',
        "prompt-jax predict runs/demo --input reviews.txt --json",
    )
    shown: ClassVar[str] = (
        "input json member model prompts labels template batch_size decoding.beams decoding.temperature decoding.seed"
    )

    words: Annotated[
        tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="[FILE] [TEXT ...]", help_behavior_hint="")
    ] = ()
    """Prompt file (or the folder of a run), then inputs. Without inputs, --input is read. If the template has several
    columns, each input is a JSON object. Put -- before texts that start with a hyphen."""
    prompts: Annotated[str | None, tyro.conf.arg(metavar="[NAME=]FILE,[NAME=]FILE...", help_behavior_hint="")] = None
    """Several prompt files of one base, instead of FILE. Each input is then a JSON object with the columns of its
    prompt's template and a field `prompt`: NAME (by default the file's name without extension), NAME/0, NAME/1, ... for
    the members of an ensemble, or null for the base with the column `text`."""
    member: int | None = None
    """Use only this member of an ensemble, numbered from 0."""
    template: str | None = None
    """Template of an input, with column names in braces. None means the prompt's."""
    labels: tuple[str, ...] | None = None
    """Possible answers, which --json scores. None means the prompt's."""
    base: Annotated[BaseOptions, tyro.conf.arg(name="")] = BaseOptions()
    input: Path | None = None
    """File with one text a line, or .jsonl, .csv or .tsv file with the template's columns; optionally .gz; UTF-8, or
    UTF-16 with a byte order mark. None means standard input."""
    json: bool = False
    """Print one JSON object a line, in ASCII, with the log-probability (nats) of each label."""
    batch_size: int = 64
    """Examples in a batch."""
    decoding: Decoding = Decoding()
    """How answers are generated."""


def run(args: Predict) -> int:
    check_positive(batch_size=args.batch_size)
    lines, answers = _stream(args) if args.prompts is None else _mixed_stream(args)
    done, total = 0, _count(args)
    chunks = _chunks(lines, args.batch_size)
    typed = sys.stdin is not None and sys.stdin.isatty()  # the line of progress would disturb a user who types
    with Activity("answering") as activity:
        while chunk := _next(chunks, activity, hide=typed):
            activity.before_batch(done, total)
            results = answers(chunk, args.batch_size, rank=args.json)
            done += len(chunk)
            with activity.hidden(sys.stdout.isatty()):
                for line, answer in zip(chunk, results, strict=True):
                    record = {**line._asdict(), "input": remove_marks(line.input), **answer._asdict()}
                    if args.prompts is None:
                        del record["prompt"]
                    print(json_text(record) if args.json else _one_line(answer.prediction))
                sys.stdout.flush()
    if answers.cut:
        print_note(f"{answers.cut} inputs were truncated to the input length of their prompt's task")
    return 0


def _stream(args: Predict) -> tuple[Iterator["Line"], "Voting"]:
    """Return the inputs for one prompt file, and the function that answers them by its prompt or its members' vote."""
    with Activity("starting"):
        from prompt_jax.ensembles.streams import Line, Voting
        from prompt_jax.models.delta import Delta
        from prompt_jax.prompt_files.io import check_bases
        from prompt_jax.prompt_files.metadata import find_task_mismatch

    if not args.words:
        raise UserError("name a prompt file, e.g. prompt-jax predict runs/demo/best.npz, or several with --prompts")
    loaded = read_chosen([parse_path(args.words[0])], args.member)
    file, members = loaded[0].path, [(each.prompt, each.metadata) for each in loaded]
    model = load_base(file, members[0][1], args.base)
    check_tokenizer(model)
    check_bases(file, members, model, allow_other_base=args.base.allow_other_base)
    if len(members) > 1 and any(isinstance(prompt, Delta) for prompt, _ in members):
        raise UserError(
            f"the {len(members)} members of {file} change weights of the base and cannot share a batch; choose one "
            "with --member NUMBER (prompt-jax evaluate scores their vote)"
        )
    if (pair := find_task_mismatch([metadata for _, metadata in members])) is not None:
        a, b = pair
        raise UserError(
            f"members {a} and {b} of {file} are for different tasks and cannot vote; choose one with --member NUMBER, "
            f'or name one for each input with --prompts NAME={file} (the field "prompt" is then NAME/{a} or NAME/{b})'
        )
    task_format = override_format(members[0][1].format, args.template, args.labels, None)
    assert model.tokenizer is not None  # check_tokenizer
    texts = input_texts(read_inputs(args.words[1:], args.input), task_format.marked(model.tokenizer.marked))
    return (Line(None, text) for text in texts), Voting(
        model, [prompt for prompt, _ in members], task_format, args.decoding
    )


def _mixed_stream(args: Predict) -> tuple[Iterator["Line"], "Mixed"]:
    """Return the inputs for --prompts, and the function that answers them."""
    with Activity("starting"):
        from prompt_jax.ensembles import streams
        from prompt_jax.ensembles.members import check_one_base

    assert args.prompts is not None
    words = [word for word in args.prompts.split(",") if word]
    if args.member is not None:
        raise UserError("--member is for a single FILE; with --prompts, each input names a member as NAME/NUMBER")
    if not words or args.template is not None or args.labels is not None:
        raise UserError(
            "--prompts takes prompt files separated by commas, and no --template or --labels: each prompt has its own"
        )
    with Activity("reading prompts"):
        named = streams.read_named(words)
    members = list(named.values())
    if not args.base.allow_other_base:
        check_one_base(members)
    first = next((member for member in members if member.metadata.base is not None), members[0])
    model = load_base(first.path, first.metadata, args.base)
    for member in members:
        check_model(member.path, member.prompt, member.metadata, model, args.base)
    wanted = 'a JSON object with "prompt" and the columns of its template'
    rows = ((where, as_row(line, where, wanted)) for where, line in read_inputs(args.words, args.input))
    assert model.tokenizer is not None  # check_model
    return streams.read_lines(rows, named, model.tokenizer.marked), streams.Mixed(model, named, args.decoding)


def _count(args: Predict) -> int | None:
    """Return the number of inputs for the time left; None if it is unknown, as for standard input."""
    texts = args.words if args.prompts is not None else args.words[1:]
    if texts:
        return len(texts)
    if args.input is None or not args.input.is_file() or not sys.stderr.isatty():
        return None
    with contextlib.suppress(UserError):  # an input that cannot be read is an error when its turn comes
        return sum(1 for _ in read_inputs((), args.input))
    return None


def _next(chunks: Iterator[list[Any]], activity: Activity, *, hide: bool) -> list[Any]:
    """Return the next inputs; an empty list at the end."""
    with activity.hidden(hide):
        return next(chunks, [])


def _one_line(answer: str) -> str:
    """Return an answer in one line, on a terminal with control characters escaped."""
    line = re.sub(r"\r\n|\r|\n", " ", answer)
    return escape_control_characters(line) if sys.stdout.isatty() else line


def _chunks(rows: Iterable[Any], size: int) -> Iterator[list[Any]]:
    chunk: list[Any] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
