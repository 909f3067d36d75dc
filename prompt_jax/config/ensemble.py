"""Options of an ensemble."""

import dataclasses
from typing import Annotated

from prompt_jax.config.constraints import POSITIVE, Constraint
from prompt_jax.config.prompt import Initialization

MAX_MEMBERS = 4096  # that a prompt file holds
_SIZE = Constraint(f"at most {MAX_MEMBERS}", lambda value: value <= MAX_MEMBERS)


@dataclasses.dataclass(frozen=True)
class EnsembleConfig:
    """Several prompts trained at once, each exactly as alone. A list has one value for each member, or one value for
    all. An empty list means the experiment's value."""

    size: Annotated[int, POSITIVE, _SIZE] | None = None
    """Number of members. None means the length of the longest list, or a single prompt without lists."""
    group: Annotated[int, POSITIVE] | None = None
    """Number of members in one compiled step; groups run in turn. None means all, which suits accelerators. On CPUs, 1
    is fastest for large models and needs the least memory."""
    seed: tuple[int, ...] = ()
    """Seeds of initialization, data order and dropout. Empty means train.seed, train.seed + 1, ..."""
    learning_rate: tuple[float, ...] = ()
    """Each member's optimizer.learning_rate."""
    weight_decay: tuple[float, ...] = ()
    """Each member's optimizer.weight_decay."""
    length: tuple[int, ...] = ()
    """Each member's prompt.length. Members of the same length share a compiled step."""
    init: tuple[Initialization, ...] = ()
    """Each member's prompt.init."""
    init_member: tuple[int, ...] = ()
    """Each member's prompt.init_member, for example 0 1 2 for the three prompts of a file."""
    task: tuple[str, ...] = ()
    """Each member's data.task, to train one prompt for each of several tasks."""
