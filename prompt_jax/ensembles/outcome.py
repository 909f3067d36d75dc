"""The results of `prompt-jax evaluate`, as tables and files."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prompt_jax.checkpoints.load import Model
from prompt_jax.data.examples import Examples
from prompt_jax.ensembles.early_stop import evaluate_early
from prompt_jax.ensembles.evaluation import RankedVote, VoteRule, combine, evaluate_ensemble, labels_of, ranked_alone
from prompt_jax.ensembles.members import LoadedPrompt, member_names
from prompt_jax.ensembles.records import prediction_lines, write_predictions
from prompt_jax.ensembles.tables import Table, ensemble_tables, member_rows, score_list, score_table
from prompt_jax.inference.evaluation import Evaluation, EvaluationOptions, evaluate_members
from prompt_jax.storage.files import write_text
from prompt_jax.storage.json_text import json_text


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The scores of one prompt, or of several prompts and their vote.

    Attributes:
      shown: tables for the terminal.
      tables: tables for a file.
      scores: all scores as JSON values.
      examples: the examples that were answered.
      answers: [E][N] the members' answers, None where a member did not run.
      vote: the vote; for one prompt, or if there are no answers to vote on, the evaluation of the first member.
      ranked: the most probable labels and the vote on them; None for a task without labels.
    """

    shown: list[Table]
    tables: list[Table]
    scores: dict[str, Any]
    examples: Examples
    answers: Sequence[Sequence[str | None]]
    vote: Evaluation
    ranked: RankedVote | None

    def write(self, folder: Path) -> list[Path]:
        """Write `table.md`, `scores.json` and `predictions.jsonl` and return their paths."""
        paths = [folder / name for name in ("table.md", "scores.json", "predictions.jsonl")]
        write_text(paths[0], "\n".join(table.markdown() for table in self.tables))
        write_text(paths[1], json_text(self.scores, indent=2, ensure_ascii=False) + "\n")
        write_predictions(paths[2], prediction_lines(self.examples, self.answers, self.vote, self.ranked))
        return paths


def evaluate_files(
    model: Model,
    members: Sequence[LoadedPrompt],
    examples: Examples,
    options: EvaluationOptions,
    vote: VoteRule = "majority",
    *,
    early_stop: bool = False,
) -> Outcome:
    """Evaluate a single prompt, an ensemble or, with `early_stop`, only an ensemble's vote.

    Members do not vote if log_likelihood is the only metric. Other arguments and errors as for `evaluate_ensemble`.
    """
    prompts = [member.prompt for member in members]
    cut = "".join(f", {count} {part} cut" for part, count in examples.truncated.items() if count)
    title = f"{examples.name}, {examples.split}, {len(examples)} examples{cut}"

    if len(members) == 1 or (not examples.needs_answers and not early_stop and vote == "majority"):
        results = evaluate_members(model, prompts, examples, options)
        each = [result.scores for result in results]
        called = [f"member {number}" for number in range(len(members))]
        names = member_rows(called, member_names(members)) if len(members) > 1 else [str(members[0])]
        tables = [score_table(title, dict(zip(names, each, strict=True)))]
        shown = tables if len(members) > 1 else [score_list(f"{members[0]}: {title}", each[0])]
        scores, ranked = _scores(examples, members, each, None), ranked_alone(examples, results[0])
        return Outcome(shown, tables, scores, examples, [r.predictions for r in results], results[0], ranked)

    if early_stop:
        early = evaluate_early(model, prompts, examples, options)
        title = f"{title}, {len(members)} members, majority vote, stopped early"
        shown = [score_list(title, early.vote.scores | {"saved passes": early.saved})]
        summary: dict[str, Any] = {"vote_rule": "majority", "vote": early.vote.scores, "saved": early.saved}
        scores = _scores(examples, members, [None] * len(members), summary)
        return Outcome(shown, shown, scores, examples, early.answers, early.vote, early.ranked)

    ensemble = evaluate_ensemble(model, prompts, examples, options, vote)
    title = f"{title}, {len(members)} members, {vote} vote"
    shown = ensemble_tables(ensemble, title, member_names(members), labels_of(examples))
    summary = ensemble.summary() | {"metric": ensemble.metric, "confusion": None}
    if ensemble.confusion is not None:
        *each, voted = ensemble.confusion.tolist()
        summary["confusion"] = {"labels": list(labels_of(examples)), "members": each, "vote": voted}
    scores = _scores(examples, members, [member.scores for member in ensemble.members], summary)
    return Outcome(shown, shown, scores, examples, ensemble.answers, ensemble.vote, ensemble.ranked)


def evaluate_base(
    model: Model,
    examples: Sequence[Examples],
    names: Sequence[str],
    options: EvaluationOptions,
) -> Outcome:
    """Evaluate the base alone with one or several few-shot prompts, which vote as the members of an ensemble do.

    Args:
      model: the base.
      examples: the same examples, with the inputs of each few-shot prompt.
      names: the names of the few-shot prompts.
      options: how the base is evaluated.
    """
    first = examples[0]
    truncated = f", {count} inputs truncated" if (count := first.truncated.get("inputs", 0)) else ""
    title = f"{model.name} alone: {first.name}, {first.split}, {len(first)} examples{truncated}"
    results = evaluate_members(model, [None] * len(examples), examples, options)
    ways = [{"name": name, "scores": result.scores} for name, result in zip(names, results, strict=True)]
    task: dict[str, Any] = {"task": first.name, "split": first.split, "examples": len(first)}
    task |= {"truncated": first.truncated, "base": model.name, "ways": ways}
    answers: list[Sequence[str | None]] = [result.predictions for result in results]
    if len(results) == 1 or not first.needs_answers:
        tables = [score_table(title, {name: result.scores for name, result in zip(names, results, strict=True)})]
        shown = tables if len(results) > 1 else [score_list(f"{title}, {names[0]}", results[0].scores)]
        return Outcome(shown, tables, task, first, answers, results[0], ranked_alone(first, results[0]))
    ensemble = combine(results, first)
    shown = ensemble_tables(ensemble, f"{title}, majority vote", names, labels_of(first))
    scores = task | {"ensemble": ensemble.summary()}
    return Outcome(shown, shown, scores, first, ensemble.answers, ensemble.vote, ensemble.ranked)


def _scores(
    examples: Examples,
    members: Sequence[LoadedPrompt],
    scores: Sequence[dict[str, float] | None],
    ensemble: dict[str, Any] | None,
) -> dict[str, Any]:
    each = [
        {
            "file": str(member.path),
            "member": member.number,
            "settings": dict(member.metadata.settings),
            "scores": member_scores,
        }
        for member, member_scores in zip(members, scores, strict=True)
    ]
    task = {"task": examples.name, "split": examples.split, "examples": len(examples), "truncated": examples.truncated}
    return task | {"members": each, "ensemble": ensemble}
