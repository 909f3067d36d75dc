"""Prompts of several lengths, and a padded batch whose rows use them."""

import numpy as np

from prompt_jax import Prompt, VirtualTokens

LENGTHS = (3, 1, 6)
IDS = np.array([2, -1, 0, 0, 1, 2], np.int32)  # different lengths, a row without a prompt, rows that share a prompt
TOKENS = (5, 8, 5, 5, 8, 5)  # in the text of each row


def random_prompts(model, placement="before", lengths=LENGTHS) -> list[Prompt]:
    rng = np.random.default_rng(0)
    shapes = [(length, model.config.d_model) for length in lengths]
    return [Prompt(VirtualTokens(rng.normal(size=s).astype(np.float32), placement=placement)) for s in shapes]


def mixed_batch(model, padding: str) -> dict[str, np.ndarray]:
    """Return six rows of different lengths in eight slots; padding holds arbitrary tokens."""
    rng = np.random.default_rng(1)
    rows, slots = len(TOKENS), 8
    mask = np.zeros((rows, slots), bool)
    for row, count in enumerate(TOKENS):
        places = {"right": range(count), "left": range(slots - count, slots)}.get(padding)
        mask[row, sorted(rng.permutation(slots)[:count]) if places is None else list(places)] = True
    return {
        "inputs": rng.integers(3, model.config.vocab_size, (rows, slots)).astype(np.int32),
        "inputs_mask": mask,
        "decoder_inputs": rng.integers(3, model.config.vocab_size, (rows, 4)).astype(np.int32),
        "prompt_ids": IDS,
    }


def alone(batch, row: int) -> dict[str, np.ndarray]:
    """Return the row without padding and prompt id."""
    own = {name: value[row : row + 1] for name, value in batch.items() if name != "prompt_ids"}
    real = own["inputs_mask"][0]
    return {**own, "inputs": own["inputs"][:, real], "inputs_mask": own["inputs_mask"][:, real]}


def own_prompt(prompts, row: int) -> Prompt | None:
    return prompts[IDS[row]] if IDS[row] >= 0 else None
