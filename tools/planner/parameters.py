"""Counts the parameters that each method trains and stores per task: Table 4 of Lester et al. 2021, for any model.

    python -m tools.planner.parameters        # T5 1.1 of each size, soft prompts of 100 tokens
    python -m tools.planner.parameters --models demo openai-community/gpt2-medium

Nothing is loaded or trained. Models are folders with a config.json, or published models with known shapes. Multitask
prompts train parameters for all tasks together; the stored and total parameters are those of one task.
"""

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import tyro

from prompt_jax.checkpoints.weights import abstract
from prompt_jax.config.data import DataConfig
from prompt_jax.config.model import ModelConfig
from prompt_jax.errors import ConfigError, UserError
from prompt_jax.experiment import Experiment
from prompt_jax.methods import Method
from prompt_jax.methods.adapter import AdapterTuning
from prompt_jax.methods.full import FullTuning
from prompt_jax.methods.last_layers import LastLayersTuning
from prompt_jax.methods.multitask import MultitaskPromptTuning
from prompt_jax.methods.prefix import PrefixTuning
from prompt_jax.methods.soft_prompt import PromptTuning
from prompt_jax.models import family
from tools.planner.programs import base_config, start_of

T5 = tuple(f"google/t5-v1_1-{size}" for size in ("small", "base", "large", "xl", "xxl"))
# The paper's figures for a prompt of 100: parameters with the prompt, and the prompt's share in percent. The share of
# large is a slip (102,400 of 783,252,480 are 0.01307 %); that of xl is truncated.
PAPER = {
    T5[0]: (77_012_352, 0.06648),
    T5[1]: (247_654_656, 0.03101),
    T5[2]: (783_252_480, 0.01907),
    T5[3]: (2_849_961_984, 0.00718),
    T5[4]: (11_135_741_952, 0.00368),
}
TASKS = 8  # for multitask prompts: SuperGLUE's
METHODS = {
    "soft prompt": PromptTuning(),
    f"multitask (add), {TASKS} tasks": MultitaskPromptTuning(task_part="add"),
    f"multitask (concatenate), {TASKS} tasks": MultitaskPromptTuning(task_part="concatenate"),
    f"multitask (project), {TASKS} tasks": MultitaskPromptTuning(task_part="project"),
    "prefix": PrefixTuning(init="uniform"),
    "prefix with MLP": PrefixTuning(init="uniform", mlp_width=512),
    "adapters (Houlsby)": AdapterTuning(),
    "adapters (Lin)": AdapterTuning(kind="lin"),
    "last two layers": LastLayersTuning(),
    "full model": FullTuning(),
    "prompt design": None,
}


@dataclasses.dataclass(frozen=True)
class Parameters:
    """Count the parameters that each method trains, and those that it stores per task."""

    models: tuple[str, ...] = T5
    """Folders with a config.json, or published models: T5 1.1, LM-adapted T5, Flan-T5, GPT-2, BART, Llama 3, Qwen3,
    Gemma 3."""
    lengths: tuple[int, ...] = (100,)
    """Lengths of soft prompts. Multitask prompts and prefixes use the last one. The paper has 1, 5, 20, 50, 100 and
    150."""


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table. Returns the exit status: 0, or 1 for an error."""
    args = tyro.cli(Parameters, args=argv, prog="python -m tools.planner.parameters", description=Parameters.__doc__)
    try:
        for line in table(args.models, args.lengths):
            print(line)
    except UserError as error:
        print(f"parameters: {error}", file=sys.stderr)
        return 1
    return 0


def table(models: Sequence[str], lengths: Sequence[int]) -> Iterator[str]:
    """Yield the lines of a Markdown table."""
    if not lengths or min(lengths) < 1:
        raise ConfigError(f"--lengths must be positive, not {' '.join(map(str, lengths)) or 'none'}")
    yield "| model | method | trained | in all | share | stored for a task, MiB | paper: in all | paper: share |"
    yield "|---|---|--:|--:|--:|--:|--:|--:|"
    methods: dict[str, Method | None] = {}
    for what, prompt in METHODS.items():
        if prompt is None or not hasattr(prompt, "length"):
            methods[what] = prompt
            continue
        for length in lengths if what == "soft prompt" else lengths[-1:]:
            methods[f"{what}, {length}"] = dataclasses.replace(prompt, length=length)
    for name in models:
        for number, (what, prompt) in enumerate(methods.items()):
            base, trained, stored = counts(name, prompt)
            total = base if prompt is not None and prompt.replaces_base else base + stored
            printed = ("", "")
            if what == "soft prompt, 100" and name in PAPER:
                printed = f"{PAPER[name][0]:,}", f"{PAPER[name][1]:.5f} %"
            shown = f"{trained:,}", f"{total:,}", f"{100 * trained / total:.5f} %", f"{4 * stored / 2**20:,.2f}"
            yield f"| {' | '.join((name if number == 0 else '', what, *shown, *printed))} |"


def counts(name: str, prompt: Method | None) -> tuple[int, int, int]:
    """Return the parameters of a model, those a method trains, and those it stores per task; None trains none."""
    config = base_config(name)
    base = abstract(family(config).parameters(config), "float32")
    if prompt is None:
        return size(base), 0, 0
    member = Experiment(model=ModelConfig(name), data=DataConfig(task="any"), prompt=prompt)
    trainable = start_of(member, config, base, TASKS).trainable["prompt"]
    stored = jax.eval_shape(prompt.apply, trainable)
    return size(base), size(trainable), size(stored) // (TASKS if prompt.per_task else 1)


def size(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


if __name__ == "__main__":
    sys.exit(main())
