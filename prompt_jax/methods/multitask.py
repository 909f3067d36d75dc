"""Multitask prompts: each of N tasks has a prompt, made from shared parameters and task-specific parameters.

This follows the extensions in the code of Lester et al. 2021. There, all parameters start as random numbers from 0 to
0.5. Such values are negligible compared with T5's embeddings (about 10), but dominate GPT-2's (about 0.1), and as a
projection they destroy the shared prompt. Here each task starts from the shared prompt itself; `concatenate` adds
further virtual tokens after it.
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from prompt_jax.config.constraints import POSITIVE
from prompt_jax.methods.method import Trainable, check_option
from prompt_jax.methods.soft_prompt import PromptTuning

if TYPE_CHECKING:
    from jaxtyping import PRNGKeyArray

    from prompt_jax.checkpoints.load import Model
    from prompt_jax.models.prompt import Prompt


@dataclasses.dataclass(frozen=True)
class MultitaskPromptTuning(PromptTuning):
    """Multitask prompt tuning: train one prompt per task of a mixture, with shared parameters."""

    name: ClassVar[str] = "multitask"
    per_task: ClassVar[bool] = True

    task_part: Literal["add", "concatenate", "project"] = "add"
    """Task-specific part: vectors added to the shared prompt, virtual tokens after it, or an affine map of it. The
    stored file contains the resulting prompts."""
    task_length: Annotated[int, POSITIVE] | None = None
    """Number of virtual tokens of each task for `concatenate`, in addition to the shared ones. None means `length`."""

    @property
    def stored_length(self) -> int:
        return self.length + ((self.task_length or self.length) if self.task_part == "concatenate" else 0)

    def check(self) -> None:
        super().check()
        concatenates = self.task_part == "concatenate"
        check_option(self.task_length, concatenates, "task_length", "prompt.task_part 'concatenate'")

    def initialize(
        self, key: "PRNGKeyArray", model: "Model", labels: Sequence[str] = (), *, tasks: int = 1
    ) -> Trainable:
        """Return `shared`, a soft prompt's parameters, and `own`, the task-specific parameters of N tasks:

        - `add`: [N, P, D], zeros.
        - `concatenate`: [N, Q, D]. Random and zero initialization are the same as for the shared tokens. Otherwise the
          tokens are sampled from the vocabulary.
        - `project`: `kernel` [N, D, D] and `bias` [N, D], zeros. The map adds their result to the shared prompt.
        """
        import jax
        import jax.numpy as jnp

        shared_key, own_key = jax.random.split(key)
        shared = super().initialize(shared_key, model, labels)
        width = model.config.d_model
        task_params: Any
        match self.task_part:
            case "add":
                task_params = jnp.zeros((tasks, self.length, width))
            case "concatenate":
                init = "vocab" if self.init in ("labels", "text", "file") else self.init
                length = tasks * (self.task_length or self.length)
                part = PromptTuning(length=length, init=init, init_range=self.init_range, init_vocab=self.init_vocab)
                task_params = part.initialize(own_key, model)["encoder_tokens"].reshape(tasks, -1, width)
            case "project":
                task_params = {"kernel": jnp.zeros((tasks, width, width)), "bias": jnp.zeros((tasks, width))}
        return {"shared": shared, "own": task_params}

    def apply(self, trainable: Trainable, key: "PRNGKeyArray | None" = None) -> "Prompt":
        """Return the stacked Prompt of the tasks, in the mixture's order."""
        import jax.numpy as jnp

        from prompt_jax.models.prompt import Prompt, VirtualTokens

        tokens, task_params = super().apply(trainable["shared"], key).encoder_tokens, trainable["own"]
        assert tokens is not None
        shared = tokens.embeddings[None]  # [1, P, D]
        match self.task_part:
            case "add":
                embeddings = shared + task_params
            case "concatenate":
                repeated = jnp.broadcast_to(shared, (len(task_params), *shared.shape[1:]))
                embeddings = jnp.concatenate([repeated, task_params], axis=1)
            case "project":
                # Divided by D, so that all parameters can share a learning rate: an update changes D numbers in each
                # column of a kernel.
                mapped = jnp.einsum("pd,nde->npe", tokens.embeddings, task_params["kernel"]) / shared.shape[-1]
                embeddings = shared + mapped + task_params["bias"][:, None]
        return Prompt(VirtualTokens(embeddings, placement=self.placement))
