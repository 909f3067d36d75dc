"""`prompt-jax inspect`, in the terminal and as a page."""

import dataclasses
import json
import re

import numpy as np
import pytest

import prompt_jax
from adapters import random_prefix
from pages import Page
from prompt_jax import Prompt, PromptMetadata, VirtualTokens, save_prompt
from prompt_jax.prompt_files.io import ModelId, read_prompt, save_ensemble

EVIL = "<script>alert('x')</script>\x1b[2J"


def test_a_prompt(prompt_file, tiny, tiny_folder, run):
    status, out, err = run("inspect", prompt_file, "--model", tiny_folder, "--neighbors", 2)
    assert status == 0, err
    tokens = prompt_jax.load_prompt(prompt_file).encoder_tokens.embeddings
    table = np.asarray(tiny.params["embedding"])[: tiny.tokenizer.vocab_size]
    for number, token in enumerate(tokens):
        cosines = table @ token / np.maximum(np.linalg.norm(table, axis=1), 1e-9) / np.linalg.norm(token)
        distances = np.linalg.norm(table - token, axis=1)
        first = next(line for line in out.splitlines() if re.match(rf" +{number}  ", line))
        by_cosine, by_distance = int(cosines.argmax()), int(distances.argmin())
        assert f"{tiny.tokenizer.piece(by_cosine)} {cosines[by_cosine]:.2f}" in first
        assert f"{tiny.tokenizer.piece(by_distance)} {distances[by_distance]:.4g}" in out.split(first)[1]
    assert "labels among the nearest pieces by distance" in out and "loss" not in out
    assert "cosines of the prompts" not in out, "there is one"


def test_several_prompts_and_their_page(prompt_file, ensemble_file, tiny_folder, tmp_path, run):
    argv = ("inspect", prompt_file, ensemble_file, "--model", tiny_folder, "--neighbors", 2)
    status, out, err = run(*argv, "--html", tmp_path / "page.html")
    assert status == 0, err
    for name in (str(prompt_file), f"{ensemble_file}, member 0", f"{ensemble_file}, member 1"):
        assert f"\n{name}\n" in f"\n{out}"
    lines = out[out.index("cosines of the prompts") :].splitlines()[2:5]
    printed = np.array([[float(value) for value in line.split()[-3:]] for line in lines])
    tokens = [prompt_jax.load_prompt(prompt_file).encoder_tokens.embeddings]
    with np.load(ensemble_file) as archive:
        tokens += [archive[f"{i}/encoder_tokens"] for i in range(2)]
    flat = np.stack([own.ravel() / np.linalg.norm(own) for own in tokens])
    np.testing.assert_allclose(printed, flat @ flat.T, atol=0.006)

    text = (tmp_path / "page.html").read_text()
    page = Page(text)
    assert "Inspection of 3 prompts" in page.words and "member 1" in page.words
    assert "--task NAME" in page.words, "how to see what each token does"
    assert page.labeled("svg").count("Norm of each virtual token beside the vocabulary's norms") == 3
    assert page.labeled("svg").count("Cosines, encoder_tokens") == 3
    assert page.labeled("svg").count("Cosine similarity of the prompts") == 1
    assert page.labeled("svg").count("Virtual tokens and vocabulary along two principal components") == 1
    assert [name for name, _ in page.elements].count("details") == 3
    assert "computed from" not in page.words
    run(*argv, "--html", tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text() == text


def test_leaving_out_each_token(prompt_file, sentiment_files, tiny, tiny_folder, tmp_path, run):
    """The reference is each answer's log-probability with the shorter prompt."""
    from prompt_jax.inference.answers import score_labels
    from prompt_jax.inference.batching import Rows

    argv = ("inspect", prompt_file, "--model", tiny_folder, "--data", sentiment_files["test"], "--limit", 4)
    status, out, err = run(*argv, "--html", tmp_path / "page.html")
    assert status == 0, err
    actual = re.search(
        r"loss (\d+\.\d{4}) nats a target token \((\d+) of them in 4 examples of test.jsonl, test\)", out
    )
    loss, tokens = actual.groups()
    effects = re.search(r"most without \d:\n +0 +(.*)\n", out)[1].split()

    rows = [json.loads(line) for line in sentiment_files["test"].read_text().splitlines()]
    rows = [rows[i] for i in sorted(np.random.default_rng(0).permutation(10)[:4])]
    labels = ("negative", "positive")
    expected = [labels.index(row["label"]) for row in rows]
    inputs = [np.array(tiny.tokenizer.input_ids(row["text"]), np.int32) for row in rows]
    count = sum(len(tiny.tokenizer.target_ids(row["label"])) for row in rows)
    assert int(tokens) == count

    def mean_loss(embeddings: np.ndarray) -> float:
        scores = np.array(score_labels(Rows(tiny, Prompt(VirtualTokens(embeddings)), inputs), [labels] * 4))
        return -scores[np.arange(4), expected].sum() / count

    embeddings = prompt_jax.load_prompt(prompt_file).encoder_tokens.embeddings
    whole = mean_loss(embeddings)
    assert float(loss) == pytest.approx(whole, abs=1e-4)
    differences = [mean_loss(np.delete(embeddings, slot, axis=0)) - whole for slot in range(3)]
    assert list(map(float, effects)) == pytest.approx(differences, abs=1e-4)
    page = Page((tmp_path / "page.html").read_text())
    assert "Change of the loss when each token is left out" in page.labeled("svg")
    assert effects[0].replace("-", "−") in page.words and "--task NAME" not in page.words


def test_a_prefix(tiny, tiny_folder, sentiment_files, said, tmp_path, run):
    save_prompt(tmp_path / "x.npz", random_prefix(tiny, 3), dataclasses.replace(said, method="prefix"))
    data = ("--data", sentiment_files["test"], "--limit", 2)
    argv = ("inspect", tmp_path / "x.npz", "--model", tiny_folder, *data, "--html", tmp_path / "page.html")
    status, out, err = run(*argv)
    assert status == 0, err
    for site in ("encoder_self", "decoder_self", "decoder_cross"):
        assert f"{site}, mean norm of a head's" in out and f"between its slots at {site}" in out
    assert "it has no nearest pieces" in out and "most without" in out
    page = Page((tmp_path / "page.html").read_text())
    assert "Mean norm of keys and values in each layer" in page.labeled("svg")
    assert page.labeled("svg").count("Cosines, decoder_cross") == 1 and "no nearest pieces" in page.words
    assert "Nearest pieces of the vocabulary" not in page.words and "Among the vocabulary" not in page.words


def test_without_the_base(prompt_file, sentiment_files, tmp_path, run):
    status, out, err = run("inspect", prompt_file, "--html", tmp_path / "page.html")
    assert status == 0 and "--model" in err + out and "soft_prompt" in out and "cosines " in out
    assert "without the base" in Page((tmp_path / "page.html").read_text()).words
    status, _, err = run("inspect", prompt_file, "--data", sentiment_files["test"])
    assert status == 1 and "if you trust it, say --model" in err, "which was asked for needs the base"


def test_a_strangers_file(tiny, tiny_folder, said, tmp_path, run):
    evil = dataclasses.replace(
        said,
        task=EVIL,
        format=dataclasses.replace(said.format, labels=(EVIL, "good"), template=EVIL + "{text}"),
        settings={EVIL: EVIL},
        scores={EVIL: 1.0},
    )
    save_ensemble(tmp_path / "e.npz", [Prompt(VirtualTokens(np.ones((2, 64), np.float32)))] * 2, [evil] * 2)
    status, out, err = run("inspect", tmp_path / "e.npz", "--model", tiny_folder, "--html", tmp_path / "page.html")
    assert status == 0 and "\x1b" not in out + err
    text = (tmp_path / "page.html").read_text()
    assert "<script" not in text and "\x1b" not in text and "&lt;script&gt;" in text
    Page(text)


def test_errors_name_the_problem(prompt_file, tiny_folder, sentiment_files, tmp_path, run):
    prompt, metadata = read_prompt(prompt_file)
    save_prompt(tmp_path / "o.npz", prompt, PromptMetadata(base=ModelId("elsewhere", None, "sha256:1")))
    save_prompt(tmp_path / "w.npz", Prompt(VirtualTokens(np.ones((2, 8), np.float32))), metadata)
    named = ("--model", tiny_folder)
    for argv, message in (
        ((), "name at least one prompt file"),
        ((prompt_file, prompt_file, *named), "is named twice"),
        ((prompt_file, tmp_path / "o.npz", *named), "one base runs all members"),
        ((prompt_file, tmp_path / "w.npz", *named), "of width 64 and"),
        ((prompt_file, "--template", "{text}", *named), "--template say how --data is read"),
        ((prompt_file, "--limit", 0, *named), "--limit must be positive, not 0"),
        ((prompt_file, "--data", tmp_path / "none.jsonl", *named), "none.jsonl"),
    ):
        status, _, err = run("inspect", *argv)
        assert status == 1 and message in err and "Traceback" not in err, (argv, err)


def test_inspect_without_the_base(prompt_file, run):
    status, out, err = run("inspect", prompt_file)
    assert status == 0 and "--model" in err + out and "soft_prompt" in out
