"""The cases of tools/gpu.sh. Both sides train and generate in bfloat16, with random weights and a prompt of 100."""

import dataclasses
from typing import Any, Literal

from tools.bench.cases import Shape
from tools.planner.programs import PUBLISHED

BASES = {"t5": "google/t5-v1_1-xl", "llama": "meta-llama/Meta-Llama-3-8B"}
MEMBERS = 32


@dataclasses.dataclass(frozen=True)
class Case:
    """A measurement of one base."""

    name: str
    shape: Shape
    kind: Literal["step", "members", "generation"] = "step"
    members: int = 1

    @property
    def examples(self) -> int:
        """Return the number of examples in a step of all members."""
        return self.shape.batch * self.members


def cases(model: str, tiny: bool) -> list[Case]:
    """Return the cases of a base, the most important first."""
    if tiny:
        small = {"batch": 2, "length": 4, "source": 8}
        if model == "t5":
            shape = Shape(**small, dropout=0.0, target=4, model="t5")
        else:
            shape = Shape(**small, dropout=0.0, target=0, model="llama")
        members, generated, member = 3, 4, {"batch": 1}
    elif model == "t5":
        shape = Shape(batch=16, length=100, dropout=0.0, source=512, target=16, model="t5")
        members, generated, member = MEMBERS, 32, {"batch": 1, "source": 128}
    else:
        shape = Shape(batch=4, length=100, dropout=0.0, source=1024, target=0, model="llama")
        members, generated, member = MEMBERS, 32, {"batch": 1, "source": 128}
    name = f"tiny {model}" if tiny else {"t5": "t5-xl", "llama": "llama-8b"}[model]
    made = [Case(f"{name}, step", shape)]
    if model == "t5":
        made.append(
            Case(f"{name}, step of {members} members", dataclasses.replace(shape, **member), "members", members)
        )
    answers = dataclasses.replace(shape, batch=min(shape.batch, 8), source=min(shape.source, 512), target=generated)
    made.append(Case(f"{name}, {generated} tokens", answers, "generation"))
    if model == "t5":
        made.append(Case(f"{name}, step, dropout 0.1", dataclasses.replace(shape, dropout=0.1)))
    return made


def base_config(model: str, tiny: bool) -> dict[str, Any]:
    """Return a base's config.json."""
    raw = dict(PUBLISHED[BASES[model]])
    if tiny and model == "t5":
        raw |= {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2}
    elif tiny:
        sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 32000}
        raw |= sizes | {"num_attention_heads": 4, "num_key_value_heads": 2}
    return raw
