"""How similar virtual tokens, prompts and tasks are."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from prompt_jax.inspection.vectors import slot_vectors, unit_rows
from prompt_jax.models.prompt import Prompt


def token_similarity(prompt: Prompt) -> dict[str, Float[np.ndarray, "_ _"]]:
    """Cosines of the used slots of each part of a prompt, each with each.

    A slot of a prefix has the keys and values of all layers. A vector of zeros has the cosine 0 with every other.
    """
    return {name: _cosines(slot_vectors(part)) for name, part in prompt.parts.items()}


def prompt_similarity(prompts: Sequence[Prompt]) -> Float[np.ndarray, "E E"]:
    """How alike the prompts of an ensemble are, each with each: cosines, of all that is in their used slots.

    Prompts of one length are compared as whole vectors, slot by slot, although the order of slots is arbitrary: two
    prompts of the same vectors in another order are not found to be alike. If any lengths differ, all prompts are
    compared by the mean of their slots. A vector of zeros has the cosine 0 with every other.

    Args:
      prompts: of the same parts and sizes, none of them stacked.

    Raises:
      ValueError: an empty prompt, or sizes that differ.
    """
    parts = _comparable(prompts)
    if any(len({len(own[name]) for own in parts}) > 1 for name in parts[0]):
        return _cosines(_means(parts))
    return _cosines(np.stack([np.concatenate([array.ravel() for array in own.values()]) for own in parts]))


def task_similarity(
    prompts: Sequence[Prompt],
) -> tuple[Float[np.ndarray, "E E"], Float[np.ndarray, "E E"]]:
    """How alike the tasks of prompts are, by the two measures of SPoT (Vu et al. 2022).

    Neither minds the order of slots, nor their number.

    Args:
      prompts: of the same parts and sizes, none of them stacked.

    Returns:
      Cosines of the prompts' mean slots; and the mean cosine over all pairs of a slot of the one and a slot of the
      other, which a prompt need not have as 1 with itself. Of several parts it is the mean over them.

    Raises:
      ValueError: an empty prompt, or sizes that differ.
    """
    parts = _comparable(prompts)
    # The mean over all pairs is the product of the means.
    pairs = []
    for name in parts[0]:
        directions_ef = np.stack([unit_rows(own[name]).mean(axis=0) for own in parts])
        pairs.append(directions_ef @ directions_ef.T)
    return _cosines(_means(parts)), np.mean(pairs, axis=0)


def nearest_others(similarity_ee: Float[np.ndarray, "E E"]) -> list[list[int]]:
    """For each prompt the numbers of the others, the most similar first."""
    orders = np.argsort(-similarity_ee, axis=1, kind="stable").tolist()
    return [[other for other in order if other != own] for own, order in enumerate(orders)]


def _comparable(prompts: Sequence[Prompt]) -> list[dict[str, Float[np.ndarray, "_ _"]]]:
    """The slots of each part of each prompt, in float64."""
    parts = [{name: slot_vectors(part) for name, part in prompt.parts.items()} for prompt in prompts]
    if not all(parts):
        raise ValueError("the prompt is empty")
    if len({tuple(own) for own in parts}) > 1:
        raise ValueError(f"prompts of different parts: {' and '.join(parts[0])}, and others")
    for name in parts[0]:
        widths = sorted({own[name].shape[1] for own in parts})
        if len(widths) > 1:
            raise ValueError(f"prompts of different widths: {widths}")
    return parts


def _means(parts: Sequence[Mapping[str, Float[np.ndarray, "_ _"]]]) -> Float[np.ndarray, "E F"]:
    return np.stack([np.concatenate([array.mean(axis=0) for array in own.values()]) for own in parts])


def _cosines(rows_nf: Float[np.ndarray, "N F"]) -> Float[np.ndarray, "N N"]:
    unit_nf = unit_rows(rows_nf)
    return np.clip(unit_nf @ unit_nf.T, -1, 1)
