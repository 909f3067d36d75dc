"""The predictions of an evaluation as JSON lines."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from prompt_jax.control_tokens import remove_marks
from prompt_jax.data.examples import Examples
from prompt_jax.ensembles.evaluation import RankedVote
from prompt_jax.inference.evaluation import Evaluation
from prompt_jax.storage.files import write_text
from prompt_jax.storage.json_text import json_text


def prediction_lines(
    examples: Examples,
    members: Sequence[Sequence[str | None]],
    vote: Evaluation,
    ranked: RankedVote | None = None,
    before: Evaluation | None = None,
) -> Iterator[dict[str, Any]]:
    """Return one JSON object for each example, in order.

    Args:
      examples: the examples of one split.
      members: [E][N] the members' answers, None where a member did not run. A single prompt is the only member.
      vote: the vote, or the single prompt's evaluation.
      ranked: the members' most probable labels and the vote on them.
      before: the evaluation of the base without a prompt.

    Yields:
      `task`, `input` and `target`; `references`, all targets of the input, if metrics compare with several;
      `before`, the base's answer, or None; `members`, each member's answer; `prediction`, the vote's answer;
      `ranked_members`, each member's most probable label, and `ranked`, the vote on these labels, both None without
      labels; `label_scores`, the vote's log-probability of each label in nats, or None.

      `label_scores` are means over the members, so the label in `ranked` need not have the highest one. `members` and
      `ranked_members` have None for a member that did not run.
    """
    labels = examples.format.labels if examples.format else ()
    for i, prediction in enumerate(vote.predictions):
        scores = None if vote.label_scores is None else vote.label_scores[i].tolist()
        yield {
            "task": examples.name,
            "input": remove_marks(examples.input_texts[i]),
            "target": examples.target_texts[i],
            **({"references": list(examples.references[i])} if examples.references else {}),
            "before": None if before is None else before.predictions[i],
            "members": [answers[i] for answers in members],
            "prediction": prediction,
            "ranked_members": None if ranked is None else [each[i] for each in ranked.members],
            "ranked": None if ranked is None else ranked.vote[i],
            "label_scores": None if scores is None else dict(zip(labels, scores, strict=True)),
        }


def write_predictions(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Write lines of `prediction_lines` as JSONL."""
    write_text(path, "".join(json_text(line, ensure_ascii=False) + "\n" for line in lines))
