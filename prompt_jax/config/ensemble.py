"""Options of an ensemble."""

import dataclasses
from typing import Annotated

from prompt_jax.config.constraints import POSITIVE
from prompt_jax.config.prompt import Initialization


@dataclasses.dataclass(frozen=True)
class EnsembleConfig:
    """Several prompts trained at once, each as it would be alone. A list has a value for each member, or one for all
    of them; left out, members have the experiment's."""

    size: Annotated[int, POSITIVE] | None = None
    """Number of members. Left out, as many as the longest list has values, or a single prompt."""
    group: Annotated[int, POSITIVE] | None = None
    """Members that are processed at once, the groups one after the other; None is all of them, which is for
    accelerators. On a CPU large matrices gain nothing from being stacked: 1 is the fastest, and takes least memory."""
    seed: tuple[int, ...] = ()
    """Of initialization, data order and dropout. Left out, train.seed and the numbers that follow it."""
    learning_rate: tuple[float, ...] = ()
    """As optimizer.learning_rate."""
    weight_decay: tuple[float, ...] = ()
    """As optimizer.weight_decay."""
    length: tuple[int, ...] = ()
    """As prompt.length. Members of one length share a compiled step."""
    init: tuple[Initialization, ...] = ()
    """As prompt.init."""
    init_member: tuple[int, ...] = ()
    """As prompt.init_member: 0, 1, 2 gives each of three members its own of the file."""
    task: tuple[str, ...] = ()
    """As data.task: a bank of prompts, one for each task."""
