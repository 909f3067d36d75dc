"""The card of a repository: its facts, and its code."""

import dataclasses
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from hub_prompts import FORMAT, parsed, prompts_of, said, written
from prompt_jax import PromptMetadata, load_model, push_prompt, save_ensemble
from prompt_jax.cli import main
from prompt_jax.prompt_files.card import yaml_header
from prompt_jax.prompt_files.hub import parse_hub_name
from prompt_jax.prompt_files.hub_card import CardBase, CardMember, repository_card
from prompt_jax.prompt_files.peft import CARD
from prompt_jax.task_format import TaskFormat

# From huggingface_hub when it uploads large files.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload:DeprecationWarning")


def card_of(name: str, members: list[CardMember], base: CardBase | None, **options: Any) -> str:
    return repository_card(parse_hub_name(name), members, base, **options)


def test_the_card_has_the_facts_that_users_need():
    commit = "0123456789abcdef0123456789abcdef01234567"
    metadata = PromptMetadata(None, "soft_prompt", task="sst2", format=FORMAT, step=7, scores={"accuracy": 0.5})
    member = CardMember({"encoder_tokens": [3, 64]}, metadata)
    base = CardBase("google/t5-v1_1-small", commit, False)
    head, text, code = parsed(card_of("hf://me/p@tries/sub", [member], base, adapters=True))
    assert head == {
        "base_model": "google/t5-v1_1-small",
        "library_name": "peft",
        "tags": ["base_model:adapter:google/t5-v1_1-small", "prompt-tuning", "prompt_jax"],
    }
    for fact in (
        'base: "google/t5-v1_1-small"',
        f'revision: "{commit}"',
        'method: "soft_prompt"',
        'task: "sst2"',
        'template: "review: {text}"',
        'labels: ["negative", "positive"]',
        'scores: {"accuracy": 0.5}',
        "step: 7",
    ):
        assert f"\n    {fact}\n" in text
    ours, theirs = code
    assert 'load_prompt("hf://me/p@tries/sub", model)' in ours and f'revision="{commit}"' in ours
    assert 'from_pretrained(base, "me/p", subfolder="sub", revision="tries")' in theirs
    assert f'AutoModelForSeq2SeqLM.from_pretrained("google/t5-v1_1-small", revision="{commit}")' in theirs

    head, text, code = parsed(card_of("hf://me/p", [member], CardBase("gpt2", None, True), adapters=False))
    assert head["pipeline_tag"] == "text-generation" and "library_name" not in head
    assert len(code) == 1 and "PEFT" not in text
    head, text, code = parsed(card_of("hf://me/p", [member], None, adapters=False))
    assert "base_model" not in head and code == [] and "give it with `--model`" in text
    head, text, code = parsed(card_of("hf://me/p", [member], CardBase("demo", None, False), adapters=True))
    assert "base_model" not in head and "demo_folder()" in code[1]


def test_the_code_for_peft_has_the_separator():
    member = CardMember({"encoder_tokens": (3, 8)}, PromptMetadata(None))
    for base, text, ids in (
        (CardBase("gpt2", None, True, 50256, leading_space=True), " a text", "[*ids, 50256]"),
        (CardBase("meta/llama", None, True, 198, start=(128000,)), "a text", "[128000, *ids, 198]"),
        (CardBase("smollm2", None, True, 198), "a text", "[*ids, 198]"),
    ):
        _, _, code = parsed(card_of("hf://me/p", [member], base, adapters=True))
        assert f'ids = tokenizer("{text}", add_special_tokens=False).input_ids\nids = {ids}  #' in code[1]
    assert "from_pretrained(smollm2_folder())" in code[1]


NASTY = '"\n---\n```\n# <script>`{}[](x)\u2028\x85\x7f\x00\ud800\U0001f600\ufeff: - \\'


def test_texts_of_strangers_stay_texts():
    metadata = PromptMetadata(
        None,
        NASTY,
        initialization=NASTY,
        task=NASTY,
        format=TaskFormat("{text}" + NASTY.replace("{}", ""), labels=(NASTY, "b")),
        scores={NASTY: 1.0},
        settings={NASTY: NASTY},
    )
    member = CardMember({"decoder_self": [2, 3, 4, 5]}, metadata)
    for members in ([member], [member, member]):
        for adapters in (False, True):
            card = card_of("hf://me/p/a b`", members, CardBase(NASTY, NASTY, True), adapters=adapters)
            head, text, code = parsed(card.encode().decode())  # it can be written
            assert head["tags"][-2:] == ["prefix-tuning", "prompt_jax"] and "base_model" not in head
            assert len(code) == 1 + adapters
            assert all(line.startswith("    ") for line in text.splitlines() if "script" in line)
            assert card.splitlines() == card.split("\n")[:-1]
    plain = NASTY.replace("\ud800", "")
    head = yaml.safe_load(yaml_header(plain, adapter=True, causal=False, tags=[plain]).removesuffix("---"))
    assert head["tags"] == [f"base_model:adapter:{plain}", plain]


@pytest.mark.parametrize(("family", "name"), (("t5", "tokens"), ("gpt2", "ensemble")))
def test_the_cards_code_runs(hub, models, tmp_path, monkeypatch, family, name, capsys):
    model = models[family]
    monkeypatch.chdir(Path(model.name).parent)  # where the base is as the card says
    push_prompt(written(tmp_path / "p.npz", model, *prompts_of(name, model)), "hf://me/p@tries/in", model)
    card = hub.repositories["me/p"].files("tries")[f"in/{CARD}"].decode()
    exec(parsed(card)[2][0], {})
    printed = capsys.readouterr().out
    words = shlex.split(re.search(r"^```bash\n(.*)\n```$", card, re.MULTILINE)[1])
    assert words[:2] == ["prompt-jax", "predict"]
    assert main(words[1:]) == 0
    assert name != "tokens" or capsys.readouterr().out == printed


def test_the_card_of_prompts_for_different_tasks(hub, models, tmp_path, monkeypatch, capsys):
    """They do not vote. The card's command and its code give the same answer."""
    model = models["t5"]
    monkeypatch.chdir(Path(model.name).parent)
    prompts = prompts_of("ensemble", model)
    save_ensemble(tmp_path / "p.npz", prompts, [dataclasses.replace(said(model), task=task) for task in "aab"])
    push_prompt(tmp_path / "p.npz", "hf://me/p@tries/in", model)
    card = hub.repositories["me/p"].files("tries")[f"in/{CARD}"].decode()
    _, text, code = parsed(card)
    assert "majority vote" not in text and "each input names one, `p/0` to `p/2`," in text
    exec(code[0], {})
    printed = capsys.readouterr().out
    words = shlex.split(re.search(r"^```bash\n(.*)\n```$", card, re.MULTILINE)[1])
    assert words[:4] == ["prompt-jax", "predict", "--prompts", "p=hf://me/p@tries/in"]
    assert main(words[1:]) == 0 and capsys.readouterr().out == printed


def with_end_token(folder: Path, to: Path) -> str:
    """Return a copy of a model whose tokenizer puts a start and an end token around each text, like `add_eos_token`."""
    shutil.copytree(folder, to)
    tokenizer = Tokenizer.from_file(str(to / "tokenizer.json"))
    around = [(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")]
    tokenizer.post_processor = TemplateProcessing("<s> $A </s>", None, around)
    tokenizer.save(str(to / "tokenizer.json"))
    return str(to)


@pytest.mark.interop
@pytest.mark.filterwarnings("ignore::FutureWarning")  # Transformers', of what PEFT calls
@pytest.mark.filterwarnings("ignore:Position ids are not supported")  # GPT-2's, of virtual tokens
@pytest.mark.parametrize("name", ("tokens", "ensemble"))
@pytest.mark.parametrize("family", ("t5", "gpt2", "llama"))
def test_the_cards_code_runs_with_peft(hub, models, tiny_folders, tmp_path, monkeypatch, family, name, capsys):
    """Its answer equals this project's, also if the tokenizer puts a start and an end token around each text."""
    pytest.importorskip("peft")
    folder = tiny_folders[family]
    model = models[family] if family != "llama" else load_model(with_end_token(folder, tmp_path / "m"))
    monkeypatch.chdir(Path(model.name).parent)
    push_prompt(written(tmp_path / "p.npz", model, *prompts_of(name, model)), "hf://me/p@tries/in", model)
    _, _, code = parsed(hub.repositories["me/p"].files("tries")[f"in/{CARD}"].decode())
    ours: dict[str, Any] = {}
    exec(code[0], ours)
    theirs: dict[str, Any] = {}
    exec(code[1], theirs)
    assert family == "t5" or theirs["ids"] == [int(index) for index in ours["ids"]]
    tokens = theirs["tokens"][0].tolist()
    expected = np.asarray(ours["tokens"])[0].tolist()
    start = 1 if family == "t5" else theirs["inputs"]["input_ids"].shape[1]
    assert tokens[start : start + len(expected)] == expected
