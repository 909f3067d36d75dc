"""The papers' tables and curves, each from its commands to Markdown and a plot; one file for each paper."""

import functools
from collections.abc import Callable

from . import prefix_tuning, prompt_tuning, small
from .table import Table


def _with(own: Callable[[], Table], paper: Callable[[str | None], Table], model: str | None) -> Table:
    return own() if model == "demo" else paper(model)


# By name: what makes a table for the paper's bases (None) or for another; "demo" may have an edition of its own.
TABLES: dict[str, Callable[[str | None], Table]] = {
    "superglue": functools.partial(_with, small.methods, prompt_tuning.superglue),
    "prompt-length": functools.partial(_with, small.prompt_length, prompt_tuning.prompt_length),
    "initialisation": functools.partial(_with, small.initialisation, prompt_tuning.initialisation),
    "lm-adaptation": prompt_tuning.lm_adaptation,
    "domain-shift": functools.partial(_with, small.domain_shift, prompt_tuning.domain_shift),
    "paraphrase": prompt_tuning.paraphrase,
    "ensembles": functools.partial(_with, small.ensembles, prompt_tuning.ensembles),
    "e2e": functools.partial(_with, small.e2e, prefix_tuning.e2e),
    "webnlg": prefix_tuning.webnlg,
    "dart": prefix_tuning.dart,
    "xsum": prefix_tuning.xsum,
    "xsum-extrapolation": prefix_tuning.xsum_extrapolation,
    "prefix-length-xsum": prefix_tuning.prefix_length_xsum,
    "prefix-length-dart": prefix_tuning.prefix_length_dart,
    "ablations": prefix_tuning.ablations,
    "low-data": functools.partial(_with, small.low_data, prefix_tuning.low_data),
    "low-data-initialisation": prefix_tuning.low_data_initialisation,
    "data-share": prefix_tuning.data_share,
}
