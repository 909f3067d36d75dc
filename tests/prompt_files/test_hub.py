"""Prompts on the Hub: round trips, other repositories, and errors, with huggingface_hub and a fake server."""

import base64
import contextlib
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants
from hypothesis import given
from hypothesis import strategies as st

import hub_server
from adapters import random_tokens
from fuzzing import FUZZ
from hub_prompts import ADAPTER, archive, assert_same, fails, log_in, point_at, prompts_of, written
from prompt_jax import PromptFormatError, load_prompt, push_prompt, save_ensemble, save_prompt
from prompt_jax.cli import main
from prompt_jax.prompt_files import hub as names
from prompt_jax.prompt_files.hub import HubName, parse_hub_name
from prompt_jax.prompt_files.io import ModelId, read_prompts
from prompt_jax.prompt_files.peft import CARD
from prompt_jax.prompt_files.peft_tensors import CONFIG, PICKLE, TENSORS
from prompt_jax.storage.paths import parse_path

# From huggingface_hub when it uploads large files.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload:DeprecationWarning")


# --------------------------------------------------------------------------------------------------------------
# Round trips


@pytest.mark.parametrize("name", ("tokens", "prefixes", "ensemble"))
@pytest.mark.parametrize("family", ("t5", "gpt2", "bart"))
def test_a_pushed_prompt_is_loaded_back(hub, models, tmp_path, family, name):
    model = models[family]
    source = written(tmp_path / "p.npz", model, *prompts_of(name, model))
    pushed = push_prompt(source, "hf://me/a-prompt", model)
    assert (pushed.name, pushed.address) == ("hf://me/a-prompt", f"{hub.address}/me/a-prompt")
    assert pushed.commit == hub.repositories["me/a-prompt"].branches["main"]
    assert hub.repositories["me/a-prompt"].messages == ["initial commit", "A prompt from prompt_jax"]  # one commit

    for there, here in zip(read_prompts("hf://me/a-prompt"), read_prompts(source), strict=True):
        assert_same(there[0], here[0])
        assert there[1] == dataclasses.replace(here[1], base=ModelId("./model", None, model.fingerprint))
    assert_same(load_prompt("hf://me/a-prompt", model), load_prompt(source, model))
    assert hub.fetched == ["prompt.npz"]  # and once, though read twice
    assert {token for _, path, token in hub.asked if "/large/" in path} == {None}  # the storage is another host


@pytest.mark.parametrize("family", ("t5", "gpt2", "bart"))
def test_the_adapter_of_a_pushed_prompt_is_read(hub, models, tmp_path, family):
    model = models[family]
    source = written(tmp_path / "p.npz", model, random_tokens(model, 3))
    pushed = push_prompt(source, "hf://me/p", model)
    assert pushed.no_adapter is None and set(pushed.files) == {"prompt.npz", CARD, *ADAPTER}
    hub.repositories["me/p"].commit("main", {"prompt.npz": None})
    assert_same(load_prompt("hf://me/p"), load_prompt(source))
    assert set(hub.fetched) == ADAPTER


def test_the_place_and_the_revision_are_the_named_ones(hub, models, tmp_path):
    first, second, third = (archive(tmp_path, models["t5"], seed) for seed in range(3))
    repository = hub.of_files("you/p", {"prompt.npz": first, "sub/any.npz": third, "sub/README.md": b"x"})
    old = repository.branches["main"]
    save_prompt(tmp_path / "an_array.npy", random_tokens(models["t5"], 3, seed=3))
    fourth = (tmp_path / "an_array.npy").read_bytes()
    hub.of_files("you/p", {"prompt.npz": second, "an_array.npy": fourth})
    hub.of_files("you/p", {"prompt.npz": third}, branch="refs/pr/1")
    for name, expected in {
        "hf://you/p": second,
        "hf://you/p@main": second,
        f"hf://you/p@{old}": first,
        "hf://you/p@refs/pr/1": third,
        "hf://you/p/sub": third,
        "hf://you/p/sub/any.npz": third,
        "hf://you/p/prompt.npz": second,
        "hf://you/p/an_array.npy": fourth,
    }.items():
        (tmp_path / "expected.npz").write_bytes(expected)
        assert_same(load_prompt(name), load_prompt(tmp_path / "expected.npz"))
        assert_same(load_prompt(Path(name)), load_prompt(tmp_path / "expected.npz"))
    assert CARD not in "".join(hub.fetched)


def test_an_adapter_comes_before_other_archives(hub, models, tmp_path):
    model = models["t5"]
    single, several = (
        written(tmp_path / f"{name}.npz", model, *prompts_of(name, model)) for name in ("tokens", "ensemble")
    )
    for name, source in (("hf://me/p", single), ("hf://me/q", several)):
        push_prompt(source, name, model)
        hub.repositories[name.removeprefix("hf://")].commit("main", {"prompt.npz": None, "optimizer.npz": b"no prompt"})
        assert_same(load_prompt(name), load_prompt(source))
    hub.repositories["me/p"].commit("main", {"another.npz": b"nor this", "prompt.npz": several.read_bytes()})
    assert_same(load_prompt("hf://me/p"), load_prompt(several))


def test_without_the_hub_the_cache_is_used(hub, models, tmp_path, monkeypatch):
    model = models["gpt2"]
    source = written(tmp_path / "p.npz", model, random_tokens(model, 3))
    commit = push_prompt(source, "hf://me/p", model).commit
    for name in ("hf://me/p", f"hf://me/p@{commit}"):
        load_prompt(name)

    def from_the_cache() -> None:
        for name in ("hf://me/p", "hf://me/p@main", f"hf://me/p@{commit}"):
            assert_same(load_prompt(name), load_prompt(source))

    hub.refuse = (503, "down for maintenance", {})
    from_the_cache()
    point_at("http://127.0.0.1:9", monkeypatch)  # where nothing listens
    from_the_cache()
    fails(lambda: load_prompt("hf://me/other"), "hf://me/other is not in the cache, and the hub could not be reached")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    from_the_cache()
    fails(lambda: load_prompt("hf://me/p@v2"), "hf://me/p@v2 is not in the cache", "HF_HUB_OFFLINE")
    fails(lambda: load_prompt("hf://me/p/sub"), "the repository has no sub; it has prompt.npz", error=PromptFormatError)
    fails(lambda: push_prompt(source, "hf://me/p"), "hf://me/p: pushing failed", "HF_HUB_OFFLINE")


# --------------------------------------------------------------------------------------------------------------
# Names


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hf://", "Empty body"),
        ("hf://name", "Repository id must be 'namespace/name'"),
        ("hf://../name", "The name cannot start or end with '-' or '.'"),
        ("hf://user/..", "The name cannot start or end with '-' or '.'"),
        ("hf://user/a..b", "Cannot have -- or .. in repo_id"),
        ("hf://user/a--b", "Cannot have -- or .. in repo_id"),
        ("hf://user/name.git", "cannot end by '.git'"),
        ("hf://user/.hidden", "The name cannot start or end with '-' or '.'"),
        ("hf://user/ünicode", "Repo id must use alphanumeric chars"),
        (f"hf://user/{'n' * 97}", "the maximum length is 96"),
        ("hf://datasets/user/name", "is a dataset; prompts are in repositories of models"),
        ("hf://user/name/../other", "'..' is not a folder or file"),
        ("hf://user/name//sub", "Path must not contain empty segments"),
        ("hf://user/name/.", "'.' is not a folder or file"),
        ("hf://user/name/a\\b", "is not a folder or file"),
        ("hf://user/name/a\x00b", "is not a folder or file"),
        ("hf://user/name@", "Empty revision"),
        ("hf://user/name@/etc", "Empty revision"),
        ("hf://user/name@../x", "'..' is not a branch"),
        ("hf://user/name@..%2Fx", "'../x' is not a branch"),
        ("hf://user/name@a/../b", "'..' is not a folder or file"),
        ("hf://user/name@a%2F%2Fb", "'a//b' is not a branch"),
        ("hf://user/name@a\nb", "is not a branch"),
        ("hf://user/name@a@b", "'a@b' is not a branch"),
        ("hub:name", "Repository id must be 'namespace/name'"),
        ("hub:user/..", "The name cannot start or end with '-' or '.'"),
        ("hub:user/name/../other", "'..' is not a folder or file"),
        ("hub:user/name@", "'' is not a branch"),
        ("hub:user/name@a/../b", "'a/../b' is not a branch"),
        ("user/name", "is not a name on the Hub"),
    ],
)
def test_invalid_names_are_explained(text, message):
    fails(lambda: parse_hub_name(text), message, "expected hf://USER/NAME[@REVISION][/PATH]", error=PromptFormatError)


def test_names_are_parsed():
    for text, expected in {
        "hf://user/name": HubName("user/name", "", None),
        "hf://u_1/n.2-x@v1.0/a/b c.npz": HubName("u_1/n.2-x", "a/b c.npz", "v1.0"),
        "hf://user/name@refs/pr/3": HubName("user/name", "", "refs/pr/3"),
        "hf://user/name@refs/pr/3/sub": HubName("user/name", "sub", "refs/pr/3"),
        "hf://user/name@tries%2Fb/sub": HubName("user/name", "sub", "tries/b"),
        "hf://user/name/file@1.npz": HubName("user/name", "file@1.npz", None),
    }.items():
        assert parse_hub_name(text) == expected
        assert str(expected) == text
    for text, expected in {
        "hf:/user/name/sub": HubName("user/name", "sub", None),  # as pathlib writes it
        "hub:user/name": HubName("user/name", "", None),  # the earlier form
        "hub:u_1/n.2-x/a/b c.npz@v1.0": HubName("u_1/n.2-x", "a/b c.npz", "v1.0"),
        "hub:user/name/sub@refs/pr/3": HubName("user/name", "sub", "refs/pr/3"),
    }.items():
        assert parse_hub_name(text) == expected
    assert names.is_hub_name(Path("hf://user/name")) and names.is_hub_name(parse_path("hf://user/name"))
    assert str(parse_path(Path("hf://user/name"))) == str(parse_path("hf://user/name").absolute()) == "hf://user/name"
    assert not names.is_hub_name(Path("folder/hub:user/name"))
    assert names.is_hub_name(Path("./hub:user/name")) and not names.is_hub_name(Path("hub:user/name").absolute())


@FUZZ
@given(st.sampled_from(["hf://", "hub:"]), st.text("ab.-_/@\\~ \x00é", max_size=24) | st.text())
def test_any_text_is_a_name_or_is_refused(scheme, text):
    try:
        name = parse_hub_name(f"{scheme}a/b{text}")
    except PromptFormatError:
        return
    assert parse_hub_name(str(name)) == name
    parts = [*name.repository.split("/"), *name.folder.split("/"), *(name.revision or "x").split("/")]
    assert not {".", ".."} & set(parts) and "" not in parts[:2] + parts[3:]
    huggingface_hub.utils.validate_repo_id(name.repository)


# --------------------------------------------------------------------------------------------------------------
# Errors


def test_refusals_of_the_hub_are_explained(hub, models, tmp_path, monkeypatch):
    content = {"prompt.npz": archive(tmp_path, models["t5"])}
    hub.of_files("you/p", content)
    hub.of_files("you/gated", content).gated = True
    hub.of_files("you/private", content).private = True
    fails(lambda: load_prompt("hf://you/none"), "hf://you/none: the hub has no such repository", "`hf auth login`")
    fails(
        lambda: load_prompt("hf://you/gated"), "hf://you/gated: its owners grant access by request", "`hf auth login`"
    )
    fails(lambda: load_prompt("hf://you/p@v9"), "hf://you/p@v9: the repository exists, but not that revision")
    load_prompt("hf://you/private")

    log_in(monkeypatch, None)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "another cache"))
    load_prompt("hf://you/p")
    fails(lambda: load_prompt("hf://you/private"), "or it is private and you are not logged in (`hf auth login`)")
    log_in(monkeypatch, "hf_WrongSecret0123456789")
    fails(lambda: load_prompt("hf://you/p"), "does not know the token that you are logged in with", "`hf auth login`")


@pytest.mark.parametrize(
    ("refuse", "message"),
    [
        ((500, "boom", {}), "hf://you/p is not in the cache, and listing its files failed: Server error '500"),
        ((403, "no", {}), "hf://you/p: the account or the token that you are logged in with may not do that"),
        ((429, "slow down", {}), "hf://you/p: listing its files failed: 429 Too Many Requests"),
        ((500, f"Authorization: Bearer {hub_server.TOKEN}", {}), "(a token)"),
        ((418, f"and {hub_server.TOKEN}, too", {}), "(a token)"),
    ],
)
def test_faults_of_the_hub(hub, refuse, message):
    """Tokens that a server repeats are not shown."""
    hub.refuse = refuse
    fails(lambda: load_prompt("hf://you/p"), message)


def test_no_list_of_files(hub, monkeypatch):
    """But the login page of a hotel."""
    hub.refuse = (200, "<html>", {})
    fails(lambda: load_prompt("hf://you/p"), "hf://you/p: listing its files failed: Expecting value")


@pytest.mark.parametrize(
    "answer",
    [
        [1],
        {},
        {"siblings": []},
        {"id": "you/p", "siblings": 5},
        {"id": "you/p", "siblings": ["prompt.npz"]},
        {"id": "you/p", "siblings": [{"size": 3}]},
        {"id": "you/p", "siblings": [{"rfilename": 5, "size": 3}]},
        {"id": "you/p", "siblings": [{"rfilename": "prompt.npz", "size": "3"}]},
        {"id": "you/p", "siblings": [{"rfilename": "prompt.npz", "size": -3}]},
        {"id": "you/p", "siblings": [{"rfilename": "prompt.npz", "lfs": {"size": 3}}]},
    ],
)
def test_lists_of_files_that_are_none(hub, models, tmp_path, answer):
    hub.refuse = (200, json.dumps(answer), {})
    message = "failed: the answer is not a list of files"
    fails(lambda: load_prompt("hf://you/p"), f"hf://you/p: listing its files {message}")
    source = written(tmp_path / "p.npz", models["t5"], random_tokens(models["t5"], 2))
    fails(lambda: push_prompt(source, "hf://me/p"), f"hf://me/p: pushing {message}")


def test_passwords_of_a_proxy_are_not_shown(hub, models, tmp_path, monkeypatch):
    """They are in the address of the Hub, HF_ENDPOINT."""
    address = hub.address.replace("//", "//joe:Secret@pw@")
    point_at(address, monkeypatch)
    log_in(monkeypatch, None)
    fails(lambda: load_prompt("hf://you/p"), f"url '{hub.address}/api/models/you/p")
    log_in(monkeypatch, hub_server.TOKEN)
    hub.users = {"Basic " + base64.b64encode(b"joe:Secret@pw").decode(): "me"}
    source = written(tmp_path / "p.npz", models["t5"], random_tokens(models["t5"], 2))
    assert push_prompt(source, "hf://me/p").address == f"{hub.address}/me/p"


def test_a_download_that_breaks_off(hub, models, tmp_path, monkeypatch):
    """From the Hub's storage for large files; huggingface_hub raises only a RuntimeError."""
    hub.of_files("you/p", {"prompt.npz": archive(tmp_path, models["t5"])})

    def broken(*args: Any, **options: Any) -> str:
        raise RuntimeError("Data processing error: File reconstruction error: CAS Client Error: connection closed")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", broken)
    fails(lambda: load_prompt("hf://you/p"), "hf://you/p: downloading prompt.npz failed: Data processing error: File")


def test_files_that_end_too_early(hub, models, tmp_path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: None)  # between the client's five attempts
    hub.of_files("you/p", {"prompt.npz": archive(tmp_path, models["t5"])})
    hub.truncate = True
    fails(lambda: load_prompt("hf://you/p"), "hf://you/p: ", "downloading prompt.npz failed: ")
    hub.truncate = False
    load_prompt("hf://you/p")  # nothing was left behind


def test_files_that_are_too_large_are_not_downloaded(hub, models, tmp_path):
    hub.of_files("you/p", {"prompt.npz": archive(tmp_path, models["t5"])})
    hub.claimed["prompt.npz"] = names.MAX_SIZE + 1
    message = f"hf://you/p: {names.MAX_SIZE + 1} bytes in 1 files; a prompt has at most {names.MAX_SIZE}"
    fails(lambda: load_prompt("hf://you/p"), message, error=PromptFormatError)
    hub.claimed["prompt.npz"] = None
    fails(
        lambda: load_prompt("hf://you/p"),
        "hf://you/p: not downloaded, because the Hub does not report the size of prompt.npz",
    )
    assert hub.fetched == []


def test_errors_list_the_files_of_repositories_without_a_prompt(hub, models, tmp_path):
    content = archive(tmp_path, models["t5"])
    hub.of_files("you/p", {"a.npz": content, "b.npz": content})
    hub.of_files("you/q", {"x/y/prompt.npz": content, "x/z": b"", "config.json": b"{}"})
    hub.of_files("you/r", {"p/adapter_config.json": b"{}", f"p/{PICKLE}": b"\x80"})
    hub.of_files("you/s", {f"member_{number}/{CONFIG}": b"" for number in range(5)})
    hub.of_files("you/t", {"of/prompt.npy": b"", "of/x/other.npy": b""}, branch="v1")
    for name, message in {
        "hf://you/t@v1/of": "nor a PEFT adapter; it has prompt.npy, x/; name the file, e.g. hf://you/t@v1/of/prompt.npy",
        "hf://you/p": "hf://you/p has several prompts, a.npz, b.npz; name one, e.g. hf://you/p/a.npz",
        "hf://you/q": "hf://you/q has neither prompt.npz nor a PEFT adapter; it has x/y/, .gitattributes, conf",
        "hf://you/q/none": "hf://you/q/none: the repository has no none; it has x/y/, .gitattributes, config.json",
        "hf://you/q/config.json": "hf://you/q/config.json: neither a NumPy archive",
        "hf://you/r/p": f"hf://you/r/p: {PICKLE} is a pickle, which can run code, and is not downloaded",
        "hf://you/s": f"hf://you/s: member_0/{CONFIG}: damaged",
    }.items():
        fails(lambda name=name: load_prompt(name), message, error=PromptFormatError)
    assert f"p/{PICKLE}" not in hub.fetched


def test_damaged_files_are_named_as_on_the_hub(hub, models, tmp_path, fixtures):
    content = archive(tmp_path, models["t5"])
    files = {file: (fixtures / "gpt2" / "prompt" / file).read_bytes() for file in ADAPTER}
    hub.of_files("you/p", {"prompt.npz": content[:-40]})
    hub.of_files("you/q", {f"of/{file}": data for file, data in (files | {TENSORS: files[TENSORS][:-4]}).items()})
    hub.of_files("you/r", {f"member_0/{file}": data for file, data in files.items()})
    hub.of_files("you/r", {f"member_2/{file}": data for file, data in files.items()})
    hub.of_files("you/s", {CONFIG: files[CONFIG]})
    for name, message in {
        "hf://you/p@main": "hf://you/p@main: damaged: BadZipFile",
        "hf://you/q/of": f"hf://you/q/of: {TENSORS}: prompt_embeddings claims F32",
        "hf://you/r": "hf://you/r: there are 2 members and no member_1",
        "hf://you/s": f"hf://you/s: no {TENSORS}, which a PEFT adapter needs",
    }.items():
        fails(lambda name=name: load_prompt(name), message, error=PromptFormatError)


def test_a_link_out_of_the_cache_is_not_followed(hub, models, tmp_path):
    hub.of_files("you/p", {"prompt.npz": archive(tmp_path, models["t5"])})
    load_prompt("hf://you/p")
    (entry,) = (tmp_path / "cache").glob("models--you--p/snapshots/*/prompt.npz")
    assert entry.is_symlink()
    entry.unlink()
    entry.symlink_to(tmp_path / "of_0.npz")
    fails(lambda: load_prompt("hf://you/p"), "leads out of the Hub's cache", error=PromptFormatError)
    entry.unlink()
    shutil.copy(tmp_path / "of_0.npz", entry)  # as on systems without links
    load_prompt("hf://you/p")


def test_many_members_are_too_many(hub, monkeypatch):
    monkeypatch.setattr(names, "MAX_MEMBERS", 3)
    hub.of_files("you/s", {f"member_{number}/{CONFIG}": b"" for number in range(4)})
    fails(lambda: load_prompt("hf://you/s"), "4 members; an ensemble has at most 3", error=PromptFormatError)
    assert hub.fetched == []


# --------------------------------------------------------------------------------------------------------------
# The verbs


def test_the_verbs(hub, models, tmp_path, capsys, monkeypatch):
    model = models["bart"]
    source = written(tmp_path / "p.npz", model, random_tokens(model, 3))

    def run(*words: str | Path) -> str:
        assert main([str(word) for word in words]) == 0
        return capsys.readouterr().out

    out = run("push", source, "hf://me/p@v1", "--private", "--message", "first", "--model", model.name)
    commit = hub.repositories["me/p"].branches["v1"]
    assert f"hf://me/p@v1\n{hub.address}/me/p/tree/v1\ncommit {commit}\n" in out
    assert "wrote prompt.npz, " in out and "no adapter" not in out and "published as ./model: others must give" in out
    assert hub.repositories["me/p"].private and hub.repositories["me/p"].messages[-1] == "first"

    out = run("push", source, "hf://me/p/sub")
    assert "no PEFT adapter: " in out and f"if you trust it, say --model {model.name}" in out
    asked = len(hub.asked)
    run("push", "hf://me/p/sub", "hf://me/q")
    assert sum(path.startswith("/api/models/me/p?") for _, path, _ in hub.asked[asked:]) == 1  # it is read once

    assert run("import", "hf://me/p@v1", tmp_path / "again.npz") == f"wrote {tmp_path / 'again.npz'}\n"
    assert_same(load_prompt(tmp_path / "again.npz"), load_prompt(source))
    ((prompt, metadata),) = read_prompts(source)
    base = ModelId("./model", None, model.fingerprint)
    save_prompt(tmp_path / "expected.npz", prompt, dataclasses.replace(metadata, base=base))
    assert (tmp_path / "again.npz").read_bytes() == (tmp_path / "expected.npz").read_bytes()
    run("export", "hf://me/p/sub", tmp_path / "again.npy")
    run("export", "hf://me/p@v1", tmp_path / "peft", "--format", "peft", "--model", model.name)
    assert_same(load_prompt(tmp_path / "peft"), load_prompt(source))
    assert "hf://me/p@v1" in run("inspect", "hf://me/p@v1", "--model", model.name)
    assert run("predict", "hf://me/p@v1", "a good film", "--model", model.name)
    hub.of_files("me/p", {"lines.txt": b""})
    lines = tmp_path / "lines.jsonl"
    lines.write_text(json.dumps({"prompt": "b", "text": "a good film"}) + "\n")
    run("predict", "--prompts", f"b=hf://me/p@v1,{source}", "--input", lines, "--model", model.name)

    monkeypatch.chdir(tmp_path)
    to_push = "hf://me/x.npz: a file is written to this machine, not to the Hub; use prompt-jax push"
    for words, message in (
        (("export", source, "hf://me/x.npz"), to_push),
        (("export", source, "hf://me/x.npz", "--format", "peft", "--model", model.name), to_push),
        (("import", source, "hf://me/x.npz"), to_push),
        (("average", source, "again.npz", "hf://me/x.npz", "--weights", "0.5", "0.5"), to_push),
        (("import", "hf://me/none", tmp_path / "x.npz"), "hf://me/none: the hub has no such repository"),
        (("import", "hf://me/p/none", tmp_path / "x.npz"), "hf://me/p/none: the repository has no none"),
        (("push", source, "me/p"), "'me/p' is not a name on the Hub"),
        (("push", tmp_path / "none.npz", "hf://me/p"), "no such file"),
        (("push", source, "hf://you/p", "--model", model.name), "may not do that"),
    ):
        assert main([str(word) for word in words]) == 1
        printed = capsys.readouterr()
        assert message in printed.err and "Secret" not in printed.err + printed.out
    assert not Path("hf:").exists()
    fails(lambda: save_ensemble("hf://me/x.npz", [prompt], [metadata]), to_push, error=PromptFormatError)
    with contextlib.suppress(SystemExit):
        main(["push", "--help"])
    assert "hf://USER/NAME" in capsys.readouterr().out
