"""How similar virtual tokens, prompts and tasks are."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from prompt_jax.inspection.vectors import slot_vectors, unit_rows
from prompt_jax.models.delta import Delta
from prompt_jax.models.prompt import Prompt


def token_similarity(prompt: Prompt | Delta) -> dict[str, Float[np.ndarray, "_ _"]]:
    """Return the pairwise cosines [P, P] of the used slots of each part of a prompt.

    A slot of a prefix holds the keys and values of all layers. The cosine with a zero vector is 0.
    """
    return {name: _cosines(slot_vectors(part)) for name, part in prompt.parts.items()}


def prompt_similarity(prompts: Sequence[Prompt | Delta]) -> Float[np.ndarray, "E E"]:
    """Return the pairwise cosines of prompts, computed from all their used slots.

    Prompts of equal length are compared slot by slot, although slots have no canonical order: the same vectors in
    another order do not count as similar. If any lengths differ, all prompts are compared by the mean of their slots.
    The cosine with a zero vector is 0.

    Args:
      prompts: prompts with the same parts and widths, not stacked.

    Raises:
      ValueError: a prompt is empty, or parts or widths differ.
    """
    parts = _comparable(prompts)
    if any(len({len(each[name]) for each in parts}) > 1 for name in parts[0]):
        return _cosines(_means(parts))
    return _cosines(np.stack([np.concatenate([array.ravel() for array in each.values()]) for each in parts]))


def task_similarity(
    prompts: Sequence[Prompt | Delta],
) -> tuple[Float[np.ndarray, "E E"], Float[np.ndarray, "E E"]]:
    """Return the similarity of the prompts' tasks by the two measures of SPoT (Vu et al. 2022).

    Neither depends on the order or the number of slots.

    Args:
      prompts: prompts with the same parts and widths, not stacked.

    Returns:
      The cosine of the prompts' mean slots; and the mean cosine over all pairs of a slot of one prompt and a slot of
      the other, averaged over parts. By the second measure a prompt's similarity with itself need not be 1.

    Raises:
      ValueError: a prompt is empty, or parts or widths differ.
    """
    parts = _comparable(prompts)
    # The mean over all pairs is the product of the means.
    pairs = []
    for name in parts[0]:
        directions_ef = np.stack([unit_rows(each[name]).mean(axis=0) for each in parts])
        pairs.append(directions_ef @ directions_ef.T)
    return _cosines(_means(parts)), np.mean(pairs, axis=0)


def nearest_others(similarity_ee: Float[np.ndarray, "E E"]) -> list[list[int]]:
    """Return, for each prompt, the numbers of the other prompts, most similar first."""
    orders = np.argsort(-similarity_ee, axis=1, kind="stable").tolist()
    return [[other for other in order if other != number] for number, order in enumerate(orders)]


def _comparable(prompts: Sequence[Prompt | Delta]) -> list[dict[str, Float[np.ndarray, "_ _"]]]:
    """Return the slots of each part of each prompt, in float64."""
    parts = [{name: slot_vectors(part) for name, part in prompt.parts.items()} for prompt in prompts]
    if not all(parts):
        raise ValueError("the prompt is empty")
    if len({tuple(each) for each in parts}) > 1:
        raise ValueError(f"prompts of different parts: {' and '.join(parts[0])}, and others")
    for name in parts[0]:
        widths = sorted({each[name].shape[1] for each in parts})
        if len(widths) > 1:
            raise ValueError(f"prompts of different widths: {widths}")
    return parts


def _means(parts: Sequence[Mapping[str, Float[np.ndarray, "_ _"]]]) -> Float[np.ndarray, "E F"]:
    return np.stack([np.concatenate([array.mean(axis=0) for array in each.values()]) for each in parts])


def _cosines(rows_nf: Float[np.ndarray, "N F"]) -> Float[np.ndarray, "N N"]:
    unit_nf = unit_rows(rows_nf)
    return np.clip(unit_nf @ unit_nf.T, -1, 1)
