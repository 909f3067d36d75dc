"""Tables and curves of Li and Liang 2021 (ACL 2021; arXiv 2101.00190). The paper prints no numbers for curves."""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tools.reproduction.table import Column, Printed, Row, Table, Training, short

SEEDS = (0, 1, 2)

# Baselines. The authors' code trains them with the mean loss over tokens and the base's dropout of 0.1.
BASELINE: dict[str, Any] = {"train.loss": "token", "train.dropout_rate": 0.1}
FULL = {**BASELINE, "prompt.method": "full"}
TOP_2 = {**BASELINE, "prompt.method": "last_layers", "prompt.layers": 2}
ADAPTER = {**BASELINE, "prompt.method": "adapter", "prompt.kind": "lin"}
ADAPTER_3 = {**ADAPTER, "prompt.share": 0.03}
ADAPTER_01 = {**ADAPTER, "prompt.share": 0.001}


def _tuned(rate: float, epochs: int, batch: int) -> dict[str, Any]:
    """Return options for table 6's learning rate, epochs and batch size."""
    return {"optimizer.learning_rate": rate, "train.epochs": epochs, "train.batch_size": batch}


def _row(
    name: str,
    config: str,
    model: str | None,
    paper: Sequence[Printed] = (),
    columns: Sequence[Column] = (),
    options: Mapping[str, Any] = {},
    run: str | None = None,
    **place: Any,
) -> Row:
    """Return a row of one run of a configuration in configs/prefix_tuning. `run` or `name` names the run."""
    base: dict[str, Any] = {} if model is None else {"model.name": model}
    if model is not None and "gpt2" not in model:
        base["decoding.banned_tokens"] = ()  # GPT-2's newlines
    base["ensemble.seed"] = SEEDS
    parts = [config, *([] if model is None else [short(model)]), run or name]
    words = "-".join("".join(c if c.isalnum() else "-" for c in part.lower()) for part in parts)
    training = Training(
        "-".join(filter(None, words.split("-"))), f"configs/prefix_tuning/{config}.py", {**base, **options}
    )
    figures = dict(zip((column.title for column in columns), paper, strict=False)) if model is None else {}
    return Row(name, (training,), paper=figures, **place)


def _official(benchmark: str) -> dict[str, str]:
    """Return the metrics of the official scorer of WebNLG or DART, by column title."""
    return {"BLEU": f"{benchmark}_bleu", "METEOR": f"{benchmark}_meteor", "TER": f"{benchmark}_ter"}


def _computable(metrics: Iterable[str]) -> dict[str, Any]:
    """Return the option for these metrics; METEOR only if Java is installed."""
    return {"data.metrics": tuple(name for name in metrics if "meteor" not in name or shutil.which("java"))}


_E2E = {"BLEU": "bleu", "NIST": "nist", "METEOR": "coco_meteor", "ROUGE-L": "coco_rouge_l", "CIDEr": "cider"}
E2E_COLUMNS = tuple(Column(title, "e2e", metric) for title, metric in _E2E.items())
E2E_METRICS = _computable(_E2E.values())
# With little data, the authors' code chooses the checkpoint with the lowest validation loss.
LOW_DATA_METRICS = _computable(("log_likelihood", *_E2E.values()))


def e2e(model: str | None) -> Table:
    rows = {
        "fine-tuning": ("e2e", (68.8, 8.71, 46.1, 71.1, 2.43), FULL | _tuned(5e-5, 5, 10)),
        "top 2 layers": ("e2e", (68.1, 8.59, 46.0, 70.8, 2.41), TOP_2 | _tuned(5e-5, 5, 10)),
        "adapter, 3 %": ("e2e", (68.9, 8.71, 46.1, 71.3, 2.47), ADAPTER_3 | _tuned(5e-5, 5, 5)),
        "adapter, 0.1 %": ("e2e", (66.3, 8.41, 45.0, 69.8, 2.40), ADAPTER_01 | _tuned(8e-5, 10, 5)),
        "prefix": ("e2e", (70.3, 8.82, 46.3, 72.1, 2.46), {}),
    }
    if model is None:
        rows |= {
            "fine-tuning, GPT-2 large": ("e2e_large", (68.5, 8.78, 46.0, 69.9, 2.45), FULL | _tuned(5e-5, 5, 10)),
            "prefix, GPT-2 large": ("e2e_large", (70.3, 8.85, 46.2, 71.7, 2.47), {}),
        }
    return Table(
        "E2E: prefixes and baselines",
        "Li and Liang 2021, table 2 (ACL): GPT-2 medium, test. NIST is computed as in the authors' code, "
        "measure_scores.py with --python.",
        E2E_COLUMNS,
        tuple(
            _row(name, config, model, paper, E2E_COLUMNS, options | E2E_METRICS)
            for name, (config, paper, options) in rows.items()
        ),
    )


_WEBNLG, _DART = _official("webnlg"), _official("dart")


def webnlg(model: str | None) -> Table:
    metrics = _computable(_WEBNLG.values())
    parts = {"seen": "webnlg_seen", "unseen": "webnlg_unseen", "all": "webnlg"}
    columns = tuple(
        Column(f"{part} {title}", task, metric) for title, metric in _WEBNLG.items() for part, task in parts.items()
    )
    rows = {
        "fine-tuning": ("webnlg", "64.7 26.7 45.7 46 30 38 33 78 54", FULL | _tuned(1e-5, 10, 6)),
        "top 2 layers": ("webnlg", "53.6 18.9 36.0 38 23 31 49 99 72", TOP_2 | _tuned(5e-5, 10, 9)),
        "adapter, 3 %": ("webnlg", "60.5 47.9 54.8 43 38 41 35 46 39", ADAPTER_3 | _tuned(5e-5, 5, 5)),
        "adapter, 0.1 %": ("webnlg", "54.5 45.1 50.2 39 36 38 40 46 43", ADAPTER_01 | _tuned(5e-5, 10, 5)),
        "prefix": ("webnlg", "62.9 45.3 55.0 44 37 41 35 51 42", {}),
    }
    if model is None:
        rows |= {
            "fine-tuning, GPT-2 large": (
                "webnlg_large",
                "65.3 43.1 55.5 46 38 42 33 53 42",
                FULL | _tuned(1e-5, 10, 6),
            ),
            "prefix, GPT-2 large": ("webnlg_large", "63.4 47.7 56.3 45 39 42 34 48 40", {}),
        }
    return Table(
        "WebNLG: seen categories, unseen ones, and all",
        "Li and Liang 2021, table 2 (ACL): GPT-2 medium, test. METEOR and TER, shares in the paper, are in percent.",
        columns,
        tuple(
            _row(name, config, model, tuple(map(float, paper.split())), columns, options | metrics)
            for name, (config, paper, options) in rows.items()
        ),
    )


def dart(model: str | None) -> Table:
    metrics = _computable(_DART.values())
    weighted = {"MoverScore": "moverscore", "BERTScore": "bertscore", "BLEURT": "bleurt"}
    columns = tuple(Column(title, "dart", metric) for title, metric in (_DART | weighted).items())
    rows = {
        "fine-tuning": ("dart", "46.2 39 46 .50 .94 .39", FULL | _tuned(1e-5, 10, 6)),
        "top 2 layers": ("dart", "41.0 34 56 .43 .93 .21", TOP_2 | _tuned(5e-5, 5, 5)),
        "adapter, 3 %": ("dart", "45.2 38 46 .50 .94 .39", ADAPTER_3 | _tuned(5e-5, 5, 5)),
        "adapter, 0.1 %": ("dart", "42.4 36 48 .47 .94 .33", ADAPTER_01 | _tuned(8e-5, 5, 5)),
        "prefix": ("dart", "46.4 38 46 .50 .94 .39", {}),
    }
    if model is None:
        rows |= {
            "fine-tuning, GPT-2 large": ("dart_large", "47.0 39 46 .51 .94 .40", FULL | _tuned(1e-5, 10, 6)),
            "prefix, GPT-2 large": ("dart_large", "46.7 39 45 .51 .94 .40", {}),
        }
    return Table(
        "DART: prefixes and baselines",
        "Li and Liang 2021, table 2 (ACL): GPT-2 medium, test. METEOR and TER, shares in the paper, are in percent. "
        "MoverScore, BERTScore and BLEURT need further models: compute them from each run's `predictions.jsonl`, and "
        "pass them with --supplied.",
        columns,
        tuple(
            _row(name, config, model, tuple(map(float, paper.split())), columns, options | metrics)
            for name, (config, paper, options) in rows.items()
        ),
    )


def _rouge(task: str) -> tuple[Column, ...]:
    return tuple(Column(f"ROUGE-{name.upper()}", task, f"rouge_{name}") for name in ("1", "2", "l"))


def xsum(model: str | None) -> Table:
    columns = _rouge("xsum")
    return Table(
        "XSum: summaries",
        "Li and Liang 2021, table 3 (ACL): BART-large, test. ROUGE is the mean over the test set; the authors' code "
        "averages its batches' scores.",
        columns,
        (
            # The paper states this rate for XSum's halves, and no epochs for the whole data set.
            _row("fine-tuning", "xsum", model, (45.14, 22.27, 37.25), columns, FULL | _tuned(3e-5, 5, 18)),
            _row("prefix, 2 %", "xsum", model, (43.80, 20.93, 36.05), columns),
            _row("prefix, 0.1 %", "xsum_small", model, (42.92, 20.03, 35.05), columns),
        ),
    )


def xsum_extrapolation(model: str | None) -> Table:
    columns = tuple(
        Column(f"{title} R-{name.upper()}", f"xsum_{task}", f"rouge_{name}")
        for title, task in {"news to sports": "news_to_sports", "within news": "within_news"}.items()
        for name in ("1", "2", "l")
    )
    paper = {
        "fine-tuning": (38.15, 15.51, 30.26, 39.20, 16.35, 31.15),
        "prefix": (39.23, 16.74, 31.51, 39.41, 16.87, 31.47),
    }
    rows = []
    for name, figures in paper.items():
        options = FULL | _tuned(3e-5, 5, 18) if name == "fine-tuning" else {}
        halves = [_row(name, config, model, figures, columns, options) for config in ("news_to_sports", "within_news")]
        rows.append(Row(name, halves[0].steps + halves[1].steps, paper=halves[0].paper))
    return Table(
        "XSum: unseen topics",
        "Li and Liang 2021, table 4 (ACL): BART-large, trained on news and tested on sports, and within news. ROUGE is "
        "the mean over the test set.",
        columns,
        tuple(rows),
    )


def prefix_length_xsum(model: str | None) -> Table:
    # By length. The configuration's length, 100, is a row of table 3.
    runs = {n: ({"prompt.length": n}, f"length {n}") for n in (1, 10, 20, 50, 80, 100, 200, 300)}
    runs[100] = ({}, "prefix, 2 %")
    columns = Column("ROUGE-2", "xsum", "rouge_2"), Column("ROUGE-L", "xsum", "rouge_l")
    return Table(
        "Prefix length on XSum",
        "Li and Liang 2021, figure 4, a plot: ROUGE-2 peaks at a length of 200, at about 21.",
        columns,
        tuple(
            _row(f"{n}", "xsum", model, options=options, run=run, series="prefix", x=n)
            for n, (options, run) in runs.items()
        ),
        x="prefix length",
    )


def prefix_length_dart(model: str | None) -> Table:
    # By length. The configuration's length, 10, is a row of table 2.
    metrics = _computable(_DART.values())
    runs = {n: ({"prompt.length": n}, f"length {n}") for n in (1, 5, 10, 20, 40)}
    runs[10] = ({}, "prefix")
    return Table(
        "Prefix length on DART",
        "Li and Liang 2021, figure 4, a plot: BLEU peaks at a length of 10.",
        (Column("BLEU", "dart", _DART["BLEU"]),),
        tuple(
            _row(f"{n}", "dart", model, options=options | metrics, run=run, series="prefix", x=n)
            for n, (options, run) in runs.items()
        ),
        x="prefix length",
    )


def ablations(model: str | None) -> Table:
    rows = [
        ("prefix, 5", "e2e", (70.3, 8.82, 46.3, 72.1, 2.46), {}),
        ("embedding-only, 1", "e2e_embedding", (48.1, 3.33, 32.1, 60.2, 1.10), {"prompt.length": 1}),
        ("embedding-only, 10", "e2e_embedding", (62.2, 6.70, 38.6, 66.4, 1.75), {"prompt.length": 10}),
        ("embedding-only, 20", "e2e_embedding", (61.9, 7.11, 39.3, 65.6, 1.85), {"prompt.length": 20}),
        ("infix, 1", "e2e_infix", (67.9, 8.63, 45.8, 69.4, 2.42), {"prompt.length": 1}),
        ("infix, 10", "e2e_infix", (67.2, 8.48, 45.8, 69.9, 2.40), {"prompt.length": 10}),
        ("infix, 20", "e2e_infix", (66.7, 8.47, 45.8, 70.0, 2.42), {"prompt.length": 20}),
    ]
    return Table(
        "Prefix, embedding-only and infix on E2E",
        "Li and Liang 2021, table 5 (ACL): GPT-2 medium, test.",
        E2E_COLUMNS,
        tuple(
            _row(
                name, config, model, paper, E2E_COLUMNS, options | E2E_METRICS, run=name.replace("prefix, 5", "prefix")
            )
            for name, config, paper, options in rows
        ),
    )


# Section 6.3: five subsets, each with prompts of two seeds; steps by subset size.
SUBSETS, LOW_DATA_STEPS = range(5), {50: (200, 100), 100: (200, 100), 200: (200, 200), 500: (400, 400)}
RANDOM = {"prompt.init": "uniform", "prompt.init_text": "", "prompt.init_range": (0.0, 1.0)}


def low_data(model: str | None) -> Table:
    rows = []
    for size, (prefix_steps, full_steps) in LOW_DATA_STEPS.items():
        for method, options, steps in (
            ("prefix, “table-to-text:”", {}, prefix_steps),
            ("prefix, random", RANDOM, prefix_steps),
            ("fine-tuning", FULL, full_steps),
        ):
            every = _subsets(model, size, method, {**options, "train.steps": steps})
            rows.append(Row(f"{size} examples, {method}", every, series=method, x=size))
    return Table(
        "Low data: E2E by number of examples",
        "Li and Liang 2021, figure 3 (ACL), plots: in the low-data setting, prefixes are 2.9 BLEU better on average, "
        "and the difference shrinks with more data. Five subsets, two seeds each. Unlike here, the paper's fine-tuning "
        "prepends the words to its sources, and the authors' code scores these runs on the validation split.",
        E2E_COLUMNS,
        tuple(rows),
        x="training examples",
    )


# Li and Liang 2021, figure 5 (ACL), from left to right, with their numbers of GPT-2's tokens after a space.
INIT_WORDS = {"active": 1, "elephant": 1, "summarize": 1, "table-to-text:": 6, "banana": 1, "beautiful": 1}
INIT_WORDS |= {"divide": 1, "keep": 1}


def low_data_initialization(model: str | None) -> Table:
    rows = [Row("random", _subsets(model, 100, "prefix, random", RANDOM))]
    for words, length in INIT_WORDS.items():
        options = {} if words == "table-to-text:" else {"prompt.init_text": words, "prompt.length": length}
        rows.append(Row(words, _subsets(model, 100, f"prefix, “{words}”", options)))
    return Table(
        "Low data: initialization with words, 100 examples of E2E",
        "Li and Liang 2021, figure 5 (ACL), a plot: any words are much better than random values, and words related to "
        "the task slightly better than others.",
        E2E_COLUMNS,
        tuple(rows),
    )


def _subsets(model: str | None, size: int, name: str, options: Mapping[str, Any]) -> tuple[Training, ...]:
    """Return one run per subset of the training data, with 30 % as many validation examples, as in the paper."""
    own = {"data.train_examples": size, "train.eval_examples": size * 3 // 10, "train.steps": LOW_DATA_STEPS[size][0]}
    own |= {**options, **LOW_DATA_METRICS}
    rows = [
        _row(
            f"{size} {name} {subset}",
            "e2e_low_data",
            model,
            options={**own, "data.subset_seed": subset, "ensemble.seed": (0, 1)},
        )
        for subset in SUBSETS
    ]
    return tuple(step for row in rows for step in row.steps if isinstance(step, Training))


E2E_PAIRS = 42_061


def data_share(model: str | None) -> Table:
    rows = []
    for percent in (5, 10, 20, 40, 60, 80, 100):
        for method, options in (("prefix", {}), ("fine-tuning", FULL | _tuned(5e-5, 5, 10))):
            size = {} if percent == 100 else {"data.train_examples": E2E_PAIRS * percent // 100}
            name = f"{percent} %, {method}"
            run = method if percent == 100 else name  # 100 % is a row of table 2
            rows.append(
                _row(name, "e2e", model, options=options | size | E2E_METRICS, run=run, series=method, x=percent)
            )
    return Table(
        "E2E by share of the training set",
        "Li and Liang 2021 (ACL, appendix), a plot: prefixes are better with at least 20 % of the data.",
        E2E_COLUMNS,
        tuple(rows),
        x="percent of the training set",
    )
