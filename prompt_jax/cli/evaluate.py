"""`prompt-jax evaluate`."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from prompt_jax.cli.common import BaseOptions, check_base, check_member, check_positive, load_base, show
from prompt_jax.cli.source import Source, check_source, read_examples
from prompt_jax.config.decoding import Decoding
from prompt_jax.errors import UserError

if TYPE_CHECKING:
    from prompt_jax.checkpoints.load import Model
    from prompt_jax.data.examples import Examples
    from prompt_jax.ensembles.members import LoadedPrompt
    from prompt_jax.ensembles.outcome import Outcome


@dataclasses.dataclass(frozen=True)
class Shots:
    """How the base is asked where there is no prompt file."""

    design: str = "{input}"
    """The text of an input, {input} being the task's."""
    shots: int | Literal["fit"] = 0
    """How many examples of the training split are shown before each input; `fit` is as many as there is room for."""
    shot_seeds: tuple[int, ...] = (0,)
    """Of the examples that are drawn; several are evaluated each, and vote."""
    shot_text: str | None = None
    """How an example is written, {input} being what --design makes of its input and {target} its answer. Left out,
    "{input} {target}." for an encoder, and "{input} {target}" on a line for a causal model."""
    shot_length: int | None = None
    """The most tokens of an input with its examples; left out, what the model has positions for beside the answer, and
    512 for T5."""
    shots_from: Path | None = None
    """A file that examples are drawn from, with the columns of --data or those that the task reads, and --target; left
    out, the task's own training split."""
    shots_as_drawn: bool = False
    """Draw examples whatever their labels are; otherwise labels come in turn."""


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Score prompts on a task: generated answers and, for a task with labels, the most probable label.

    Two or more prompts are an ensemble: each member, their average, the best one and the vote are scored. Without any,
    --model is asked alone, in words, with --shots examples of the task before each input.
    """

    files: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Prompt files; of an ensemble's file all members count, in their order."""
    member: int | None = None
    """Only this prompt of an ensemble's file, numbered from 0."""
    base: Annotated[BaseOptions, tyro.conf.arg(name="")] = BaseOptions()
    source: Annotated[Source, tyro.conf.arg(name="")] = Source()
    metrics: tuple[str, ...] | None = None
    """Names of metrics; the task's own, or of --data the prompt's own, if left out."""
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
    design: Annotated[Shots, tyro.conf.arg(name="")] = Shots()
    out: Path | None = None
    """Write table.md, scores.json and predictions.jsonl, one JSON line an example, to this folder."""


def run(args: Evaluate) -> int:
    from prompt_jax.ensembles.members import check_distinct, read_members
    from prompt_jax.ensembles.outcome import evaluate_files
    from prompt_jax.inference.evaluation import EvaluationOptions

    if not args.files:
        return _base_alone(args)
    if args.design != Shots():
        raise UserError("--design and --shots are of the base alone; leave the prompt files out, or these options")
    check_positive(batch_size=args.batch_size, limit=args.source.limit)
    check_distinct(args.files)
    members = read_members(args.files)
    if args.member is not None:
        if len(args.files) > 1:
            raise UserError(f"--member is the number of a prompt in one file; there are {len(args.files)}")
        check_member(args.member, args.files[0], len(members))
        members = members[args.member : args.member + 1]
    _check_together(args, members)
    first = next((member for member in members if member.metadata.base is not None), members[0])
    model = load_base(first.path, first.metadata, args.base)
    for member in members:
        check_base(member.path, member.prompt, member.metadata, model, args.base)
    examples, target_length = read_examples(args.source, members, model, args.metrics)
    options = EvaluationOptions(target_length, args.batch_size, args.decoding)
    outcome = evaluate_files(model, members, examples, options, args.vote, early_stop=args.early_stop)
    return _show(args, outcome)


def _base_alone(args: Evaluate) -> int:
    from prompt_jax.checkpoints.load import load_model
    from prompt_jax.ensembles.members import LoadedPrompt
    from prompt_jax.ensembles.outcome import evaluate_base
    from prompt_jax.inference.evaluation import EvaluationOptions
    from prompt_jax.inference.few_shot import PromptDesign, few_shot_inputs
    from prompt_jax.models.prompt import Prompt
    from prompt_jax.prompt_files.io import PromptMetadata

    source, how = args.source, args.design
    if args.base.model is None:
        raise UserError(
            "name at least one prompt file, e.g. prompt-jax evaluate runs/demo/best.npz, or with --model a base that "
            "is asked alone"
        )
    if source.task is None and source.data is None:
        raise UserError(f"what {args.base.model} is asked is a task or a file: give --task NAME or --data FILE")
    if args.early_stop or args.vote != "majority":
        raise UserError("--vote and --early-stop are for prompts; the base's ways of being asked vote by majority")
    if args.member is not None:
        raise UserError("--member is the number of a prompt in a file, and no file is named")
    check_positive(batch_size=args.batch_size, limit=source.limit, shot_length=how.shot_length)
    check_source(source, metrics=args.metrics)
    if how.shots == 0 and how.shots_from is not None:
        raise UserError(f"--shots-from {how.shots_from} is what examples are drawn from: say how many with --shots")
    if how.shots != 0 and how.shots_from is None and source.data is not None:
        raise UserError("--shots of --data are drawn from --shots-from, a file of the same kind; a task has its own")
    if not how.shot_seeds or min(how.shot_seeds) < 0 or len(set(how.shot_seeds)) < len(how.shot_seeds):
        given = " ".join(map(str, how.shot_seeds)) or "none"
        raise UserError(f"--shot-seeds are numbers from 0, each once, not {given}")
    model = load_model(args.base.model, args.base.dtype, args.base.revision)
    if model.tokenizer is None:
        raise UserError(f"the model {model.name} has no tokenizer (spiece.model, tokenizer.json or vocab.json)")
    nobody = [LoadedPrompt(Path(model.name), None, Prompt(), PromptMetadata())]
    examples, target_length = read_examples(source, nobody, model, args.metrics)
    training = None if how.shots == 0 else _pool(source, how.shots_from, examples, nobody, model)
    design = PromptDesign(
        how.design,
        None if how.shots == "fit" else how.shots,
        balanced=not how.shots_as_drawn,
        demonstration=how.shot_text,
        length=how.shot_length,
    )
    seeds = how.shot_seeds if how.shots != 0 else (0,)
    made = [few_shot_inputs(examples, design, model, training, seed, target_length=target_length) for seed in seeds]
    if len(seeds) > 1 and not any(shown for _, shown in made):
        raise UserError("no example has room before any input, so that all --shot-seeds ask alike: raise --shot-length")
    names = [
        f"{shown:.3g} examples shown" + (f", seed {seed}" if shown else "")
        for seed, (_, shown) in zip(seeds, made, strict=True)
    ]
    options = EvaluationOptions(target_length, args.batch_size, args.decoding)
    outcome = evaluate_base(model, [asked for asked, _ in made], names, options)
    return _show(args, outcome)


def _pool(
    source: Source, file: Path | None, asked: "Examples", nobody: Sequence["LoadedPrompt"], model: "Model"
) -> "Examples":
    """What examples are drawn from: the training split of the task that is asked, or a file."""
    from prompt_jax.data.files import file_task
    from prompt_jax.data.load import LoadOptions, load_examples
    from prompt_jax.data.registry import find_task

    if file is None:
        assert source.task is not None
        if "train" not in (splits := find_task(source.task).splits):
            there = ", ".join(splits)
            raise UserError(
                f"{source.task} has no split 'train' for --shots, but {there}; give a file with --shots-from"
            )
        return read_examples(dataclasses.replace(source, split="train", limit=None), nobody, model)[0]
    if asked.format is None:
        raise UserError(f"{asked.name} makes its tokens itself, and cannot be shown examples of --shots-from {file}")
    own = dataclasses.replace(asked.format, metrics=("accuracy",))  # others may need more than a file has
    task = file_task(file.name, {"train": file}, own, target=source.target)
    tokenizer: Any = model.tokenizer
    return load_examples(task, tokenizer, "train", LoadOptions(own.input_length, own.target_length))


def _show(args: Evaluate, outcome: "Outcome") -> int:
    show("\n".join(table.text() for table in outcome.shown))
    if args.out is not None:
        show(f"wrote {', '.join(map(str, outcome.write(args.out)))}")
    return 0


def _check_together(args: Evaluate, members: Sequence["LoadedPrompt"]) -> None:
    """Refuses options that do not go together, and members that cannot vote."""
    from prompt_jax.ensembles import members as ensemble
    from prompt_jax.models.prompt import check_alike

    source = args.source
    check_source(source, metrics=args.metrics)
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
        task_given=source.task is not None or source.data is not None,
        template_given=source.task is not None or source.template is not None,
        labels_given=source.labels is not None,
    )
    if source.task is None:
        ensemble.warn_of_lengths(members)
    check_alike([member.prompt for member in members], [str(member) for member in members])
