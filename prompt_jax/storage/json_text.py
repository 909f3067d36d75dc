"""JSON that every program can read: RFC 8259 has no NaN and no Infinity, which Python's json module writes."""

import json
import math
from typing import Any


def json_text(value: Any, **options: Any) -> str:
    """Return a value as JSON, with null in the place of numbers that are not finite; options as `json.dumps`."""
    return json.dumps(_without_nan(value), allow_nan=False, **options)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(own) for name, own in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(own) for own in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
