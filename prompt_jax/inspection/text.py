"""The results of an inspection as text for the terminal.

Files may be untrusted. Their texts are shortened, and control characters are escaped.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from prompt_jax.checkpoints.load import Model
from prompt_jax.inspection.findings import Findings
from prompt_jax.inspection.neighbors import Inspection, LabelShare, Neighbor
from prompt_jax.inspection.vectors import row_norms, virtual_tokens
from prompt_jax.models.delta import Delta
from prompt_jax.models.prompt import Prompt, used_arrays
from prompt_jax.prompt_files.io import PromptMetadata

_TEXT_LIMIT = 160  # characters of one text from a file
_LIST_LIMIT = 12  # entries of one list from a file
_NUMBERS_PER_LINE = 10

NO_BASE = (
    "The nearest pieces and the vocabulary's norms are left out: they need the base's embeddings, and the base is not "
    "on this machine. Name it with --model NAME: a Hugging Face name, which may download it, or a folder."
)
NO_PIECES = "A prefix holds keys and values, not embeddings, so it has no nearest pieces."
NO_PROMPT = "It changes the base itself, and has no virtual tokens or prefix to look into."


def describe(findings: Findings, model: Model | None) -> str:
    """Return the output of `prompt-jax inspect FILE` for a prompt: its origin, norms and nearest pieces.

    Args:
      findings: from `collect_findings`.
      model: the base that was passed to it.
    """
    rows = provenance(findings.metadata, findings.prompt) | _norms(findings) | _similarity(findings)
    width = max(map(len, rows))
    lines = [printable(findings.name), ""]
    lines += [f"  {'' if i else name:<{width}}  {line}" for name, text in rows.items() for i, line in _lines(text)]
    lines += _prefix_tables(findings)
    if findings.ablation is not None:
        lines += ["", *_ablation(findings)]
    if "encoder_tokens" not in findings.prompt.parts:
        return "\n".join([*lines, "", NO_PIECES if findings.prompt.parts else NO_PROMPT])
    if findings.inspection is None or model is None:
        return "\n".join([*lines, "", NO_BASE])
    lines += ["", *_neighbor_table(findings.inspection)]
    if findings.labels:
        lines += ["", *label_lines(findings.labels["cosine"], "by cosine", findings.inspection)]
        lines += label_lines(findings.labels["distance"], "by distance", findings.inspection)
    if (other := other_base(findings.metadata, model)) is not None:
        lines += ["", other]
    return "\n".join(lines)


def other_base(metadata: PromptMetadata, model: Model) -> str | None:
    """Return a note if the prompt was trained on another base than the one whose pieces are listed."""
    if metadata.base is None or metadata.base.fingerprint == model.fingerprint:
        return None
    return f"Pieces and their norms are those of {printable(model.name)}, which is not the prompt's base."


def printable(text: str, limit: int = _TEXT_LIMIT) -> str:
    r"""Return a text as one line for the terminal, with invisible characters as escapes such as `\x1b`."""
    escaped = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[: limit + 1])
    return escaped if len(escaped) <= limit else f"{escaped[: limit - 1]}…"


def provenance(metadata: PromptMetadata, prompt: Prompt | Delta) -> dict[str, str]:
    """Return the lines of a prompt's metadata: the text of each line by its name."""
    base, task_format = metadata.base, metadata.format
    labels = None if task_format is None else _listed(task_format.labels) or "none: any text is an answer"
    rows = {
        "base": base and printable(base.name),
        "revision": base and base.revision and printable(base.revision),
        "fingerprint": base and printable(base.fingerprint, 20),
        "method": metadata.method and printable(metadata.method),
        "initialization": metadata.initialization and printable(metadata.initialization),
        "placement": f"{metadata.placement} the input",
        "length": ", ".join(_length(name, part) for name, part in prompt.parts.items()) or changes(prompt),
        "task": metadata.task and printable(metadata.task),
        "template": task_format and printable(task_format.template),
        "labels": labels,
        "step": None if metadata.step is None else printable(str(metadata.step), 20),
        "scores": _listed([f"{name} {_number(value)}" for name, value in metadata.scores.items()]),
    }
    if metadata.settings:  # only a member of an ensemble, or an average, has settings
        rows["its own"] = _listed([f"{name} {value}" for name, value in metadata.settings.items()])
    return {name: value or "not recorded" for name, value in rows.items()}


def numbers(values: Sequence[float] | Float[np.ndarray, " P"], form: str) -> list[str]:
    """Return values in lines of ten. Each line begins with the index of its first value."""
    cells = [format(value, form) for value in values]
    width = max(map(len, cells), default=0)
    return [
        f"  {start:>5}  " + "  ".join(f"{cell:>{width}}" for cell in cells[start : start + _NUMBERS_PER_LINE])
        for start in range(0, len(cells), _NUMBERS_PER_LINE)
    ]


def label_lines(share: LabelShare, by: str, inspection: Inspection) -> list[str]:
    """Return lines that list, for each label, the tokens that have it among their neighbors."""
    count = len(inspection.tokens)
    with_label = {number for tokens in share.tokens.values() for number in tokens}
    if not with_label:
        return [f"  labels among the nearest pieces {by}: none"]
    lines = [
        f"  labels among the nearest pieces {by}: at {len(with_label)} of {count} tokens, "
        f"{share.share:.1%} of the pieces"
    ]
    for label, tokens in list(share.tokens.items())[:_LIST_LIMIT]:
        where = f"at {_listed(list(map(str, tokens)))}" if tokens else "at none"
        lines.append(f"    {printable(label, 40)}: {where}")
    if len(share.tokens) > _LIST_LIMIT:
        lines.append(f"    and {len(share.tokens) - _LIST_LIMIT} more labels")
    return lines


def _lines(text: str) -> list[tuple[int, str]]:
    return list(enumerate(text.split("\n")))


def _norms(findings: Findings) -> dict[str, str]:
    if "encoder_tokens" not in findings.prompt.parts:
        return {}
    tokens_pd = virtual_tokens(findings.prompt)
    norms = row_norms(tokens_pd, len(tokens_pd))
    text = f"mean {norms.mean():.4g}, from {norms.min():.4g} to {norms.max():.4g}"
    if findings.inspection is not None:
        norm_range = findings.inspection.vocabulary
        text += f"\nthe vocabulary's: mean {norm_range.mean:.4g}, "
        text += f"90% of them between {norm_range.low:.4g} and {norm_range.high:.4g}"
    return {"norms": text}


def _similarity(findings: Findings) -> dict[str, str]:
    """Return a line for each part with the cosines between its slots."""
    lines = []
    for name, cosines_pp in findings.similarity.items():
        above = np.triu_indices(len(cosines_pp), 1)
        if not len(above[0]):
            continue
        values = cosines_pp[above]
        ends = int(values.argmin()), int(values.argmax())
        low, high = (f"{_cosine(values[i])} ({above[0][i]}, {above[1][i]})" for i in ends)
        where = "between its tokens" if name == "encoder_tokens" else f"between its slots at {name}"
        lines.append(f"{where}: mean {_cosine(values.mean())}, from {low} to {high}")
    return {"cosines": "\n".join(lines)} if lines else {}


def _cosine(value: float) -> str:
    return f"{round(float(value), 2) + 0.0:.2f}"  # no -0.00


def changes(delta: Prompt | Delta) -> str:
    """Describe how a Delta changes the base."""
    leaves = jax.tree.leaves(delta)
    return f"{len(leaves)} arrays of the base, {sum(map(np.size, leaves)):,} parameters"


def _length(name: str, part: Any) -> str:
    arrays = used_arrays(part)
    if name == "encoder_tokens":
        return "{} virtual tokens of width {}".format(*arrays["embeddings"].shape)
    layers, slots, heads, width = arrays["keys"].shape
    return f"{slots} keys and values at {name} in each of {layers} layers, {heads} heads of width {width}"


def _prefix_tables(findings: Findings) -> list[str]:
    """Return the mean norms of keys and values in each layer of each site's prefix."""
    lines = []
    for site, norms in findings.slot_norms.items():
        lines += ["", f"  {site}, mean norm of a head's", "  layer       keys     values"]
        pairs = zip(norms["keys"], norms["values"], strict=True)
        lines += [f"  {layer:>5}  {k:>9.4g}  {v:>9.4g}" for layer, (k, v) in enumerate(pairs)]
    return lines


def _ablation(findings: Findings) -> list[str]:
    ablation = findings.ablation
    assert ablation is not None  # describe
    most = int(ablation.effects.argmax())
    return [
        f"  loss {ablation.loss:.4f} nats a target token ({ablation.tokens} of them in {printable(ablation.data)})",
        f"  by how much it is higher without each slot; most without {most}:",
        *numbers(ablation.effects, "+.4f"),
    ]


def _listed(texts: Sequence[str]) -> str:
    listed = ", ".join(printable(text, 40) for text in texts[:_LIST_LIMIT])
    return listed if len(texts) <= _LIST_LIMIT else f"{listed}, and {len(texts) - _LIST_LIMIT} more"


def _number(value: float) -> str:
    try:
        return f"{value:.4f}" if abs(value) < 1e6 else f"{value:.4g}"
    except OverflowError:  # JSON integers may exceed a float's range
        return "out of range"


def _neighbor_table(inspection: Inspection) -> list[str]:
    """Return two lines for each virtual token: number, norm and pieces by cosine, then pieces by distance."""

    def cell(near: Neighbor, value: str) -> str:
        return f"{printable(near.piece, 24)} {value}"

    cells = [
        row
        for token in inspection.tokens
        for row in (
            [cell(near, f"{near.cosine:.2f}") for near in token.by_cosine],
            [cell(near, f"{near.distance:.4g}") for near in token.by_distance],
        )
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  token       norm  nearest pieces by cosine, and below them by Euclidean distance"]
    for place, row in enumerate(cells):
        number, second = divmod(place, 2)
        head = f"{'':>5}  {'':>9}" if second else f"{number:>5}  {inspection.tokens[number].norm:>9.4g}"
        aligned = "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        lines.append(f"  {head}  {aligned}".rstrip())
    return lines
