"""The papers' tables and curves: `python -m tools.reproduction`. Each paper has one file."""

import functools
from collections.abc import Callable

from tools.reproduction import prefix_tuning, prompt_tuning, small
from tools.reproduction.table import Table

# Small editions, for the demo's T5 on two CPU cores.
SMALL: dict[str, Callable[[], Table]] = {
    "superglue": small.methods,
    "prompt-length": small.prompt_length,
    "initialization": small.initialization,
    "domain-shift": small.domain_shift,
    "ensembles": small.ensembles,
    "e2e": small.e2e,
    "low-data": small.low_data,
}

PAPERS: dict[str, Callable[[str | None], Table]] = {
    "superglue": prompt_tuning.superglue,
    "prompt-length": prompt_tuning.prompt_length,
    "initialization": prompt_tuning.initialization,
    "lm-adaptation": prompt_tuning.lm_adaptation,
    "domain-shift": prompt_tuning.domain_shift,
    "paraphrase": prompt_tuning.paraphrase,
    "ensembles": prompt_tuning.ensembles,
    "e2e": prefix_tuning.e2e,
    "webnlg": prefix_tuning.webnlg,
    "dart": prefix_tuning.dart,
    "xsum": prefix_tuning.xsum,
    "xsum-extrapolation": prefix_tuning.xsum_extrapolation,
    "prefix-length-xsum": prefix_tuning.prefix_length_xsum,
    "prefix-length-dart": prefix_tuning.prefix_length_dart,
    "ablations": prefix_tuning.ablations,
    "low-data": prefix_tuning.low_data,
    "low-data-initialization": prefix_tuning.low_data_initialization,
    "data-share": prefix_tuning.data_share,
}


def _make(name: str, model: str | None) -> Table:
    return SMALL[name]() if model == "demo" and name in SMALL else PAPERS[name](model)


# By name: a function of the base, or of None for the paper's bases.
TABLES: dict[str, Callable[[str | None], Table]] = {name: functools.partial(_make, name) for name in PAPERS}
