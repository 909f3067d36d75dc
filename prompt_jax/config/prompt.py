"""Options of what is trained."""

import dataclasses
from pathlib import Path
from typing import Literal

Initialization = Literal["uniform", "normal", "zero", "vocab", "labels", "text", "file"]


@dataclasses.dataclass(frozen=True)
class PromptConfig:
    """What is trained: a soft prompt, a prefix, or what these are compared with."""

    method: Literal["soft_prompt", "prefix", "adapter", "last_layers", "full"] = "soft_prompt"
    """Virtual tokens in the input (Lester et al. 2021), or keys and values in every layer (Li and Liang 2021). To
    compare with: adapters, the last layers of the decoder, or the full model; length, placement and init are not for
    these."""
    length: int = 100
    """Number of virtual tokens, or of keys and values in each layer."""
    sites: tuple[Literal["encoder_self", "decoder_self", "decoder_cross"], ...] = ()
    """Of a prefix: the attentions that it is for; left out, all that the model has."""
    placement: Literal["before", "after"] = "before"
    """Before the input (the papers') or after it, between source and target: the infix of a causal model."""
    init: Initialization = "labels"
    """First values: uniform or normal random; zero; embeddings of a sample of the common vocabulary, without
    replacement; the task's class labels; a text, a piece a token, of which a prefix has the activations; or a prompt
    file, such as another task's (SPoT, Vu et al. 2022). With an MLP they are those of its table. A prefix takes neither
    vocab nor labels."""
    init_range: tuple[float, float] = (-0.5, 0.5)
    """Of `uniform`. The prompt paper's; its code draws from 0 to 0.5, the prefix paper from 0 to 1."""
    init_vocab: int = 5000
    """How many of the most common pieces `vocab` draws from."""
    init_labels: tuple[str, ...] = ()
    """Words for `labels` to use instead of the task's labels: one virtual token per word."""
    init_text: str = ""
    """Text for `text`, tokenized with a leading space as in the middle of a sentence. A prefix must have one slot per
    token."""
    init_file: Path | None = None
    """Of `file`: a prompt of this length and base, `.npz`, T5X's `.npy` or a folder with PEFT's adapter."""
    init_member: int | None = None
    """Of `file`: the number of the prompt in it, if it is an ensemble's."""
    init_rest: Literal["vocab", "uniform"] = "vocab"
    """How `labels` and `text` fill the virtual tokens that they do not reach."""
    tie_layers: bool = False
    """Whether layers i and i + L / 2 of a decoder of L have one prefix, as PEFT gives them one where L is even: only
    such prefixes of an encoder-decoder can be exported to it. Half as much is trained; the file has all layers. Needs
    `sites` decoder_self."""
    mlp_width: int | None = None
    """Width of the MLP that makes the prompt from a table while it is trained (the prefix paper: 512 for tables, 800
    for summaries), and that is not in its file. None trains the prompt itself."""
    per_task: Literal["add", "concatenate", "project"] | None = None
    """A prompt for each task of a mixture, made of one that all tasks share and a part of the task's own: vectors that
    are added to the shared ones; virtual tokens that come after them; or an affine map of each. The file has the
    prompts that are made. Of soft_prompt."""
    task_length: int | None = None
    """Of `concatenate`: virtual tokens of each task, beside the `length` that tasks share; left out, as many."""
    mlp_layers: int = 1
    """Hidden layers of the MLP."""
    dropout: float = 0.0
    """Dropout of a prefix's keys and values while training."""
    shift_positions: bool = True
    """Whether learned positions of the text are counted on from a prefix before it. For BART: PEFT shifts them, the
    prefix paper's code does not."""
    layers: int = 2
    """Of `last_layers`: how many blocks. The prefix paper's code trains the final norm and, beside two blocks, the tied
    embedding as well."""
    adapter: Literal["houlsby", "lin"] = "houlsby"
    """Adapters after each sublayer (Houlsby et al. 2019), or one with a norm after each layer (Lin et al. 2020)."""
    adapter_width: int = 64
    """Of an adapter's bottleneck."""
    adapter_share: float | None = None
    """In place of the width: the share of the base's parameters that adapters have together."""
