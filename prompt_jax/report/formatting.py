"""Values as text in the report's template."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from prompt_jax import experiment as experiments
from prompt_jax.metrics import is_share

_TEXT_LIMIT = 600  # characters of an input shown

_TITLES = {
    "exact_match": "exact match",
    "final_answer": "final answer",
    "f1": "F1",
    "mean_class_f1": "mean class F1",
    "invalid": "invalid answers",
    "bleu": "BLEU",
    "multi_bleu": "BLEU by words",
    "nist": "NIST",
    "nist_perl": "NIST (Perl)",
    "meteor": "METEOR",
    "coco_meteor": "METEOR without signs",
    "coco_rouge_l": "ROUGE-L without signs",
    "cider": "CIDEr",
    "rouge_1": "ROUGE-1",
    "rouge_2": "ROUGE-2",
    "rouge_l": "ROUGE-L",
    "chrf": "chrF",
    "ter": "TER",
    "webnlg_bleu": "BLEU (WebNLG's)",
    "webnlg_meteor": "METEOR (WebNLG's)",
    "webnlg_ter": "TER (WebNLG's)",
    "dart_bleu": "BLEU (DART's)",
    "dart_meteor": "METEOR (DART's)",
    "dart_ter": "TER (DART's)",
    "log_likelihood": "log-likelihood, nats per token",
}


def metric_title(name: str) -> str:
    ranked = name.startswith("rank/")
    bare = name.removeprefix("rank/")
    return _TITLES.get(bare, bare) + (" by ranking" if ranked else "")


def percent(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.1%}"


def value_text(value: float | None, metric: str) -> str:
    """Return a metric's value as text: a share in percent, any other metric in its unit."""
    if is_share(metric):
        return percent(value)
    return "–" if value is None or not math.isfinite(value) else f"{value:.2f}"


def gain_text(value: float | None, metric: str, sign: str = "", unit: bool = False) -> str:
    """Return a difference of a metric's values: of shares in percentage points."""
    if value is None:
        return "–"
    share = is_share(metric)
    text = f"{100 * value:{sign}.1f}" if share else f"{value:{sign}.2f}"
    return text.replace("-", "−") + (" points" if unit and share else "")


def ranges(numbers: Sequence[int]) -> str:
    """Return ascending numbers with consecutive ones joined: `0–2, 5`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)


def duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = ((hours, "h"), (minutes, "min"), (seconds, "s"))
    return " ".join(f"{count} {unit}" for count, unit in parts if count) or "under 1 s"


def bytes_text(count: int) -> str:
    """Return a size in memory as text: `850 MiB` or `1.2 GiB`."""
    return f"{count / 2**20:,.0f} MiB" if count < 2**30 else f"{count / 2**30:,.1f} GiB"


def shorten(text: str | None, limit: int = _TEXT_LIMIT) -> str:
    if not text:
        return "–" if text is None else "(empty)"
    return text if len(text) <= limit else f"{text[:limit]}…"


FILTERS: dict[str, Callable[..., Any]] = {
    "percent": percent,
    "value": value_text,
    "gain": gain_text,
    "duration": duration,
    "metric": metric_title,
    "shorten": shorten,
    "exp": math.exp,
    "field": lambda name: name.rpartition(".")[2],
    "settings": experiments.settings_text,
    "ranges": ranges,
    "number": "{:,}".format,
}
