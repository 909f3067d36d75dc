"""The pages of `prompt-jax inspect` and `prompt-jax similarity`."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from markupsafe import Markup

from prompt_jax.checkpoints.load import Model
from prompt_jax.distributed.sharding import to_host
from prompt_jax.inspection.findings import Findings
from prompt_jax.inspection.projection import Projection, pca_projection
from prompt_jax.inspection.similarity import nearest_others, prompt_similarity
from prompt_jax.inspection.text import NO_BASE, NO_PIECES, NO_PROMPT, label_lines, other_base, provenance
from prompt_jax.inspection.vectors import virtual_tokens, vocabulary_size
from prompt_jax.models import embedding_table
from prompt_jax.report import plots
from prompt_jax.report.pages import write_page


@dataclasses.dataclass(frozen=True)
class _Section:
    """The content of the page about one prompt."""

    finding: Findings
    provenance: dict[str, str]
    notes: list[str]
    labels: list[str]
    plots: list[Markup]
    similarity: list[tuple[str, Markup]]


def write_inspection(path: Path, findings: Sequence[Findings], model: Model | None) -> None:
    """Write findings about prompts as a page.

    Args:
      path: the path of the page.
      findings: the findings about one or more prompts.
      model: the base of the prompts, or None.

    Raises:
      ValueError: the prompts cannot be compared.
    """
    prompts = [finding.prompt for finding in findings]
    similarity = prompt_similarity(prompts) if len(prompts) > 1 and prompts[0].parts else None
    numbers = [i for i, finding in enumerate(findings) if finding.inspection is not None]
    projection = None if model is None or not numbers else _projection([findings[i] for i in numbers], model)
    write_page(
        path,
        "inspection.html.jinja",
        sections=[_section(number, finding, model) for number, finding in enumerate(findings)],
        base=None if model is None else model.name,
        similarity=None if similarity is None else plots.similarity_map(similarity, "Cosine similarity of the prompts"),
        projection=projection,
        projection_plot=None if projection is None else plots.projection_plot(projection, numbers),
        colors=plots.COLORS,
    )


def write_similarity(
    path: Path,
    names: Sequence[str],
    means: Float[np.ndarray, "E E"],
    pairs: Float[np.ndarray, "E E"],
    skipped: Sequence[str],
) -> None:
    """Write the similarities of `inspection.task_similarity` as a page.

    Args:
      path: the path of the page.
      names: the names of the prompts.
      means: the cosines of the prompts' mean tokens.
      pairs: the mean cosines over all pairs of the prompts' tokens.
      skipped: files that were omitted, with the reason.
    """
    highest = max(0.1, math.ceil(10 * pairs.max()) / 10)
    write_page(
        path,
        "similarity.html.jinja",
        names=names,
        means=means,
        pairs=pairs,
        order=nearest_others(means),
        maps=[
            ("Mean tokens", plots.similarity_map(means, "Cosine similarity of the prompts' mean tokens")),
            ("All pairs of tokens", plots.similarity_map(pairs, "Mean cosine of the prompts' tokens", high=highest)),
        ],
        skipped=skipped,
    )


def _projection(findings: Sequence[Findings], model: Model) -> Projection:
    tokens = [virtual_tokens(finding.prompt) for finding in findings]
    return pca_projection(tokens, to_host(embedding_table(model.params, model.config)), vocabulary_size(model))


def _section(number: int, finding: Findings, model: Model | None) -> _Section:
    inspection, notes = finding.inspection, []
    if "encoder_tokens" not in finding.prompt.parts:
        notes.append(NO_PIECES if finding.prompt.parts else NO_PROMPT)
    elif model is None:
        notes.append(NO_BASE)
    elif (other := other_base(finding.metadata, model)) is not None:
        notes.append(other)
    figures = []
    if inspection is not None:
        figures.append(plots.norm_plot(inspection, f"norms-{number}"))
    if finding.slot_norms:
        figures.append(plots.layer_plot(finding.slot_norms, f"layers-{number}"))
    if finding.ablation is not None:
        figures.append(plots.effect_plot(finding.ablation.effects, f"effects-{number}"))
    labels = []
    if inspection is not None and finding.labels:
        labels = [label_lines(share, f"by {measure}", inspection) for measure, share in finding.labels.items()]
    return _Section(
        finding,
        provenance(finding.metadata, finding.prompt),
        notes,
        ["\n".join(line.removeprefix("  ") for line in lines) for lines in labels],
        figures,
        [
            (
                "Similarity of its tokens" if name == "encoder_tokens" else f"Similarity of its slots, {name}",
                plots.similarity_map(cosines, f"Cosines, {name}", width=320),
            )
            for name, cosines in finding.similarity.items()
            if len(cosines) > 1
        ],
    )
