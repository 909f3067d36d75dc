"""`prompt-jax new`."""

import dataclasses
import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import tyro

from prompt_jax.cli.common import check_new, print_escaped
from prompt_jax.errors import ConfigError, UserError
from prompt_jax.report.terminal import Activity

if TYPE_CHECKING:
    from prompt_jax.task_format import TaskFormat

MethodName = Literal["soft_prompt", "prefix", "p_tuning", "adapter", "last_layers", "full"]

_ADAMW = 'OptimizerConfig(name="adamw", learning_rate={}, weight_decay=0.0)'

# For each method the expression that makes it, and its optimizer. None is the default, which suits soft prompts.
METHODS: dict[MethodName, tuple[str, str | None]] = {
    "soft_prompt": ("PromptTuning(length=20)", None),
    "prefix": ("PrefixTuning(length=20)", _ADAMW.format("5e-3")),
    "p_tuning": ("PTuning(length=20)", _ADAMW.format("1e-3")),
    "adapter": ("AdapterTuning()", "OptimizerConfig(learning_rate=1e-3)"),
    "last_layers": ("LastLayersTuning(layers=2)", "OptimizerConfig(learning_rate=1e-3)"),
    "full": ("FullTuning()", "OptimizerConfig(learning_rate=1e-3)"),
}


@dataclasses.dataclass(frozen=True)
class New:
    """Write a configuration file for your data.

    The files are read and checked. Columns and labels that you do not name are taken from the training file."""

    examples: ClassVar[tuple[str, ...]] = (
        "prompt-jax new reviews --train train.csv",
        'prompt-jax new reviews --train train.csv --template "{title}: {body}" --target verdict',
    )

    name: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="NAME", help_behavior_hint="(required)")]
    """Name of the run. The file is NAME.py; configs/NAME puts it into that folder."""
    train: Path | None = None
    """Your training file: .jsonl, .csv or .tsv, optionally .gz. Without it, the file has placeholders to edit."""
    validation: Path | None = None
    """Your validation file. Without it, a tenth of the training file is held out."""
    test: Path | None = None
    """Your test file."""
    template: str | None = None
    """Template of the input, with column names in braces. None takes the only other column, or the one named `text`."""
    target: str | None = None
    """Column with the answers. None takes the one named `label`, `target`, `answer`, or similar."""
    labels: tuple[str, ...] | None = None
    """Possible answers, in the order of their numbers if the file has numbers. `--labels` without a word means free
    text. None takes the distinct answers if there are at most 20, with five rows each on average."""
    model: str = "demo"
    """The base: a name on the Hugging Face Hub, a folder with a checkpoint in its layout, `demo` or `smollm2`."""
    method: MethodName = "soft_prompt"
    """Method of training."""
    overwrite: bool = False
    """Replace an existing file."""


@dataclasses.dataclass(frozen=True)
class Data:
    """The data of the configuration: its files and how they are read.

    Attributes:
      longest: bytes of the longest answer.
      notes: lines about the files, for the user.
    """

    files: dict[str, Path]
    task_format: "TaskFormat"
    target: str
    longest: int
    notes: tuple[str, ...]


def run(args: New) -> int:
    name = args.name.name.removesuffix(".py")
    if not name.strip("."):
        raise ConfigError(f"NAME must be the name of a run, such as reviews or configs/reviews, not {str(args.name)!r}")
    path = args.name.with_name(f"{name}.py")
    check_new(path, args.overwrite)
    if path.is_dir():
        raise UserError(f"{path} is a folder; choose another NAME")
    with Activity("reading the files"):
        data = _check_files(args)
    from prompt_jax.storage.files import write_text

    write_text(path, "\n".join([*_source(args, path, data), ""]))
    print_escaped("\n".join([f"wrote {path}", *data.notes, f"next: prompt-jax train {shlex.quote(str(path))}"]))
    return 0


def _check_files(args: New) -> Data:
    """Read all files as training does, and return what they hold. Without a training file, return placeholders."""
    from prompt_jax.data.files import file_task
    from prompt_jax.data.infer import infer
    from prompt_jax.task_format import TaskFormat

    named = {"train": args.train, "validation": args.validation, "test": args.test}
    files = {split: path for split, path in named.items() if path is not None}
    if args.train is None:
        if files:
            raise UserError(f"--{min(files)} needs --train, the file to train on")
        task_format = TaskFormat(args.template or "{text}", args.labels or ())
        note = "  It has placeholders: edit the file names, columns and labels"
        return Data({"train": Path("train.jsonl")}, task_format, args.target or "label", 0, (note,))
    file_task("files", files, TaskFormat(args.template or "{text}"))  # checks that the files exist
    inferred = infer(args.train, template=args.template, target=args.target)
    labels = inferred.labels if args.labels is None else args.labels
    task_format = TaskFormat(inferred.template, labels, ("accuracy",) if labels else ("rouge_l",))
    share = 0.0 if args.validation else 0.1
    task = file_task("files", files, task_format, target=inferred.target, validation_share=share)
    counts = {split: sum(1 for _ in task.examples(split)) for split in task.splits}
    notes = [
        f"  examples: {', '.join(f'{count} {split}' for split, count in counts.items())}",
        f"  input: {inferred.template}",
        f"  answer: column {inferred.target}, " + (f"one of {', '.join(labels)}" if labels else "free text"),
    ]
    if inferred.numbered and args.labels is None:
        notes.append("  The labels are numbers. Words work better: name them in this order with --labels")
    if args.labels is None and not labels:
        notes.append("  Answers are free text, since few repeat. For classes, name them with --labels")
    longest = max((len(label.encode()) for label in labels), default=inferred.longest)
    return Data(files, task_format, inferred.target, longest, tuple(notes))


def _source(args: New, path: Path, data: Data) -> Iterator[str]:
    """Yield the lines of the configuration file."""
    prompt, optimizer = METHODS[args.method]
    classes = {"DataConfig", "Experiment", "ModelConfig", "TrainConfig", prompt.partition("(")[0]}
    classes |= {"OptimizerConfig"} if optimizer else set()
    labels = data.task_format.labels
    if args.method == "soft_prompt" and not labels:
        prompt = 'PromptTuning(length=20, init="vocab")'
    if args.method == "prefix" and _is_in_papers(args.model):  # for other models, a text is the better start
        prompt, optimizer = "PrefixTuning(length=20, mlp_width=512)", _ADAMW.format("1e-3")
    title, command = f"{path.stem}: {args.method} on {data.files['train'].name}.", f"prompt-jax train {path}"
    yield f'"""{_quoted(title)[1:-1]}'
    yield from ("", f"    {_quoted(command)[1:-1]}", '"""', "", "from pathlib import Path", "")
    yield f"from prompt_jax import {', '.join(sorted(classes))}"
    yield from ("", "experiment = Experiment(", f"    name={_quoted(path.stem)},")
    yield f"    model=ModelConfig(name={_quoted(args.model)}),  # a name on the Hugging Face Hub, or a folder"
    yield "    data=DataConfig("
    for split, file in data.files.items():
        yield f"        {split}=Path({_quoted(str(file))}),"
    yield f"        template={_quoted(data.task_format.template)},  # the input, with column names in braces"
    yield f"        target={_quoted(data.target)},  # the column with the answer"
    if args.train is None and not labels:
        yield '        labels=(),  # e.g. ("negative", "positive"); empty for free text'
    elif labels:
        yield f"        labels=({', '.join(map(_quoted, labels))},),"
    else:
        yield '        metrics=("rouge_l",),  # the first metric selects the best prompt'
    if length := _target_length(data):
        yield f"        target_length={length},  # tokens; the longest answer has {data.longest} bytes"
    yield "    ),"
    yield f"    prompt={prompt},"
    if optimizer:
        yield f"    optimizer={optimizer},"
    yield "    train=TrainConfig(steps=1000, eval_every=100, eval_examples=500, checkpoint_every=100),"
    yield ")"


def _is_in_papers(model: str) -> bool:
    """Return whether a model is a T5, GPT-2 or BART, by its config.json if it is in a folder, or by its name."""
    from prompt_jax.checkpoints.config_files import MODEL_TYPES, read_config
    from prompt_jax.models import IN_PAPERS

    if model == "demo":
        return True
    if Path(model, "config.json").is_file():
        kind, _ = MODEL_TYPES[read_config(Path(model))["model_type"]]
        return issubclass(kind, IN_PAPERS)
    return any(family in model.lower() for family in ("t5", "gpt2", "bart"))


def _target_length(data: Data) -> int | None:
    """Return the maximum length of answers in tokens, or None if the default suffices.

    A byte is at most one token, which bounds the length of labels. Free text has about four bytes in a token.
    """
    if data.longest + 2 <= data.task_format.target_length:
        return None
    if data.task_format.labels:
        return data.longest + 2
    return min(512, 1 << max(4, (data.longest // 3).bit_length()))


def _quoted(text: str) -> str:
    """Return a text as Python source, in double quotes."""
    return json.dumps(text, ensure_ascii=False)
