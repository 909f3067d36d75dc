"""Run a prompt tuned with prompt_jax in Hugging Face's PyTorch: a soft prompt of T5, BART or GPT-2, or a GPT-2 prefix.

python use_prompt_in_pytorch.py PROMPT.npz MODEL "a gripping film"
"""

import json
import sys

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, DynamicCache


def inputs(model, file, ids):
    """Return the arguments of `forward` and `generate` for a prompt file and token ids [1, S]."""
    arrays, given = np.load(file, allow_pickle=False), {}
    embedded, before = model.get_input_embeddings()(ids), 0
    if getattr(model.config, "scale_embedding", False):
        embedded = embedded * model.config.d_model**0.5
    if "encoder_tokens" in arrays:
        prompt = torch.from_numpy(arrays["encoder_tokens"]).to(embedded)[None]
        after = json.loads(str(arrays["metadata"]))["placement"] == "after"
        embedded = torch.cat([embedded, prompt] if after else [prompt, embedded], dim=1)
    if "decoder_self/keys" in arrays:
        given["past_key_values"] = cache = DynamicCache()
        for layer, parts in enumerate(zip(arrays["decoder_self/keys"], arrays["decoder_self/values"], strict=True)):
            cache.update(*(torch.from_numpy(part.swapaxes(0, 1))[None].to(embedded) for part in parts), layer)
        before = arrays["decoder_self/keys"].shape[1]
    mask = torch.ones(1, before + embedded.shape[1], dtype=torch.long)
    return {"inputs_embeds": embedded, "attention_mask": mask, **given}


if __name__ == "__main__":
    file, name, text = sys.argv[1:]
    seq2seq = AutoConfig.from_pretrained(name).is_encoder_decoder
    model = (AutoModelForSeq2SeqLM if seq2seq else AutoModelForCausalLM).from_pretrained(name).eval()
    tokenizer = AutoTokenizer.from_pretrained(name)
    with torch.no_grad():
        tokens = model.generate(
            **inputs(model, file, tokenizer(text, return_tensors="pt").input_ids), max_new_tokens=32
        )
    print(tokenizer.decode(tokens[0], skip_special_tokens=True))
