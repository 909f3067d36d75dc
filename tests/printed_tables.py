"""Tables that `prompt-jax evaluate` and `train` print."""

import itertools
import re


def table(text: str, title: str) -> dict[str, list[str]]:
    """Return the rows of a table that `evaluate` printed, by the name before two spaces."""
    lines = text[text.index(title) :].splitlines()[1:]
    rows = [re.split(r"  +", line.strip()) for line in itertools.takewhile(lambda line: line.startswith("  "), lines)]
    return {"": rows[0], **{name: cells for name, *cells in rows[1:]}}
