"""`prompt-jax predict`."""

import dataclasses
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from prompt_jax.cli.common import BaseOptions, check_base, check_positive, chosen_format, load_base, print_error
from prompt_jax.cli.inputs import as_row, input_texts, read_inputs
from prompt_jax.config.decoding import Decoding
from prompt_jax.control_tokens import remove_marks
from prompt_jax.errors import UserError
from prompt_jax.report.terminal import escape_control_characters
from prompt_jax.storage.json_text import json_text
from prompt_jax.storage.paths import parse_path

if TYPE_CHECKING:
    from prompt_jax.ensembles.streams import Line, Mixed, Voting


@dataclasses.dataclass(frozen=True)
class Predict:
    """Answer texts from the arguments, a file or standard input, a line each.

    An ensemble answers with the vote of its members' majority. On a terminal control characters are printed as escapes
    such as \\x1b. A file or another program gets answers unchanged, but for line breaks, which become spaces."""

    words: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="[FILE] [TEXT ...]")] = ()
    """A prompt file, and inputs; without any they come from --input. Where the template has several columns, JSON
    objects. Put -- before a text that begins with a hyphen."""
    prompts: Annotated[str | None, tyro.conf.arg(metavar="[NAME=]FILE,[NAME=]FILE...")] = None
    """Several prompt files of one base instead of FILE. Inputs are then JSON objects with the field `prompt`: the
    NAME of a file (its own without the extension if none is given), or of a member of an ensemble (`sentiment/0`), or
    null for the base alone; and the columns of that prompt's template (of the base alone: `text`). They are answered in
    batches mixed over prompts, in their order."""
    template: str | None = None
    """Input text with columns in braces; the prompt's own if left out."""
    labels: tuple[str, ...] | None = None
    """Possible answers, which --json scores; the prompt's own if left out."""
    base: Annotated[BaseOptions, tyro.conf.arg(name="")] = BaseOptions()
    input: Path | None = None
    """A file with an input a line, or a .jsonl, .csv or .tsv file with the template's columns; standard input if
    left out. Text is UTF-8, or UTF-16 with a byte order mark. Files may end in .gz."""
    json: bool = False
    """Print a JSON object a line, in ASCII, with the labels' log-probabilities (nats) where the task has labels."""
    batch_size: int = 64
    """Examples a batch."""
    decoding: Decoding = Decoding()
    """How answers are generated."""


def run(args: Predict) -> int:
    check_positive(batch_size=args.batch_size)
    lines, answers = _stream(args) if args.prompts is None else _mixed_stream(args)
    for chunk in _chunks(lines, args.batch_size):
        for line, answer in zip(chunk, answers(chunk, args.batch_size, rank=args.json), strict=True):
            shown = {**line._asdict(), "input": remove_marks(line.input), **answer._asdict()}
            if args.prompts is None:
                del shown["prompt"]
            print(json_text(shown) if args.json else _one_line(answer.prediction))
        sys.stdout.flush()
    if answers.cut:
        print_error(f"{answers.cut} inputs were cut to the longest that their prompt's task has", 0)
    return 0


def _stream(args: Predict) -> tuple[Iterator["Line"], "Voting"]:
    """The inputs for a prompt file, and what answers them: its prompt, or the vote of an ensemble's members."""
    from prompt_jax.ensembles.streams import Line, Voting
    from prompt_jax.prompt_files.io import check_bases, read_prompts
    from prompt_jax.prompt_files.metadata import find_task_mismatch

    if not args.words:
        raise UserError("name a prompt file, e.g. prompt-jax predict runs/demo/best.npz, or several with --prompts")
    file = parse_path(args.words[0])
    members = read_prompts(file)
    model = load_base(file, members[0][1], args.base)
    check_bases(file, members, model, allow_other_base=args.base.allow_other_base)
    if (pair := find_task_mismatch([metadata for _, metadata in members])) is not None:
        a, b = pair
        raise UserError(
            f"members {a} and {b} of {file} are for different tasks and cannot vote; name a member for each input with "
            f'--prompts NAME={file} (the field "prompt" is then NAME/{a} or NAME/{b}), or write one to a file with '
            "prompt-jax export --member"
        )
    task_format = chosen_format(members[0][1].format, args.template, args.labels, None)
    assert model.tokenizer is not None  # load_base
    texts = input_texts(read_inputs(args.words[1:], args.input), task_format.marked(model.tokenizer.marked))
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
    model = load_base(first.path, first.metadata, args.base)
    for member in members:
        check_base(member.path, member.prompt, member.metadata, model, args.base)
    wanted = 'a JSON object with "prompt" and the columns of its template'
    rows = ((where, as_row(line, where, wanted)) for where, line in read_inputs(args.words, args.input))
    assert model.tokenizer is not None  # load_base
    return streams.read_lines(rows, named, model.tokenizer.marked), streams.Mixed(model, named, args.decoding)


def _one_line(answer: str) -> str:
    """An answer as one line; on a terminal without characters that it would obey."""
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
