"""`report.html`: a run's results as one page that loads nothing, made from the files in the run's folder."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from prompt_jax import experiment as experiments
from prompt_jax.inspection.neighbors import Inspection
from prompt_jax.report import plots
from prompt_jax.report.details import test_detail
from prompt_jax.report.formatting import FILTERS
from prompt_jax.report.overview import (
    best_member,
    is_smoothed,
    score_cards,
    score_shades,
    task_tables,
    training_curves,
    varied_settings,
)
from prompt_jax.report.pages import write_page
from prompt_jax.report.resources import resource_rows
from prompt_jax.report.run_files import ReportError, Summary, read_config, read_metrics, read_predictions, read_summary

__all__ = ["ReportError", "write_report"]


def write_report(
    folder: Path,
    inspections: Sequence[Inspection] | None = None,
    similarity: np.ndarray | None = None,
    *,
    summary: Summary | None = None,
    steps: int | None = None,
) -> Path:
    """Write `report.html` into a run's folder.

    Args:
      folder: the run's folder, with `config.json`, `summary.json`, and optionally `metrics.jsonl` (for curves) and
        `predictions.jsonl` (for the confusion table, sample answers, and examples on which members disagree).
      inspections: inspections of the members' best prompts, in order; None omits the section.
      summary: of a run that is still training, instead of `summary.json`.
      steps: number of steps of a run that is still training.
      similarity: [E, E] cosines of the members' best prompts, from `inspection.prompt_similarity`; None omits the map.

    Returns:
      The path of the page.

    Raises:
      ReportError: a file is missing, unreadable, or not what its name says.
      ValueError: `inspections` or `similarity` has another number of members.
    """
    experiment, summary = read_config(folder), summary or read_summary(folder)
    size = len(summary.members)
    trained = len(experiments.members(experiment)) if experiment.prompt.per_task else size
    lines = [each for each in read_metrics(folder, trained) for _ in range(size // trained)]
    if inspections is not None and len(inspections) != size:
        raise ValueError(f"{len(inspections)} inspections of {size} members")
    if similarity is not None and similarity.shape != (size, size):
        raise ValueError(f"the similarity of {size} members has the shape {similarity.shape}")
    predictions = read_predictions(folder, summary)
    tests = sorted(summary.tests, key=lambda test: not test.trained_on)
    best = best_member(summary)
    added = 0 if experiment.prompt.replaces_base else summary.trained_parameters
    path = folder / "report.html"
    write_page(
        path,
        "report.html.jinja",
        FILTERS,
        summary=summary,
        experiment=experiment,
        steps=steps,
        lengths=sorted({member.length for member in summary.members}),
        share=summary.trained_parameters / (summary.model.parameters + added),
        varied=varied_settings(summary),
        diverged=[number for number, member in enumerate(summary.members) if member.status == "diverged"],
        cards=score_cards(summary),
        curves=training_curves(lines, summary),
        smoothed=is_smoothed(lines),
        resources=resource_rows(summary, experiment),
        colors=plots.COLORS,
        shades=score_shades(summary),
        overview=task_tables(tests),
        alone=all(len(test.members) == 1 for test in tests),
        shifted=not all(test.trained_on for test in tests),
        tests=[test_detail(test, predictions[test.task], experiment.data.labels) for test in tests],
        best=best,
        inspections=inspections,
        norm_plot=None if inspections is None else plots.norm_plot(inspections[best]),
        similarity=None if similarity is None or size == 1 else plots.similarity_map(similarity),
        truncated=any(each.inputs or each.targets for splits in summary.truncated.values() for each in splits.values()),
        config=experiments.to_json(experiment),
    )
    return path
