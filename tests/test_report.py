import json
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest

from prompt_jax import config, report
from prompt_jax.config import DataConfig, Experiment, PromptConfig
from prompt_jax.inspection import Inspection, Neighbour, NormRange, TokenInspection
from prompt_jax.report import ReportError, write_report

EVIL = "<script>alert('x')</script> & <b>bold</b>"
INSPECTION = Inspection(
    tokens=tuple(
        TokenInspection(10.0 + i, (Neighbour(7, "▁positive", 0.875), Neighbour(8, "</td>", -0.25))) for i in range(4)
    ),
    vocabulary=NormRange(mean=11.0, low=9.0, high=12.0),
)


class Page(HTMLParser):
    """The elements of a page; fails where end tags do not match."""

    VOID = {"meta", "link", "br", "img", "hr", "input"}

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open, f"not closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def _log() -> list[dict[str, Any]]:
    training = [{"step": s, "train/loss": 3 / s, "train/accuracy": 0.5} for s in range(1, 51)]
    return [*training, *({"step": s, "validation/accuracy": s / 60, "validation/invalid": 0.0} for s in (0, 25, 50))]


def _predictions() -> list[dict[str, Any]]:
    """20 right, 10 the other way round, and one answer that is no label."""
    rows = []
    for i in range(30):
        target = ("negative", "positive")[i % 2]
        answer = target if i < 20 else ("positive", "negative")[i % 2]
        rows.append({"input": f"text {i}", "target": target, "before": "movie", "prediction": answer})
    rows.append({"input": EVIL, "target": "positive", "before": "", "prediction": "<i>"})
    scores = {"negative": math.log(0.25), "positive": math.log(0.75)}
    return [{**row, "label_scores": scores} for row in rows]


SUMMARY: dict[str, Any] = {
    "name": EVIL,
    "model": {"name": "tiny", "revision": "abc", "fingerprint": "sha256:123", "parameters": 9_999_000},
    "trained_parameters": 1000,
    "steps": 50,
    "best": {"metric": "accuracy", "score": 0.8333, "step": 50},
    "seconds": 3725.2,
    "examples": {"train": 100, "validation": 20, "test": 31},
    "truncated": {"train": {"inputs": 17, "targets": 0}, "test": {"inputs": 0, "targets": 0}},
    "validation": {"accuracy": 0.8333, "invalid": 0.0},
    "test": {
        "before": {"accuracy": 0.125, "invalid": 0.5, "rank/accuracy": 0.25},
        "after": {"accuracy": 0.6452, "invalid": 0.0323, "rank/accuracy": 0.75},
    },
    "versions": {"jax": "9.9.9"},
}


def _write(folder: Path, **changes: Any) -> Path:
    experiment = Experiment(data=DataConfig(task="sentiment"), prompt=PromptConfig(length=4))
    (folder / "config.json").write_text(config.to_json(experiment))
    (folder / "summary.json").write_text(json.dumps({**SUMMARY, **changes}))
    return folder


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    _write_lines(tmp_path / "metrics.jsonl", _log())
    _write_lines(tmp_path / "predictions.jsonl", _predictions())
    return _write(tmp_path)


def test_report(run):
    before = dict(matplotlib.rcParams)
    path = write_report(run, INSPECTION)
    assert path == run / "report.html"
    assert dict(matplotlib.rcParams) == before
    text = path.read_text(encoding="utf-8")
    page = Page(text)

    assert page.count("svg") == 3
    assert page.count("script") == 0 and page.count("link") == 0 and page.count("img") == 0
    assert "http" not in text.replace("http-equiv", "")
    references = [v for _, attrs in page.elements for n, v in attrs.items() if n in ("src", "href", "xlink:href")]
    assert all(reference.startswith("#") for reference in references if reference)
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))

    for expected in ("12.5% → 64.5%", "25.0% → 75.0%", "83.3%", "1 h 2 min 5 s", "(0.010% of all)", "jax 9.9.9"):
        assert expected in page.words
    assert "▁positive 0.88" in page.words and "</td> -0.25" in page.words
    assert "train 100 17 0" in page.words  # what was cut; the test split was whole
    assert "negative 10 5 0 positive 5 10 1" in page.words  # the confusion table
    assert "Wrong: 11 of 31 " in page.words and "Right: 20 of 31 (12 shown)" in page.words
    assert "negative 0.25 positive 0.75" in page.words
    assert '"length": 4' in page.words


def test_texts_are_escaped(run):
    text = write_report(run, INSPECTION).read_text()
    assert "<script" not in text and "<b>bold" not in text and "<i>" not in text
    assert EVIL in Page(text).words


def test_colours_are_those_of_the_page(run):
    text = write_report(run, INSPECTION).read_text()
    assert "var(--accent)" in text and "#0101" not in text and "#0404" not in text


def test_same_files_same_bytes(run):
    first = write_report(run, INSPECTION).read_bytes()
    assert write_report(run, INSPECTION).read_bytes() == first


def test_without_optional_files(tmp_path):
    page = Page(write_report(_write(tmp_path, test=None), None).read_text())
    assert page.count("svg") == 0
    assert "Validation accuracy 83.3%" in page.words
    for absent in ("Sample answers", "Virtual tokens", "Expected and answered", "Test"):
        assert absent not in page.words


def test_free_text_answers(tmp_path):
    rows = [{"input": "q", "target": "a", "before": None, "prediction": "b", "label_scores": None}]
    _write_lines(tmp_path / "predictions.jsonl", rows)
    words = Page(write_report(_write(tmp_path), None).read_text()).words
    assert "Wrong: 1 of 1" in words and "Label probabilities" not in words and "Expected and answered" not in words


def test_odd_values(run):
    """Losses that are no numbers, half a surrogate pair, a line separator in a text, a label of no probability."""
    _write_lines(run / "metrics.jsonl", [{"step": 1, "train/loss": math.nan}, {"step": 2, "train/loss": math.inf}])
    row = {**_predictions()[0], "input": "\ud800\u2028", "label_scores": {"negative": -math.inf, "positive": 0.0}}
    (run / "predictions.jsonl").write_text(json.dumps(row, ensure_ascii=False), "utf-8", "surrogatepass")
    with pytest.raises(ReportError, match=r"predictions\.jsonl: not UTF-8"):
        write_report(run, None)
    _write_lines(run / "predictions.jsonl", [row])
    assert Page(write_report(run, None).read_text()).count("svg") == 0


@pytest.mark.parametrize("name", ["config.json", "summary.json"])
def test_missing_files(run, name):
    (run / name).unlink()
    with pytest.raises(ReportError, match=f"{name} is missing"):
        write_report(run, None)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("config.json", '{"nane": 1}', "unknown field nane"),
        ("summary.json", "{", "no JSON"),
        ("summary.json", "[]", "not an object"),
        ("summary.json", '{"name": "x"}', "there is no model, trained_parameters"),
        ("predictions.jsonl", '{"input": "x"}\n', "predictions.jsonl:1: not a prediction"),
    ],
)
def test_damaged_files(run, name, text, message):
    (run / name).write_text(text)
    with pytest.raises(ReportError, match=message):
        write_report(run, None)


def test_smoothing_by_hand():
    values = np.arange(40.0)
    smooth = report._smooth(values)  # two values on each side
    assert smooth[20] == 20 and smooth[0] == 1 and smooth[39] == 38
    assert report._smooth(values[:3]).tolist() == [0, 1, 2]


def test_spread():
    assert report._spread(3, 12) == [0, 1, 2]
    assert report._spread(24, 12) == list(range(0, 24, 2))
    assert report._spread(1000, 3) == [0, 333, 666]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "under 1 s"), (59.7, "1 min"), (61, "1 min 1 s"), (7200, "2 h"), (7265, "2 h 1 min 5 s")],
)
def test_duration(seconds, text):
    assert report._duration(seconds) == text
