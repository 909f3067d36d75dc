"""Run a soft prompt tuned with prompt_jax, and its T5 1.1 base, in NumPy only:
python use_prompt_in_numpy.py PROMPT.npz T5_FOLDER "a gripping film"
"""

import sys

import numpy as np
from safetensors.numpy import load_file
from sentencepiece import SentencePieceProcessor


def bias_of_distance(table, length, causal):
    """Return the relative position bias [heads, queries, keys]."""
    distance = np.arange(length) - np.arange(length)[:, None]
    buckets, far = len(table) // (1 if causal else 2), np.maximum(-distance, 0) if causal else np.abs(distance)
    wide = np.log(np.maximum(far, 1) / (buckets // 2)) / np.log(128 / (buckets // 2)) * (buckets - buckets // 2)
    bucket = np.where(far < buckets // 2, far, np.minimum(buckets // 2 + wide.astype(int), buckets - 1))
    return table[bucket + (distance > 0) * (not causal) * buckets].transpose(2, 0, 1) - 1e9 * (causal & (distance > 0))


def run(side, x, weights, encoded=None):
    """Run the encoder, or the decoder if `encoded` is given; x is [tokens, width]."""
    table = weights[f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]

    def norm(x, name):
        return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-6) * weights[f"{side}.{name}.weight"]

    def attend(name, x, source, bias=0.0):
        parts = (each @ weights[f"{name}.{p}.weight"].T for p, each in (("q", x), ("k", source), ("v", source)))
        q, k, v = (part.reshape(len(part), table.shape[1], -1).swapaxes(0, 1) for part in parts)
        scores = np.exp((scores := q @ k.swapaxes(1, 2) + bias) - scores.max(-1, keepdims=True))
        mixed = (scores / scores.sum(-1, keepdims=True) @ v).swapaxes(0, 1).reshape(len(x), -1)
        return mixed @ weights[f"{name}.o.weight"].T

    bias, number, last = bias_of_distance(table, len(x), encoded is not None), 0, 1 if encoded is None else 2
    while f"{side}.block.{number}.layer.0.SelfAttention.q.weight" in weights:
        at = f"block.{number}.layer"
        x = x + attend(f"{side}.{at}.0.SelfAttention", *[norm(x, f"{at}.0.layer_norm")] * 2, bias)
        if encoded is not None:
            x = x + attend(f"{side}.{at}.1.EncDecAttention", norm(x, f"{at}.1.layer_norm"), encoded)
        normal, mlp = norm(x, f"{at}.{last}.layer_norm"), f"{side}.{at}.{last}.DenseReluDense"
        gate, up = (normal @ weights[f"{mlp}.wi_{n}.weight"].T for n in (0, 1))
        gate = 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
        x, number = x + gate * up @ weights[f"{mlp}.wo.weight"].T, number + 1
    return norm(x, "final_layer_norm")


def logits(weights, prompt, ids, answer):
    """Return the next-token logits [tokens, vocabulary] after the start token 0 and each token of the answer."""
    encoded = run("encoder", np.concatenate([prompt, weights["shared.weight"][ids]]), weights)
    return run("decoder", weights["shared.weight"][[0, *answer]], weights, encoded) @ weights["lm_head.weight"].T


if __name__ == "__main__":
    prompt, folder, answer = np.load(sys.argv[1], allow_pickle=False)["encoder_tokens"], sys.argv[2], []
    weights, pieces = load_file(f"{folder}/model.safetensors"), SentencePieceProcessor(f"{folder}/spiece.model")
    while 1 not in answer and len(answer) < 32:
        answer.append(int(logits(weights, prompt, [*pieces.encode(sys.argv[3]), 1], answer)[-1].argmax()))
    print(pieces.decode(answer))
