"""What evaluations leave on disk as JSON."""

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
    """What was answered to each example, in their order.

    Args:
      examples: of one split.
      members: [E][N] the members' answers, None where one was not asked; a single prompt is the only member.
      vote: of them, or the single prompt's evaluation.
      ranked: their most probable labels and the vote on them.
      before: the base's own, without a prompt.

    Yields:
      `task`, `input`, `target`; `references`, all targets of the input, where metrics compare with several; `before`
      (the base's answer or None), `members` (each member's answer), `prediction` (the vote's); `ranked_members` (each
      member's most probable label) and `ranked` (that of the vote on them), None without labels; and `label_scores`:
      the vote's log-probability of each label, in nats, or None. The majority of the most probable labels need not be
      the label with the highest of these, which are means over the members. In `members` and in `ranked_members` None
      is in place of a member that was not asked.
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
            "ranked_members": None if ranked is None else [own[i] for own in ranked.members],
            "ranked": None if ranked is None else ranked.vote[i],
            "label_scores": None if scores is None else dict(zip(labels, scores, strict=True)),
        }


def write_predictions(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Writes lines of `prediction_lines`, of one task after the other, as JSONL."""
    write_text(path, "".join(json_text(line, ensure_ascii=False) + "\n" for line in lines))
