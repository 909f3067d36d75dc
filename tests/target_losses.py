"""The loss of targets, by `forward` alone."""

from typing import Any

import numpy as np

import prompt_jax
from prompt_jax import Prompt


def loss(model: Any, prompt: Prompt | None, examples: Any) -> float:
    """Return the loss in nats per target token, from the logits of all examples in one batch."""
    rows, lengths = len(examples.inputs), (max(map(len, examples.inputs)), max(map(len, examples.targets)))
    inputs, targets = (np.zeros((rows, length), np.int32) for length in lengths)
    mask, targets_mask = inputs > 0, targets > 0
    for row, (ids, target) in enumerate(zip(examples.inputs, examples.targets, strict=True)):
        inputs[row, : len(ids)], mask[row, : len(ids)] = ids, True
        targets[row, : len(target)], targets_mask[row, : len(target)] = target, True
    start = np.full((rows, 1), model.config.start_id, np.int32)
    batch = {"inputs": inputs, "inputs_mask": mask, "decoder_inputs": np.concatenate([start, targets[:, :-1]], axis=1)}
    logits = np.asarray(prompt_jax.forward(model.params, model.config, batch, prompt), np.float64)
    chosen = np.take_along_axis(logits, targets[..., None], axis=2)[..., 0] - np.log(np.exp(logits).sum(axis=2))
    return -chosen[targets_mask].mean()
