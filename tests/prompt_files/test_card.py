"""Model cards."""

import ast
import json

import yaml

from adapters import random_tokens
from peft_adapters import METADATA, gpt2_of
from prompt_jax import PromptMetadata, save_prompt
from prompt_jax.prompt_files.card import facts, indented_block, quote, yaml_header
from prompt_jax.prompt_files.peft import CARD


def test_the_card_has_the_facts_that_users_need(tmp_path):
    """A stranger's name of a task stays text."""
    model = gpt2_of(2)
    save_prompt(tmp_path / "a", random_tokens(model, 3), METADATA, format="peft", model=model)
    card = (tmp_path / "a" / CARD).read_text()
    assert card.startswith(
        "---\nbase_model: google/some-base\nlibrary_name: peft\npipeline_tag: text-generation\ntags:\n"
        "- base_model:adapter:google/some-base\n---\n\n# "
    )
    assert '\n    template: "review: {text}\\n---"\n    labels: ["negative", "positive"]\n' in card
    assert card.endswith("\n### Framework versions\n\n- PEFT 0.21.2\n- Transformers 5.23.0\n")


def test_quoted_texts_are_literals_of_json_yaml_and_python():
    text = 'a "b"\n\u2028\x85\ufeff\U0001f600 \\ é'
    quoted = quote(text)
    assert json.loads(quoted) == yaml.safe_load(quoted) == ast.literal_eval(quoted) == text
    assert len(quoted.splitlines()) == 1 and "\ufeff" not in quoted and "é" in quoted


def test_the_header_names_the_base_only_if_there_is_one():
    head = yaml.safe_load(yaml_header("gpt2", adapter=False, causal=True, tags=["a: b"]).removesuffix("---"))
    assert head == {
        "base_model": "gpt2",
        "pipeline_tag": "text-generation",
        "tags": ["base_model:adapter:gpt2", "a: b"],
    }
    assert "base_model" not in yaml.safe_load(
        yaml_header(None, adapter=True, causal=False, tags=["x"]).removesuffix("---")
    )


def test_facts_without_a_value_are_left_out():
    assert indented_block({"task": "films", "step": None, "labels": [], "scores": {}, "count": 0}) == [
        '    task: "films"',
        "    count: 0",
    ]
    assert indented_block(facts(PromptMetadata())) == []
