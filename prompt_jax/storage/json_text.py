"""JSON according to RFC 8259, which has no NaN and no Infinity; Python's json module writes both."""

import json
import math
from typing import Any


def json_text(value: Any, **options: Any) -> str:
    """Return a value as JSON, with null for numbers that are not finite. Takes the options of `json.dumps`."""
    return json.dumps(_without_nan(value), allow_nan=False, **options)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
