"""Configurations of adapters: which fields count, and which values are refused."""

import json

import pytest

from peft_adapters import assert_same, changed, config_of
from prompt_jax import PromptFormatError, load_prompt
from prompt_jax.prompt_files.io import read_prompt
from prompt_jax.prompt_files.peft_config import key_slots
from prompt_jax.prompt_files.peft_tensors import CONFIG

DEEP = '{"peft_type": ' + "[" * 900 + "]" * 900 + "}"


BROKEN_CONFIGS = {
    "no json": ("{", "not JSON"),
    "no text": (b"\xff", "not JSON"),
    "large": (" " * (1 << 21), "2097152 bytes"),
    "deep": ("[" * 100_000, "not JSON"),
    "less deep": (DEEP, "peft_type must be"),
    "list": ("[1]", "a JSON list"),
    "twice": ('{"peft_type": "LORA", "peft_type": "PROMPT_TUNING"}', "'peft_type' comes twice"),
    "twice, of many": ("{" + "".join(f'"{i}": 0,' for i in range(60_000)) + '"59999": 1}', "'59999' comes twice"),
    "many digits": ('{"num_virtual_tokens": ' + "9" * 5000 + "}", "not JSON"),
    "lora": ({"peft_type": "LORA"}, "peft_type must be 'PROMPT_TUNING' or .*, not 'LORA'"),
    "multitask": ({"peft_type": "MULTITASK_PROMPT_TUNING"}, "'MULTITASK_PROMP"),
    "no kind": ({"peft_type": None}, "peft_type is missing"),
    "task": ({"task_type": "SEQ_CLS"}, "'CAUSAL_LM' or 'SEQ_2_SEQ_LM', not 'SEQ_CLS'"),
    "length": ({"num_virtual_tokens": None}, "num_virtual_tokens is 0 or missing. PEFT completes"),
    "length of text": ({"num_virtual_tokens": "5"}, "num_virtual_tokens must be int, not '5'"),
    "boolean": ({"num_virtual_tokens": True}, "num_virtual_tokens must be int, not True"),
    "zero": ({"num_virtual_tokens": 0}, "num_virtual_tokens is 0"),
    "absurd": ({"num_virtual_tokens": 10**400}, "num_virtual_tokens is 1000"),
    "other length": ({"num_virtual_tokens": 6}, r"is \[5, 64\]; adapter_config.json makes it \[6, 64\]"),
    "other width": ({"token_dim": 65}, r"makes it \[5, 65\]"),
    "modules": ({"modules_to_save": ["lm_head"]}, "the adapter changes the base"),
    "submodules": ({"num_transformer_submodules": 2}, "PROMPT_TUNING of CAUSAL_LM has 1"),
    "of another task": ({"task_type": "SEQ_2_SEQ_LM", "num_transformer_submodules": 3}, "has 1 or 2"),
    "no layers": ({"peft_type": "PREFIX_TUNING", "num_layers": None}, "num_layers is 0 or missing. PEFT completes"),
    "no heads": ({"peft_type": "PREFIX_TUNING", "num_attention_heads": None}, "num_attention_heads is 0 or missing"),
    "heads": ({"peft_type": "PREFIX_TUNING", "num_attention_heads": 5}, "a multiple of the 5 heads"),
    "prefix": ({"peft_type": "PREFIX_TUNING", "num_layers": 1 << 30}, r"makes it \[5, 137438953472\]"),
    "frozen": (
        {"peft_type": "CARTRIDGE", "num_layers": 2, "num_attention_heads": 4, "num_frozen_tokens": 6},
        "is 6; expected 0 to 5",
    ),
    "cartridge": (
        {"peft_type": "CARTRIDGE", "task_type": "SEQ_2_SEQ_LM", "num_layers": 2, "num_attention_heads": 4},
        "expected CAUSAL_LM",
    ),
    # PEFT 0.21.2 loads such a file, and its logits are wrong.
    "one submodule": (
        {"peft_type": "PREFIX_TUNING", "task_type": "SEQ_2_SEQ_LM", "num_transformer_submodules": 1},
        "PREFIX_TUNING of SEQ_2_SEQ_LM has 2",
    ),
}


@pytest.mark.parametrize("case", BROKEN_CONFIGS)
def test_errors_of_a_configuration(adapter, case):
    content, message = BROKEN_CONFIGS[case]
    if isinstance(content, dict):
        content = json.dumps(config_of(adapter) | content)
    (adapter / CONFIG).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(PromptFormatError, match=message) as caught:
        load_prompt(adapter)
    assert str(adapter) in str(caught.value)


def test_four_fields_are_enough(fixtures, tmp_path):
    """As in PEFT. Unknown fields come from later versions."""
    source = fixtures / "bart" / "prompt"
    kept = {"peft_type", "task_type", "num_virtual_tokens"}
    short = changed(source, tmp_path / "a", without=tuple(config_of(source).keys() - kept), new_field={"a": [1]})
    assert_same(load_prompt(short), load_prompt(source))
    nulls = changed(source, tmp_path / "b", token_dim=None, num_transformer_submodules=None)
    assert_same(load_prompt(nulls), load_prompt(source))


def test_the_methods_are_distinguished(fixtures):
    result = {name: read_prompt(fixtures / "bart" / name)[1] for name in ("prompt", "p_tuning", "prefix_projection")}
    assert [metadata.method for metadata in result.values()] == ["soft_prompt", "p_tuning", "prefix"]
    assert all(metadata.base is None for metadata in result.values()), "only a fingerprint says what a base is"


def test_slots_of_keys():
    """In GPT-2, layer i's keys are in slot 2 i; in a decoder in slot 4 i, modulo twice the number of layers."""
    assert key_slots(3, causal=True).tolist() == [0, 2, 4]
    assert key_slots(3, causal=False).tolist() == [0, 4, 2]
    assert key_slots(4, causal=False).tolist() == [0, 4, 0, 4], "layers 0 and 2 share a slot, as do 1 and 3"
