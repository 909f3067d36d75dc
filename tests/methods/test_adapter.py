"""Adapters: against PyTorch, and their share of the parameters."""

import functools

import jax
import numpy as np
import pytest

import prompt_jax
from adapters import assert_close
from deltas import FAMILIES, batch_of, logits, trained
from prompt_jax.errors import ConfigError
from prompt_jax.methods.adapter import AdapterTuning
from prompt_jax.models.delta import flat


@pytest.mark.interop
@pytest.mark.parametrize("name", ("houlsby", "lin"))
@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_in_pytorch(fixtures, family, name):
    """Compare with hooks that follow the papers, on Hugging Face's modules in double precision."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    folder = fixtures / family / "base"
    model = prompt_jax.load_model(str(folder))
    kind = transformers.AutoModelForCausalLM if family == "gpt2" else transformers.AutoModelForSeq2SeqLM
    theirs = kind.from_pretrained(folder, attn_implementation="eager").eval().double()
    if family == "t5_v11":
        theirs.config.scale_decoder_outputs = False
    prompt = trained(model, name)
    leaves = {path: torch.tensor(np.asarray(leaf, np.float64)) for path, leaf in flat(prompt.leaves).items()}

    def hook(path: str, layer: int, module, arguments, output):
        own = {leaf: leaves[f"{path}/adapter/{leaf}"][layer] for leaf in ("down", "down_bias", "up", "up_bias")}
        x = output[0] if isinstance(output, tuple) else output
        normal = x
        if name == "lin":
            scale, bias = (leaves[f"{path}/adapter/norm/{leaf}"][layer] for leaf in ("scale", "bias"))
            normal = torch.nn.functional.layer_norm(x, x.shape[-1:], scale, bias)
        hidden = normal @ own["down"] + own["down_bias"]
        hidden = torch.relu(hidden) if name == "lin" else torch.nn.functional.gelu(hidden, approximate="tanh")
        x = x + hidden @ own["up"] + own["up_bias"]
        return (x, *output[1:]) if isinstance(output, tuple) else x

    def modules(side: str, number: int):
        if family == "t5_v11":
            block = getattr(theirs, side).block[number]
            parts = {"self": block.layer[0].SelfAttention, "mlp": block.layer[-1].DenseReluDense}
            if side == "decoder":
                parts["cross"] = block.layer[1].EncDecAttention
        elif family == "gpt2":
            block = theirs.transformer.h[number]
            parts = {"self": block.attn, "mlp": block.mlp}
        else:
            block = getattr(theirs.model, side).layers[number]
            parts = {"self": block.self_attn, "mlp": block.fc2}
            if side == "decoder":
                parts["cross"] = block.encoder_attn
        return block, parts

    for side in ("",) if family == "gpt2" else ("encoder", "decoder"):
        path = f"{side}/layers/0" if side else "layers/0"
        count = len(next(leaf for place, leaf in leaves.items() if place.startswith(path)))
        for number in range(count):
            block, parts = modules(side, number)
            named = {path: block} if name == "lin" else {f"{path}/{part}": module for part, module in parts.items()}
            for place, module in named.items():
                module.register_forward_hook(functools.partial(hook, place, number))
    batch = batch_of(model)
    inputs, target = (torch.tensor(batch[key]).long() for key in ("inputs", "decoder_inputs"))
    with torch.no_grad():
        if family == "gpt2":
            expected = theirs(input_ids=torch.cat([inputs, target], dim=1)).logits[:, inputs.shape[1] :]
        else:
            expected = theirs(input_ids=inputs, decoder_input_ids=target).logits
    assert_close(logits(model, prompt), expected.numpy())


@pytest.mark.parametrize("kind", ("houlsby", "lin"))
def test_adapters_have_their_share_of_the_parameters(model, kind):
    base = sum(leaf.size for leaf in jax.tree.leaves(model.params))
    for share in (0.1, 0.03):
        config = AdapterTuning(kind=kind, share=share)
        made = config.initialize(jax.random.key(0), model)
        count = sum(leaf.size for leaf in jax.tree.leaves(made))
        one_more = sum(leaf.size for path, leaf in flat(made).items() if path.endswith("adapter/up"))
        width = next(leaf.shape[1] for path, leaf in flat(made).items() if path.endswith("adapter/up"))
        assert abs(count - share * base) <= 2 * one_more / width
    config = AdapterTuning(kind=kind, share=1e-6)
    with pytest.raises(ConfigError, match="adapters of width 1 have a share of"):
        config.initialize(jax.random.key(0), model)
