"""Write tiny random decoder-only models to `tests/fixtures`, with Hugging Face's outputs.

    python tools/make_causal_fixtures.py tests/fixtures

It needs PyTorch and Transformers. There is one model for each model type of `prompt_jax/models/llama.py`. Weights are
bfloat16; outputs are computed in float32.

    base/config.json, base/model.safetensors
    reference.npz    inputs/{input_ids, attention_mask}   left-padded
                     logits                               [B, T, V], zero at padding
                     greedy, beams                        [B, 10] new tokens, with the end token and padding
"""

import argparse
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

NEW_TOKENS, BEAMS = 10, 3
LENGTHS = (17, 9, 2)  # of the inputs
MIN_MARGIN = 2e-3  # so that tokens do not depend on the order of summation

COMMON = {
    "vocab_size": 48,
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}
_LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
# Together, these use every switch. The keys `rope_theta` and `rope_scaling` are those of older checkpoints.
MODELS: dict[str, dict[str, Any]] = {
    "llama": {
        "attention_bias": True,
        "mlp_bias": True,
        "rope_theta": 100.0,
        "rope_scaling": _LLAMA3 | {"original_max_position_embeddings": 16},
    },
    "mistral": {"head_dim": 6, "sliding_window": 5},
    "qwen2": {
        "use_sliding_window": True,
        "sliding_window": 6,
        "max_window_layers": 1,
        "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    },
    "qwen3": {"head_dim": 6, "attention_bias": True, "rope_scaling": {"type": "linear", "factor": 4.0}},
    "smollm3": {"num_hidden_layers": 4, "no_rope_layer_interval": 2, "use_sliding_window": True, "sliding_window": 6},
    "phi3": {
        "hidden_size": 32,
        "original_max_position_embeddings": 40,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 100.0,
            "partial_rotary_factor": 0.75,
            "original_max_position_embeddings": 40,
            "short_factor": [1.0, 1.2, 1.5],
            "long_factor": [2.0, 3.0, 4.0],
        },
    },
    "gemma": {"head_dim": 6, "hidden_act": "gelu", "num_key_value_heads": 1},
    "gemma2": {
        "head_dim": 6,
        "sliding_window": 5,
        "query_pre_attn_scalar": 9,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
    },
    "gemma3_text": {
        "head_dim": 6,
        "sliding_window": 5,
        "sliding_window_pattern": 2,
        "query_pre_attn_scalar": 9,
        "rope_theta": 1000.0,
        "rope_local_base_freq": 100.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    },
}


def random_model(model_type: str, config: dict[str, Any], seed: int) -> Any:
    """Return a model with random weights, rounded to bfloat16, including norms and biases."""
    torch.manual_seed(seed)
    settings = transformers.AutoConfig.for_model(model_type, **config)
    model = transformers.AutoModelForCausalLM.from_config(settings, attn_implementation="eager").eval()
    for name, weight in model.named_parameters():
        mean = 1.0 if "norm" in name and "gemma" not in model_type else 0.0
        torch.nn.init.normal_(weight, mean, 0.3 if weight.ndim == 1 else 0.4)
        weight.data = weight.data.bfloat16().float()
    return model


def left_padded(vocab_size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return random ids [B, T], and the mask of real ones."""
    ids, mask = np.zeros((2, len(LENGTHS), max(LENGTHS)), np.int64)
    for row, length in enumerate(LENGTHS):
        ids[row, -length:] = np.random.default_rng([seed, row]).integers(3, vocab_size, length)
        mask[row, -length:] = 1
    return ids, mask


@torch.no_grad()
def logits(model: Any, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the logits, zero at padding. Padding takes no position."""
    positions = np.maximum(mask.cumsum(axis=1) - 1, 0)
    values = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    out = model(**{name: torch.tensor(value) for name, value in values.items()}).logits
    return out.float().numpy() * mask[..., None].astype(np.float32)


@torch.no_grad()
def generated(model: Any, ids: np.ndarray, mask: np.ndarray, beams: int, new_tokens: int = NEW_TOKENS) -> np.ndarray:
    """Return the new tokens, padded after the end token."""
    values = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
    made = model.generate(**values, max_new_tokens=new_tokens, do_sample=False, num_beams=beams)
    tokens = np.zeros((len(ids), new_tokens), np.int64)
    made = made[:, ids.shape[1] :].numpy()
    tokens[:, : made.shape[1]] = made
    ended = np.cumsum(tokens == 1, axis=1) - (tokens == 1) > 0
    return np.where(ended, 0, tokens)  # Transformers may repeat the end token


def margin(model: Any, ids: np.ndarray, mask: np.ndarray, tokens: np.ndarray) -> float:
    """Return the smallest difference between the two best logits of the greedy steps."""
    given, real = np.concatenate([ids, tokens], axis=1), np.concatenate([mask, tokens != 0], axis=1)
    best = np.sort(logits(model, given, real)[:, ids.shape[1] - 1 : -1], axis=-1)
    return float((best[..., -1] - best[..., -2])[tokens != 0].min())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", default=list(MODELS))
    arguments = parser.parse_args()
    for name in arguments.names:
        config = COMMON | MODELS[name]
        for seed in itertools.count():
            model = random_model(name, config, seed)
            ids, mask = left_padded(config["vocab_size"], seed)
            greedy, beams = (generated(model, ids, mask, count) for count in (1, BEAMS))
            ended = (greedy == 1).any(axis=1)
            if ended.any() and not ended.all() and margin(model, ids, mask, greedy) > MIN_MARGIN:
                break
        base = arguments.folder / name / "base"
        shutil.rmtree(base.parent, ignore_errors=True)
        outputs = {"logits": logits(model, ids, mask), "greedy": greedy, "beams": beams}
        inputs = {"inputs/input_ids": ids, "inputs/attention_mask": mask}
        model.bfloat16().save_pretrained(base)
        (base / "config.json").write_text(json.dumps({"model_type": name} | config, indent=2, sort_keys=True) + "\n")
        np.savez_compressed(base.parent / "reference.npz", **inputs, **outputs)
        print(f"{name}: seed {seed}\n{greedy}\n{beams}")


if __name__ == "__main__":
    main()
