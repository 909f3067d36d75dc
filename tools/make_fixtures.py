"""Write the tiny random T5s of `tests/fixtures` with Hugging Face's outputs. Needs PyTorch and Transformers.

    python tools/make_fixtures.py tests/fixtures

`t5_v10` is like T5 1.0: relu, tied and scaled output. `t5_deep` is like T5 1.1, but breaks every regularity of the
published models: encoder and decoder have different depths, heads times head width is not the model width, and there
are few buckets that widen early. (`t5_v11` also contains PEFT adapters and was not made by this script.) All have the
same layout:

    base/config.json, base/model.safetensors
    reference.npz    inputs/forward/{input_ids, attention_mask, decoder_input_ids}   right-padded
                     inputs/generate/{input_ids, attention_mask}
                     base/logits            [B, T, V]
                     base/greedy            [B, 13]: the start token, 12 new tokens, padding after the end token
                     base/greedy_margin     the smallest difference between the two best logits of a greedy step
"""

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import save_file

NEW_TOKENS = 12
LENGTHS = (40, 17, 5)  # of the inputs; the longest reaches the logarithmic buckets
MIN_MARGIN = 2e-3  # so that greedy tokens do not depend on the order of summation

COMMON = {
    "architectures": ["T5ForConditionalGeneration"],
    "model_type": "t5",
    "is_encoder_decoder": True,
    "dropout_rate": 0.1,
    "layer_norm_epsilon": 1e-6,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
}
# As in the models on the Hub: Transformers 5 would write other ties.
MODELS: dict[str, dict[str, Any]] = {
    "t5_v10": {
        "vocab_size": 128,
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 48,
        "num_heads": 4,
        "num_layers": 2,
        "relative_attention_num_buckets": 32,
    },
    "t5_deep": {
        "vocab_size": 300,
        "d_model": 20,
        "d_kv": 12,
        "d_ff": 32,
        "num_heads": 3,
        "num_layers": 1,
        "num_decoder_layers": 3,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
        "relative_attention_num_buckets": 16,
        "relative_attention_max_distance": 20,
    },
}


def random_model(config: dict[str, Any], seed: int) -> Any:
    """Return a model with random weights, including norms, and only the ties that the config states."""
    torch.manual_seed(seed)
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**config)).eval()
    for name, weight in model.named_parameters():
        if "layer_norm" in name:  # Transformers initializes all to 1, which would hide swapped norms
            torch.nn.init.normal_(weight, 1.0, 0.3)
    model.shared.weight.data *= 0.3  # otherwise a model with tied weights only repeats its input
    if config.get("tie_word_embeddings") is False:  # Transformers 5 ties them anyway
        model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.shared.weight))
    return model


@torch.no_grad()
def reference(model: Any, seed: int) -> dict[str, np.ndarray]:
    """Return random inputs and the model's outputs."""
    rng = np.random.default_rng(seed)
    vocab = model.config.vocab_size
    inputs = np.zeros((len(LENGTHS), max(LENGTHS)), np.int64)
    for row, length in zip(inputs, LENGTHS, strict=True):
        row[:length] = [*rng.integers(3, vocab, length - 1), 1]
    mask = (inputs != 0).astype(np.int64)
    decoder_inputs = np.concatenate([np.zeros((len(inputs), 1), np.int64), rng.integers(3, vocab, (len(inputs), 5))], 1)

    batch = {"input_ids": torch.tensor(inputs), "attention_mask": torch.tensor(mask)}
    logits = model(**batch, decoder_input_ids=torch.tensor(decoder_inputs)).logits
    made = model.generate(
        **batch,
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        use_cache=False,  # Transformers' cache wrongly has as many layers as the encoder
        output_logits=True,
        return_dict_in_generate=True,
    )
    best = torch.stack(made.logits, 1).topk(2).values
    ended = (made.sequences[:, :-1] == 1).cumsum(1) > 0  # [B, 12]
    margins = (best[..., 0] - best[..., 1])[~ended]
    return {
        "inputs/forward/input_ids": inputs,
        "inputs/forward/attention_mask": mask,
        "inputs/forward/decoder_input_ids": decoder_inputs,
        "inputs/generate/input_ids": inputs,
        "inputs/generate/attention_mask": mask,
        "base/logits": logits.numpy(),
        "base/greedy": made.sequences.numpy(),
        "base/greedy_margin": margins.min().numpy(),
    }


def is_good(outputs: dict[str, np.ndarray]) -> bool:
    """Return whether greedy steps have clear margins, and some but not all rows end before the last token."""
    tokens = outputs["base/greedy"][:, 1:]
    ended = (tokens == 1).any(axis=1)
    clear = outputs["base/greedy_margin"] > MIN_MARGIN and not ((tokens == 0) & ~ended[:, None]).any()
    return bool(clear and ended.any() and not ended.all() and tokens.shape[1] == NEW_TOKENS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    for name, options in MODELS.items():
        config = COMMON | options
        for seed in itertools.count():
            model = random_model(config, seed)
            outputs = reference(model, seed)
            if is_good(outputs):
                break
        base = folder / name / "base"
        base.mkdir(parents=True, exist_ok=True)
        tied = {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight"}
        if config.get("tie_word_embeddings") is not False:
            tied.add("lm_head.weight")
        state = {key: value.contiguous() for key, value in model.state_dict().items() if key not in tied}
        save_file(state, base / "model.safetensors", metadata={"format": "pt"})
        (base / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        np.savez_compressed(folder / name / "reference.npz", **outputs)
        print(f"{name}: seed {seed}, smallest margin {outputs['base/greedy_margin']:.4f}")
        print(outputs["base/greedy"])


if __name__ == "__main__":
    main()
