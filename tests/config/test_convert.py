"""JSON to dataclasses: types, unknown fields, null, and messages that name the field."""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prompt_jax.config.constraints import DISTINCT, INTERVAL, POSITIVE
from prompt_jax.config.convert import ConversionError, from_dict


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float = 0.5
    kind: Literal["a", "b"] = "a"


@dataclasses.dataclass(frozen=True)
class Outer:
    count: Annotated[int, POSITIVE]
    inner: Inner = Inner()
    maybe: Inner | None = None
    path: Path | None = None
    names: Annotated[tuple[str, ...], DISTINCT] = ()
    between: Annotated[tuple[float, float], INTERVAL] = (0.0, 1.0)
    scores: Mapping[str, float] = dataclasses.field(default_factory=dict)
    anything: Any = None
    flag: bool = False
    parts: tuple[Inner, ...] = ()
    by_name: Mapping[str, Inner] = dataclasses.field(default_factory=dict)


@given(
    count=st.integers(1, 9),
    rate=st.floats(allow_nan=False, allow_infinity=False),
    maybe=st.none() | st.builds(Inner, rate=st.floats(0, 1)),
    path=st.none() | st.text("abc/.", min_size=1).map(Path),
    names=st.lists(st.text()).map(tuple),
    scores=st.dictionaries(st.text(), st.floats(allow_nan=False, allow_infinity=False)),
)
def test_written_values_are_read_back(count, rate, maybe, path, names, scores):
    value = Outer(count, Inner(rate), maybe, path, names, scores=scores)
    assert from_dict(Outer, json.loads(json.dumps(dataclasses.asdict(value), default=str))) == value


def test_an_integer_is_a_float():
    assert type(from_dict(Inner, {"rate": 1}).rate) is float


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], r"^the file must be a JSON object, not \[\]$"),
        ({}, "^count is missing$"),
        ({"count": True}, "^count must be int, not True$"),
        ({"count": "1"}, "^count must be int, not '1'$"),
        ({"count": 1, "flag": 1}, "^flag must be bool, not 1$"),
        ({"count": 1, "inner": {"rate": None}}, "^inner.rate must be float, not None$"),
        ({"count": 1, "inner": {"kind": "c"}}, "^inner.kind must be 'a' or 'b', not 'c'$"),
        ({"count": 1, "maybe": {"kind": "c"}}, "^maybe.kind must be 'a' or 'b', not 'c'$"),
        ({"count": 1, "inner": {"rat": 1}}, "^unknown field inner.rat; the fields are rate, kind$"),
        ({"count": 1, "inner": 3}, "^inner must be a JSON object, not 3$"),
        ({"count": 1, "parts": [{}, {"rate": "high"}]}, r"^parts\[1\].rate must be float, not 'high'$"),
        ({"count": 1, "parts": [{}, 3]}, r"^parts\[1\] must be a JSON object, not 3$"),
        ({"count": 1, "by_name": {"a": {"rate": "high"}}}, r"^by_name must be .*, not {'a': {'rate': 'high'}}$"),
        ({"count": 1, "path": 3}, r"^path must be Path \| None, not 3$"),
        ({"count": 1, "names": ["a", 1]}, r"^names must be tuple\[str, ...\], not \['a', 1\]$"),
        ({"count": 1, "between": [1, 2, 3]}, r"^between must be tuple\[float, float\], not \[1, 2, 3\]$"),
        ({"count": "\ud800"}, r"^count must be int, not '\\ud800'$"),
        ({"count": 1, "inner": {"kind": "\ud800"}}, r"^inner.kind must be 'a' or 'b', not '\\ud800'$"),
        ({"count": 1, "scores": {"f1": "\ud800"}}, r"^scores.f1 must be float, not '\\ud800'$"),
    ],
)
def test_errors_name_the_field(values, message):
    with pytest.raises(ConversionError, match=message):
        from_dict(Outer, values)


def test_unknown_fields_and_null_if_requested():
    values = {"count": 1, "new": 2, "inner": {"rate": None, "other": 3}, "scores": {"f1": None}}
    read = from_dict(Outer, values, unknown="ignore", nan=True)
    assert math.isnan(read.inner.rate) and math.isnan(read.scores["f1"]) and read.maybe is None
