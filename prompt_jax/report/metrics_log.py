"""A run's `metrics.jsonl`."""

import json
import math
from pathlib import Path
from typing import Any


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Read a run's `metrics.jsonl`, with NaN for null. A last line truncated by a crash is skipped."""
    path = folder / "metrics.jsonl"
    lines = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        try:
            values = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(values, dict):  # `json_text` writes null for NaN and infinity
            lines.append({name: math.nan if value is None else value for name, value in values.items()})
    return lines
