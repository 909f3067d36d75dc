"""All results of an inspection of one prompt, for the terminal and the HTML page."""

import dataclasses

import numpy as np
from jaxtyping import Float

from prompt_jax.checkpoints.load import Model
from prompt_jax.inspection.ablation import Ablation
from prompt_jax.inspection.neighbors import Inspection, LabelShare, Measure, inspect, label_pieces, label_share
from prompt_jax.inspection.similarity import token_similarity
from prompt_jax.models.delta import Delta
from prompt_jax.models.prompt import Prompt, used_arrays
from prompt_jax.prompt_files.io import PromptMetadata


@dataclasses.dataclass(frozen=True)
class Findings:
    """The results for one prompt.

    Attributes:
      name: the name of the file or the member.
      prompt: the prompt.
      metadata: the metadata of the prompt in the file.
      inspection: norms and neighbors; None without the base or without virtual tokens.
      labels: by measure, the task's labels among the neighbors; empty without labels or a tokenizer.
      similarity: cosines between the slots of each part.
      ablation: None without examples.
    """

    name: str
    prompt: Prompt | Delta
    metadata: PromptMetadata
    inspection: Inspection | None
    labels: dict[Measure, LabelShare]
    similarity: dict[str, Float[np.ndarray, "_ _"]]
    ablation: Ablation | None

    @property
    def slot_norms(self) -> dict[str, dict[str, Float[np.ndarray, " L"]]]:
        """The mean norm of a head's keys and of its values, in each layer of each prefix."""
        prefixes = {name: part for name, part in self.prompt.parts.items() if name != "encoder_tokens"}
        return {
            site: {
                name: np.linalg.norm(array.astype(np.float64), axis=-1).mean(axis=(1, 2))
                for name, array in used_arrays(part).items()
            }
            for site, part in prefixes.items()
        }


def collect_findings(
    name: str,
    prompt: Prompt | Delta,
    metadata: PromptMetadata,
    model: Model | None,
    k: int = 5,
    ablation: Ablation | None = None,
) -> Findings:
    """Inspect a prompt.

    Args:
      name: the name of the file or the member.
      prompt: the prompt.
      metadata: the metadata of the prompt in the file.
      model: the base. None skips everything that needs the base's embeddings.
      k: the number of neighbors per token and measure.
      ablation: the result of `leave_one_out`, if any.

    Raises:
      ValueError: the virtual tokens do not have the base's width.
    """
    inspection: Inspection | None = None
    labels: dict[Measure, LabelShare] = {}
    if model is not None and "encoder_tokens" in prompt.parts:
        inspection = inspect(prompt, model, k)
        if metadata.format is not None and metadata.format.labels and model.tokenizer is not None:
            pieces = label_pieces(metadata.format.labels, model.tokenizer)
            labels = {
                "cosine": label_share([token.by_cosine for token in inspection.tokens], pieces),
                "distance": label_share([token.by_distance for token in inspection.tokens], pieces),
            }
    return Findings(name, prompt, metadata, inspection, labels, token_similarity(prompt), ablation)
