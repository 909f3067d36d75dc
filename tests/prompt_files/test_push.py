"""Pushes: what is replaced, published and refused."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from adapters import random_prefix, random_tokens
from hub_prompts import ADAPTER, assert_same, fails, log_in, parsed, prompts_of, written
from prompt_jax import PromptFormatError, PromptMetadata, load_prompt, push_prompt, save_prompt
from prompt_jax.prompt_files.hub_card import MARK, OLD_MARK
from prompt_jax.prompt_files.io import ModelId, read_prompts
from prompt_jax.prompt_files.peft import CARD, VERSIONS_NOTE
from prompt_jax.prompt_files.peft_tensors import CONFIG

# From huggingface_hub when it uploads large files.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload:DeprecationWarning")


def test_an_ensemble_is_one_file_and_a_folder_of_adapters(hub, models, tmp_path):
    model = models["bart"]
    source = written(tmp_path / "p.npz", model, *prompts_of("ensemble", model))
    push_prompt(source, "hf://me/p@tries/of/three", model)
    repository = hub.repositories["me/p"]
    assert set(repository.files("tries")) == {".gitattributes"} | {
        f"of/three/{file}"
        for file in ("prompt.npz", CARD, *(f"member_{i}/{name}" for i in range(3) for name in ADAPTER))
    }
    assert set(repository.files()) == {".gitattributes"}
    single = read_prompts("hf://me/p@tries/of/three/member_1")
    assert_same(single[0][0], read_prompts(source)[1][0])
    repository.commit("tries", {"of/three/prompt.npz": None})
    for (there, _), (here, _) in zip(read_prompts("hf://me/p@tries/of/three"), read_prompts(source), strict=True):
        assert_same(there, here)


def test_a_push_replaces_the_earlier_prompt(hub, models, tmp_path):
    """Including its adapters, which belong to another prompt, and its card unless somebody wrote one."""
    model = models["t5"]
    push_prompt(written(tmp_path / "a.npz", model, *prompts_of("ensemble", model)), "hf://me/p", model)
    hub.of_files("me/p", {"member_0/notes.txt": b"mine"})
    source = written(tmp_path / "b.npz", model, random_prefix(model, 2))
    pushed = push_prompt(source, "hf://me/p", model, message="prefixes")
    assert set(pushed.deleted) == {f"member_{i}/{name}" for i in range(3) for name in ADAPTER}
    assert "PEFT has no prefix of encoder_self" in pushed.no_adapter and pushed.no_adapter.startswith("the prompt: ")
    assert set(hub.repositories["me/p"].files()) == {".gitattributes", CARD, "prompt.npz", "member_0/notes.txt"}
    assert hub.repositories["me/p"].messages[-1] == "prefixes"
    assert_same(load_prompt("hf://me/p"), load_prompt(source))

    for card, kept in (
        (b"---\nlicense: mit\n---\nMine.", True),
        (MARK.encode() + b"\nOurs.", False),
        (OLD_MARK.encode() + b"...", False),
    ):
        hub.of_files("me/p", {CARD: card})
        pushed = push_prompt(source, "hf://me/p", model)
        assert (hub.repositories["me/p"].files()[CARD] == card) == kept == (CARD not in pushed.files)
        assert any("was not written by a push and is kept" in note for note in pushed.notes) == kept


def test_private_repositories(hub, models, tmp_path):
    source = written(tmp_path / "p.npz", models["t5"], random_tokens(models["t5"], 2))
    for _ in range(2):
        push_prompt(source, "hf://me/hidden", private=True)
    push_prompt(source, "hf://me/open")
    assert (hub.repositories["me/hidden"].private, hub.repositories["me/open"].private) == (True, False)
    before = hub.repositories["me/open"].branches["main"]
    fails(lambda: push_prompt(source, "hf://me/open", private=True), "the repository exists and is public")
    assert hub.repositories["me/open"].branches["main"] == before


def test_refused_pushes(hub, models, tmp_path, monkeypatch):
    source = written(tmp_path / "p.npz", models["t5"], random_tokens(models["t5"], 2))
    hub.of_files("you/p", {})
    hub.of_files("me/gated", {}).gated = True
    for name, message in {
        "hf://you/p": "hf://you/p: the account or the token that you are logged in with may not do that",
        "hf://you/new": "hf://you/new: the account or the token that you are logged in with may not do that",
    }.items():
        fails(lambda name=name: push_prompt(source, name), message, "`hf auth login`")
    for name, message in {
        "hf://me/p@" + "0" * 40: "a commit cannot change; push to a branch",
        "hf://me/p/prompt.npz": "a prompt is pushed to a folder, as prompt.npz",
        "me/p": "'me/p' is not a name on the Hub",
    }.items():
        fails(lambda name=name: push_prompt(source, name), message, error=PromptFormatError)
    other = models["bart"]
    fails(lambda: push_prompt(source, "hf://me/p", other), "was trained on", error=PromptFormatError)

    log_in(monkeypatch, "hf_WrongSecret0123456789")
    fails(lambda: push_prompt(source, "hf://me/p"), "does not know the token that you are logged in with")
    log_in(monkeypatch, None)
    count = len(hub.asked)
    fails(lambda: push_prompt(source, "hf://me/p"), "hf://me/p: log in with `hf auth login`")
    assert len(hub.asked) == count and "me/p" not in hub.repositories


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("/disk/joe/Secret/model/", "./model"),
        ("../Secret/model", "./model"),
        ("C:\\Secret\\model", "./model"),
        ("~/Secret", "./Secret"),
        ("t5x:/disk/joe/Secret/checkpoint_3", "t5x:checkpoint_3"),
        ("google/t5-v1_1-small", "google/t5-v1_1-small"),
        ("demo", "demo"),
    ],
)
def test_the_local_path_of_the_base_is_not_published(hub, models, tmp_path, name, told):
    model = dataclasses.replace(models["t5"], name=name)
    prompts = prompts_of("ensemble", model)
    for its_base, several in ((None, False), (model, False), (model, True)):
        pushed = push_prompt(
            written(tmp_path / "p.npz", model, *(prompts if several else prompts[:1])), "hf://me/p", its_base
        )
        assert {said.base for _, said in read_prompts("hf://me/p")} == {ModelId(told, None, model.fingerprint)}
        files = hub.repositories["me/p"].files()
        assert f"    base: {json.dumps(told)}\n" in files[CARD].decode()
        assert any(told in note for note in pushed.notes) == (told not in ("google/t5-v1_1-small", "demo"))
        adapters = [json.loads(content) for file, content in files.items() if file.endswith(CONFIG)]
        assert len(adapters) == (0 if its_base is None else 3 if several else 1)
        for adapter in adapters:  # PEFT cannot load T5X checkpoints, nor models of Python packages
            loadable = not told.startswith("t5x:") and told != "demo"
            assert adapter["base_model_name_or_path"] == (told if loadable else None)
        for stated in ("## With PEFT", VERSIONS_NOTE):
            assert (stated.encode() in files[CARD]) == bool(adapters and not told.startswith("t5x:"))
        for content in files.values():
            assert told == name or not any(name.encode(code) in content for code in ("utf-8", "utf-32-le"))


def test_a_folder_that_is_called_as_a_model_on_the_hub(hub, models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("google/small").mkdir(parents=True)
    model, commit = dataclasses.replace(models["t5"], name="google/small"), "0" * 40
    for revision, told in ((None, "./small"), (commit, "google/small")):
        base = ModelId(model.name, revision, model.fingerprint)
        save_prompt("p.npz", random_tokens(model, 2), PromptMetadata(base))
        push_prompt("p.npz", "hf://me/p", dataclasses.replace(model, revision=revision))
        assert read_prompts("hf://me/p")[0][1].base == dataclasses.replace(base, name=told)
        head, _, _ = parsed(hub.repositories["me/p"].files()[CARD].decode())
        assert head.get("base_model") == (told if revision else None)


def test_concurrent_changes_are_not_overwritten(hub, models, tmp_path, monkeypatch):
    source = written(tmp_path / "p.npz", models["t5"], random_tokens(models["t5"], 2))
    push_prompt(source, "hf://me/p")
    download = huggingface_hub.hf_hub_download

    def meanwhile(*args: Any, **options: Any) -> str:
        hub.of_files("me/p", {CARD: b"Mine."})
        return download(*args, **options)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", meanwhile)
    fails(lambda: push_prompt(source, "hf://me/p"), "hf://me/p: pushing failed", "A commit has happened since")
    assert hub.repositories["me/p"].files()[CARD] == b"Mine."


def test_an_upload_that_breaks_off(hub, models, tmp_path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: None)  # between the client's five attempts
    source = written(tmp_path / "p.npz", models["t5"], random_tokens(models["t5"], 2))
    hub.storage = "http://127.0.0.1:9"  # where nothing listens
    fails(
        lambda: push_prompt(source, "hf://me/p"),
        "hf://me/p: the hub could not be reached, or broke off: pushing",
    )
