"""What `prompt-jax evaluate` shows of prompts from files, and writes."""

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
    """Scores of a prompt, or of several and their vote.

    Attributes:
      shown: what a terminal shows.
      tables: the same for a file.
      scores: all of it as JSON.
      examples: that were answered.
      answers: [E][N] the members' answers, None where one was not asked.
      vote: of them, or the only prompt's evaluation; the first one's where there are no answers to vote on.
      ranked: their most probable labels and the vote on them; None for a task without labels.
    """

    shown: list[Table]
    tables: list[Table]
    scores: dict[str, Any]
    examples: Examples
    answers: Sequence[Sequence[str | None]]
    vote: Evaluation
    ranked: RankedVote | None

    def write(self, folder: Path) -> list[Path]:
        """Writes `table.md`, `scores.json` and `predictions.jsonl`, and gives their paths."""
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
        own = [result.scores for result in results]
        called = [f"member {number}" for number in range(len(members))]
        names = member_rows(called, member_names(members)) if len(members) > 1 else [str(members[0])]
        tables = [score_table(title, dict(zip(names, own, strict=True)))]
        shown = tables if len(members) > 1 else [score_list(f"{members[0]}: {title}", own[0])]
        scores, ranked = _scores(examples, members, own, None), ranked_alone(examples, results[0])
        return Outcome(shown, tables, scores, examples, [r.predictions for r in results], results[0], ranked)

    if early_stop:
        early = evaluate_early(model, prompts, examples, options)
        saved = {f"saved passes for {part}": share for part, share in early.saved.items()}
        title = f"{title}, {len(members)} members, majority vote, stopped early"
        shown = [score_list(title, early.vote.scores | saved)]
        together: dict[str, Any] = {"vote_rule": "majority", "vote": early.vote.scores, "saved": early.saved}
        scores = _scores(examples, members, [None] * len(members), together)
        return Outcome(shown, shown, scores, examples, early.answers, early.vote, early.ranked)

    ensemble = evaluate_ensemble(model, prompts, examples, options, vote)
    title = f"{title}, {len(members)} members, {vote} vote"
    shown = ensemble_tables(ensemble, title, member_names(members), labels_of(examples))
    together = ensemble.summary() | {"metric": ensemble.metric, "confusion": None}
    if ensemble.confusion is not None:
        *own, voted = ensemble.confusion.tolist()
        together["confusion"] = {"labels": list(labels_of(examples)), "members": own, "vote": voted}
    scores = _scores(examples, members, [member.scores for member in ensemble.members], together)
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
      names: of the few-shot prompts.
      options: how they are evaluated.
    """
    first = examples[0]
    cut = f", {count} inputs cut" if (count := first.truncated.get("inputs", 0)) else ""
    title = f"{model.name} alone: {first.name}, {first.split}, {len(first)} examples{cut}"
    results = evaluate_members(model, [None] * len(examples), examples, options)
    own = [{"name": name, "scores": result.scores} for name, result in zip(names, results, strict=True)]
    task: dict[str, Any] = {"task": first.name, "split": first.split, "examples": len(first)}
    task |= {"truncated": first.truncated, "base": model.name, "ways": own}
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
    own = [
        {
            "file": str(member.path),
            "member": member.number,
            "settings": dict(member.metadata.settings),
            "scores": member_scores,
        }
        for member, member_scores in zip(members, scores, strict=True)
    ]
    task = {"task": examples.name, "split": examples.split, "examples": len(examples), "truncated": examples.truncated}
    return task | {"members": own, "ensemble": ensemble}
