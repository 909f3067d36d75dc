"""`prompt-jax evaluate`."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import tyro

from prompt_jax.cli.common import (
    BaseOptions,
    check_model,
    check_positive,
    load_base,
    load_named_base,
    print_escaped,
    read_chosen,
)
from prompt_jax.cli.source import ExampleOptions, check_source, read_examples
from prompt_jax.config.decoding import Decoding
from prompt_jax.errors import UserError
from prompt_jax.report.terminal import Activity

if TYPE_CHECKING:
    from prompt_jax.checkpoints.load import Model
    from prompt_jax.data.examples import Examples
    from prompt_jax.ensembles.members import LoadedPrompt
    from prompt_jax.ensembles.outcome import Outcome


@dataclasses.dataclass(frozen=True)
class FewShotOptions:
    """Few-shot prompting of the base, without a prompt file."""

    design: str = "{input}"
    """Without a prompt file: template of an input, where {input} is the task's input."""
    shots: int | Literal["fit"] = 0
    """Without a prompt file: number of training examples before each input. `fit` takes as many as fit."""
    shot_seeds: tuple[int, ...] = (0,)
    """Seeds for drawing the examples of --shots. Several seeds are scored separately and vote."""
    shot_text: str | None = None
    """Template of an in-context example, with {input} (after --design) and {target}. None means "{input} {target}." for
    encoder-decoders, and "{input} {target}" and a line break for causal models."""
    shot_length: int | None = None
    """Maximum tokens of an input with its in-context examples. None means as many as the model has positions for; 512
    for T5."""
    shots_from: Path | None = None
    """File to draw in-context examples from, with the columns of --data or the task. None means the training split."""
    shots_as_drawn: bool = False
    """Draw in-context examples regardless of their labels. By default, the labels take turns."""


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Score prompts on a task: generated answers and, for a task with labels, the most probable label.

    Two or more prompts form an ensemble: each member, their average, the best member and the vote are scored. Without a
    prompt file, the base (--model) is scored with a text template and --shots in-context examples.
    """

    examples: ClassVar[tuple[str, ...]] = (
        "prompt-jax evaluate runs/demo",
        "prompt-jax evaluate runs/mine --data new.csv",
        "prompt-jax evaluate --model demo --task sentiment_movie --shots 8",
    )
    shown: ClassVar[str] = (
        "task data split limit member model metrics vote early_stop shots design batch_size out decoding.beams"
    )

    files: Annotated[
        tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="[FILE ...]", help_behavior_hint="")
    ] = ()
    """Prompt files, or folders of runs, for their best prompts. All members of an ensemble are used."""
    member: int | None = None
    """Use only this member of each ensemble, numbered from 0."""
    base: Annotated[BaseOptions, tyro.conf.arg(name="")] = BaseOptions()
    source: Annotated[ExampleOptions, tyro.conf.arg(name="")] = ExampleOptions()
    metrics: tuple[str, ...] | None = None
    """Names of metrics. None means the task's, or the prompt's for --data."""
    batch_size: int = 64
    """Rows in a batch. Each row is one example with one member's prompt."""
    vote: Literal["majority", "mean-probability"] = "majority"
    """majority: the most frequent answer; a tie goes to the higher summed log-probability, then to the earlier member.
    mean-probability: the label with the highest mean probability, for tasks with labels."""
    decoding: Decoding = Decoding()
    """How answers are generated."""
    early_stop: bool = False
    """Finish an example as soon as its majority cannot change. The votes are identical, but there are no scores of
    single members."""
    few_shot: Annotated[FewShotOptions, tyro.conf.arg(name="")] = FewShotOptions()
    out: Path | None = None
    """Folder to write table.md, scores.json and predictions.jsonl to (one JSON line for each example)."""


def run(args: Evaluate) -> int:
    if not args.files:
        return _evaluate_base(args)
    if args.few_shot != FewShotOptions():
        raise UserError("--design and --shots are for the base alone; leave out the prompt files, or these options")
    check_positive(batch_size=args.batch_size, limit=args.source.limit)
    members = read_chosen(args.files, args.member)
    _check_members(args, members)
    first = next((member for member in members if member.metadata.base is not None), members[0])
    model = load_base(first.path, first.metadata, args.base)
    for member in members:
        check_model(member.path, member.prompt, member.metadata, model, args.base)
    examples, target_length = read_examples(args.source, members, model, args.metrics)
    with Activity(f"evaluating on {examples.name}") as activity:
        from prompt_jax.ensembles.outcome import evaluate_files
        from prompt_jax.inference.evaluation import EvaluationOptions

        options = EvaluationOptions(target_length, args.batch_size, args.decoding, before_batch=activity.before_batch)
        outcome = evaluate_files(model, members, examples, options, args.vote, early_stop=args.early_stop)
    return _print_outcome(args, outcome)


def _evaluate_base(args: Evaluate) -> int:
    with Activity("starting"):
        from prompt_jax.ensembles.members import LoadedPrompt
        from prompt_jax.ensembles.outcome import evaluate_base
        from prompt_jax.inference.evaluation import EvaluationOptions
        from prompt_jax.inference.few_shot import PromptDesign, few_shot_inputs
        from prompt_jax.models.prompt import Prompt
        from prompt_jax.prompt_files.io import PromptMetadata

    source, few_shot = args.source, args.few_shot
    if args.base.model is None:
        raise UserError(
            "name at least one prompt file, e.g. prompt-jax evaluate runs/demo/best.npz, or a base with --model"
        )
    if source.task is None and source.data is None:
        raise UserError(f"choose examples for {args.base.model}: give --task NAME or --data FILE")
    if args.early_stop or args.vote != "majority":
        raise UserError("--vote and --early-stop are for prompts; without them, --shot-seeds vote by majority")
    if args.member is not None:
        raise UserError("--member needs a prompt file, and there is none")
    check_positive(batch_size=args.batch_size, limit=source.limit, shot_length=few_shot.shot_length)
    check_source(source, metrics=args.metrics)
    if few_shot.shots == 0 and few_shot.shots_from is not None:
        raise UserError(f"--shots-from {few_shot.shots_from} needs --shots, the number of examples to draw")
    if few_shot.shots != 0 and few_shot.shots_from is None and source.data is not None:
        raise UserError("--shots with --data needs --shots-from, a file with the same columns to draw examples from")
    seeds = few_shot.shot_seeds
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        given = " ".join(map(str, seeds)) or "none"
        raise UserError(f"--shot-seeds must be distinct numbers of at least 0, not {given}")
    model = load_named_base(args.base.model, args.base.dtype, args.base.revision)
    if model.tokenizer is None:
        raise UserError(f"the model {model.name} has no tokenizer (spiece.model, tokenizer.json or vocab.json)")
    no_prompt = [LoadedPrompt(Path(model.name), None, Prompt(), PromptMetadata())]
    examples, target_length = read_examples(source, no_prompt, model, args.metrics)
    training = None
    if few_shot.shots == 0:
        seeds = (0,)
    else:
        training = _training_examples(source, few_shot.shots_from, examples, no_prompt, model)
    design = PromptDesign(
        few_shot.design,
        None if few_shot.shots == "fit" else few_shot.shots,
        balanced=not few_shot.shots_as_drawn,
        demonstration=few_shot.shot_text,
        length=few_shot.shot_length,
    )
    with Activity("drawing in-context examples"):
        prepared = [
            few_shot_inputs(examples, design, model, training, seed, target_length=target_length) for seed in seeds
        ]
    if len(seeds) > 1 and not any(count for _, count in prepared):
        raise UserError("no in-context example fits, so all --shot-seeds give the same inputs: raise --shot-length")
    names = [
        f"{count:.3g} examples shown" + (f", seed {seed}" if count else "")
        for seed, (_, count) in zip(seeds, prepared, strict=True)
    ]
    with Activity(f"evaluating on {examples.name}") as activity:
        options = EvaluationOptions(target_length, args.batch_size, args.decoding, before_batch=activity.before_batch)
        outcome = evaluate_base(model, [with_shots for with_shots, _ in prepared], names, options)
    return _print_outcome(args, outcome)


def _training_examples(
    source: ExampleOptions, file: Path | None, examples: "Examples", no_prompt: Sequence["LoadedPrompt"], model: "Model"
) -> "Examples":
    """Return the examples to draw in-context examples from: the task's training split, or the examples of a file."""
    from prompt_jax.data.files import file_task
    from prompt_jax.data.load import LoadOptions, load_examples
    from prompt_jax.data.registry import find_task

    if file is None:
        assert source.task is not None
        if "train" not in (splits := find_task(source.task).splits):
            names = ", ".join(splits)
            raise UserError(
                f"{source.task} has no split 'train' for --shots, but {names}; give a file with --shots-from"
            )
        return read_examples(dataclasses.replace(source, split="train", limit=None), no_prompt, model)[0]
    if examples.format is None:
        raise UserError(f"{examples.name} tokenizes its inputs, so --shots-from {file} cannot add examples to them")
    form = dataclasses.replace(examples.format, metrics=("accuracy",))  # other metrics may need more columns
    task = file_task(file.name, {"train": file}, form, target=source.target)
    tokenizer: Any = model.tokenizer
    return load_examples(task, tokenizer, "train", LoadOptions(form.input_length, form.target_length))


def _print_outcome(args: Evaluate, outcome: "Outcome") -> int:
    print_escaped("\n".join(table.text() for table in outcome.shown))
    if args.out is not None:
        print_escaped(f"wrote {', '.join(map(str, outcome.write(args.out)))}")
    return 0


def _check_members(args: Evaluate, members: Sequence["LoadedPrompt"]) -> None:
    """Raise an error for options that exclude each other, and for members that cannot vote."""
    from prompt_jax.ensembles import members as ensemble
    from prompt_jax.models.delta import check_ensemble

    source = args.source
    check_source(source, metrics=args.metrics)
    if args.early_stop and args.vote != "majority":
        raise UserError(f"--early-stop needs --vote majority: --vote {args.vote} needs every member's answer")
    if len(members) == 1:
        if args.early_stop or args.vote != "majority":
            raise UserError(f"--vote and --early-stop need two prompts or more; {members[0]} is the only one")
        return
    if not args.base.allow_other_base:
        ensemble.check_one_base(members)
    ensemble.check_one_task(
        members,
        task_given=source.task is not None or source.data is not None,
        template_given=source.task is not None or source.template is not None,
        labels_given=source.labels is not None,
    )
    if source.task is None:
        ensemble.warn_of_lengths(members)
    check_ensemble([member.prompt for member in members], [str(member) for member in members])
