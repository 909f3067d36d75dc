"""Exported adapters in PEFT."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import prompt_jax
from adapters import assert_close, random_text, random_tokens, whole
from prompt_jax import Prompt, PromptMetadata, save_ensemble, save_prompt
from prompt_jax.checkpoints.load import Model
from prompt_jax.methods.prefix import PrefixTuning
from prompt_jax.models import family
from prompt_jax.models.prompt import Prefix
from prompt_jax.prompt_files.io import read_prompts
from prompt_jax.prompt_files.peft import CARD, VERIFIED
from prompt_jax.prompt_files.peft_tensors import CONFIG, TENSORS

pytestmark = pytest.mark.interop

NEW = 6
# Random models in Hugging Face's layout beside the stored ones: a decoder of an odd depth and another than the
# encoder's, heads that do not add up to the model's width (as of google/t5-v1_1-small), three and four layers.
# Transformers 5.23 cannot generate with a T5 whose decoder is the deeper one.
DEEPER = {
    "t5_odd": ("T5", {"num_layers": 4, "num_decoder_layers": 3, "d_kv": 8}),
    "t5_even": ("T5", {"num_layers": 5, "num_decoder_layers": 4, "d_kv": 24}),
    "gpt2_odd": ("GPT2", {"n_layer": 3}),
    "bart_odd": ("Bart", {"encoder_layers": 2, "decoder_layers": 3, "decoder_attention_heads": 2}),
}


def random_base(kind: str, sizes: dict, folder: Path) -> Path:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    common = {
        "T5": {"vocab_size": 256, "d_model": 64, "d_ff": 128, "num_heads": 4, "decoder_start_token_id": 0},
        "GPT2": {"vocab_size": 256, "n_embd": 64, "n_head": 4, "n_positions": 64, "bos_token_id": 1, "eos_token_id": 1},
        "Bart": {"vocab_size": 256, "d_model": 64, "max_position_embeddings": 64}
        | {"encoder_attention_heads": 4, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "init_std": 0.3},
    }[kind]
    head = {"T5": "ForConditionalGeneration", "GPT2": "LMHeadModel", "Bart": "ForConditionalGeneration"}[kind]
    config = getattr(transformers, f"{kind}Config")(**common, **sizes)
    getattr(transformers, f"{kind}{head}")(config).save_pretrained(folder)
    return folder


GROUPED = ("llama", "qwen3", "gemma3_text")  # grouped queries; also norms of keys, and sliding windows


@pytest.fixture(scope="module", params=("t5_v11", "gpt2", "bart", *GROUPED, *DEEPER))
def model(request, fixtures, tmp_path_factory) -> Model:
    if request.param not in DEEPER:
        return prompt_jax.load_model(str(fixtures / request.param / "base"))
    return prompt_jax.load_model(str(random_base(*DEEPER[request.param], tmp_path_factory.mktemp("base") / "m")))


def is_causal(model: Model) -> bool:
    return family(model.config).causal


def loaded(model: Model, folder: Path):
    """Return the adapter in PEFT."""
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    kind = transformers.AutoModelForCausalLM if is_causal(model) else transformers.AutoModelForSeq2SeqLM
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # Transformers', of what PEFT calls
        return peft.PeftModel.from_pretrained(
            kind.from_pretrained(model.name, dtype="float32").eval(), str(folder)
        ).eval()


def peft_prefix(model: Model, length: int) -> Prompt:
    """Return a random prefix, as trained with `prompt.tie_layers` where PEFT ties layers."""
    import jax

    layers = prompt_jax.models.family(model.config).sites(model.config)["decoder_self"][0]
    tie = not is_causal(model) and layers % 2 == 0
    options = PrefixTuning(length=length, init="normal", sites=("decoder_self",), tie_layers=tie)
    return jax.device_get(options.apply(options.initialize(jax.random.key(1), model)))


def assert_same_answers(model: Model, theirs, prompt: Prompt) -> None:
    """Compare logits to 1e-5, and greedy tokens. Inputs are right-padded except for GPT-2's generation."""
    import torch

    inputs, targets = random_text(model, 4, 9), random_text(model, 4, 5, seed=1)
    mask = np.arange(9)[None] < np.array([9, 5, 7, 3])[:, None]
    if is_causal(model):
        batch = whole(inputs) | {"inputs_mask": mask}
        given = {"input_ids": inputs, "attention_mask": mask}
    else:
        batch = whole(inputs) | {"inputs_mask": mask, "decoder_inputs": targets}
        given = {"input_ids": inputs, "attention_mask": mask, "decoder_input_ids": targets}
    ours = np.asarray(prompt_jax.forward(model.params, model.config, batch, prompt))
    with torch.no_grad():
        logits = theirs(**{name: torch.tensor(value).long() for name, value in given.items()}).logits.numpy()
    real = mask if is_causal(model) else np.ones(targets.shape, bool)
    assert_close(ours[real], logits[:, -ours.shape[1] :][real])
    without = np.asarray(prompt_jax.forward(model.params, model.config, batch))
    assert np.abs(without - ours)[real].max() > 1e-3 * np.abs(ours).max(), "the prompt does something"

    options = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False}
    if is_causal(model):
        mask = np.ones_like(mask)  # PEFT treats left padding as text
    read = whole(inputs) | {"inputs_mask": mask}
    asked = {"input_ids": torch.tensor(inputs).long(), "attention_mask": torch.tensor(mask).long()}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Position ids are not supported")  # GPT-2's, of virtual tokens
        expected = theirs.generate(**asked, **options).numpy()[:, -NEW:]
    decoding = prompt_jax.Decoding(min_new_tokens=NEW)
    tokens = prompt_jax.generate(model.params, model.config, read, prompt, max_new_tokens=NEW, decoding=decoding)
    np.testing.assert_array_equal(tokens, expected)


def front(card: str) -> dict:
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load(card.split("---\n")[1])


@pytest.mark.parametrize("kind", ("soft prompt", "prefix"))
def test_peft_gives_our_answers(model, kind, tmp_path):
    """PEFT saves the same files again, except for the text of its card."""
    prompt = random_tokens(model, 5) if kind == "soft prompt" else peft_prefix(model, 5)
    save_prompt(tmp_path / "a", prompt, PromptMetadata(task="a task"), format="peft", model=model)
    theirs = loaded(model, tmp_path / "a")
    assert_same_answers(model, theirs, prompt)
    theirs.save_pretrained(tmp_path / "b")
    assert (tmp_path / "b" / TENSORS).read_bytes() == (tmp_path / "a" / TENSORS).read_bytes()
    assert (tmp_path / "b" / CONFIG).read_bytes() == (tmp_path / "a" / CONFIG).read_bytes()
    assert front((tmp_path / "a" / CARD).read_text()) == front((tmp_path / "b" / CARD).read_text())


@pytest.mark.parametrize("kind", ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "PREFIX_TUNING, projected"))
@pytest.mark.parametrize("name", GROUPED)
def test_we_give_pefts_answers(fixtures, name, kind, tmp_path):
    """Adapters with random weights that PEFT makes for models with grouped queries, and saves."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    model = prompt_jax.load_model(str(fixtures / name / "base"))
    options = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 5}
    config = {
        "PROMPT_TUNING": lambda: peft.PromptTuningConfig(**options),
        "P_TUNING": lambda: peft.PromptEncoderConfig(**options, encoder_hidden_size=24),
        "PREFIX_TUNING": lambda: peft.PrefixTuningConfig(**options),
        "PREFIX_TUNING, projected": lambda: peft.PrefixTuningConfig(
            **options, prefix_projection=True, encoder_hidden_size=24
        ),
    }[kind]()
    torch.manual_seed(0)
    base = pytest.importorskip("transformers").AutoModelForCausalLM.from_pretrained(model.name, dtype="float32")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # Transformers', of what PEFT calls
        made = peft.get_peft_model(base, config).eval()
    for weight in made.prompt_encoder.parameters():
        torch.nn.init.normal_(weight)
    made.save_pretrained(tmp_path / "theirs")
    ((prompt, _),) = read_prompts(tmp_path / "theirs")
    assert list(prompt.parts) == ["decoder_self" if "PREFIX" in kind else "encoder_tokens"]
    assert_same_answers(model, made, prompt)
    save_prompt(tmp_path / "ours", prompt, format="peft", model=model)
    assert (tmp_path / "ours" / TENSORS).read_bytes() == (tmp_path / "theirs" / TENSORS).read_bytes()


@pytest.mark.parametrize("name", ("gpt2", "qwen3", "gemma3_text"))
def test_peft_reads_our_cartridge(fixtures, name, tmp_path):
    """A prefix with frozen slots; with grouped queries and sliding windows too."""
    model = prompt_jax.load_model(str(fixtures / name / "base"))
    prompt = peft_prefix(model, 5)
    save_prompt(tmp_path / "a", prompt, PromptMetadata(frozen_tokens=1), format="peft", model=model)
    theirs = loaded(model, tmp_path / "a")
    encoder = theirs.prompt_encoder["default"]
    assert type(encoder).__name__ == "CartridgeEncoder" and encoder.frozen_embedding.shape[0] == 1
    assert_same_answers(model, theirs, prompt)
    theirs.save_pretrained(tmp_path / "b")
    assert (tmp_path / "b" / TENSORS).read_bytes() == (tmp_path / "a" / TENSORS).read_bytes()
    assert (tmp_path / "b" / CONFIG).read_bytes() == (tmp_path / "a" / CONFIG).read_bytes()


def test_a_prefix_of_a_text_is_that_of_peft(fixtures, tmp_path):
    """The keys and values of the same tokens, from `prompt_embeddings_from_past_key_values`."""
    torch, utils = pytest.importorskip("torch"), pytest.importorskip("peft.tuners.cartridge.utils")
    model = prompt_jax.load_model(str(fixtures / "gpt2" / "base"))
    ids = random_text(model, 1, 9)
    given = family(model.config).activations(model.params, model.config, whole(ids))["decoder_self"]
    theirs = (
        pytest.importorskip("transformers").AutoModelForCausalLM.from_pretrained(model.name, dtype="float32").eval()
    )
    with torch.no_grad():
        cache = theirs(torch.tensor(ids).long(), use_cache=True).past_key_values
    layers = [(layer.keys, layer.values) for layer in cache.layers]
    expected = utils.prompt_embeddings_from_past_key_values(layers, num_virtual_tokens=6).numpy()
    keys, values = (np.asarray(array)[:, 0, :6] for array in given)
    save_prompt(tmp_path / "a", Prompt(decoder_self=Prefix(keys, values)), format="peft", model=model)
    assert_close(load_file(tmp_path / "a" / TENSORS)["prompt_embeddings"], expected)


def test_peft_has_the_members_of_an_ensemble(fixtures, tmp_path):
    model = prompt_jax.load_model(str(fixtures / "t5_v11" / "base"))
    members = [random_tokens(model, length, seed=length) for length in (3, 5)]
    save_ensemble(tmp_path / "e", members, [PromptMetadata()] * 2, format="peft", model=model)
    theirs = loaded(model, tmp_path / "e" / "member_0")
    theirs.load_adapter(str(tmp_path / "e" / "member_1"), "second")
    for name, (prompt, _) in zip(("default", "second"), read_prompts(tmp_path / "e"), strict=True):
        theirs.set_adapter(name)
        assert_same_answers(model, theirs, prompt)


def test_the_versions_that_are_stated_are_those_that_are_compared_with():
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    assert {"PEFT": peft.__version__, "Transformers": transformers.__version__} == VERIFIED


def test_peft_guesses_wrong_without_the_files_sizes(tmp_path):
    """Without the exported number of layers and width, it could not load a prefix of such a T5."""
    model = prompt_jax.load_model(str(random_base(*DEEPER["t5_even"], tmp_path / "m")))
    save_prompt(tmp_path / "a", peft_prefix(model, 2), format="peft", model=model)
    config = json.loads((tmp_path / "a" / CONFIG).read_text())
    for name in ("num_layers", "token_dim"):
        del config[name]
    (tmp_path / "a" / CONFIG).write_text(json.dumps(config))
    with pytest.raises(RuntimeError, match="size mismatch"):
        loaded(model, tmp_path / "a")
