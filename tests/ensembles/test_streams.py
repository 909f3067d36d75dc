"""Mixed streams, votes and exported members, through the command line."""

import dataclasses
import io
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from prompt_jax import Prompt, PromptMetadata, VirtualTokens, load_prompt, save_ensemble, save_prompt
from prompt_jax.cli import main
from prompt_jax.ensembles.streams import Line, Mixed, read_named
from prompt_jax.ensembles.vote import comparison, vote_answers
from prompt_jax.inference import answers
from prompt_jax.inference.batching import Rows
from prompt_jax.inference.decoding import _generate, _score
from prompt_jax.prompt_files.io import ModelId, read_prompts
from prompt_jax.task_format import TaskFormat


def run(capsys, *argv) -> tuple[int, str, str]:
    status = main([str(word) for word in argv])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


@pytest.fixture
def mixed_files(tiny, tmp_path, monkeypatch) -> dict[str, Path]:
    """Write prompts of three tasks and lengths to the working directory. The last file is an ensemble."""
    monkeypatch.chdir(tmp_path)
    base = ModelId(tiny.name, tiny.revision, tiny.fingerprint)
    rng = np.random.default_rng(5)

    def prompt(length: int) -> Prompt:
        return Prompt(VirtualTokens(rng.normal(size=(length, 64)).astype(np.float32)))

    def metadata(*args, **lengths) -> PromptMetadata:
        return PromptMetadata(base=base, format=TaskFormat(*args, **lengths))

    sentiment = metadata("{text}", ("negative", "positive"), target_length=12)
    save_prompt(Path("sentiment.npz"), prompt(3), sentiment)
    save_prompt(Path("rte.npz"), prompt(5), metadata("{a} and {b}", ("good", "bad"), target_length=4, input_length=20))
    votes = [metadata("film: {text}", target_length=7)] * 3
    save_ensemble(Path("vote.npz"), [prompt(2), prompt(4), prompt(1)], votes)
    return {name: tmp_path / f"{name}.npz" for name in ("sentiment", "rte", "vote")}


STREAM = [
    {"prompt": "sentiment", "text": "a good film"},
    {"prompt": "rte", "a": "the plot is good", "b": "the cast is great, and the jokes are old"},
    {"prompt": None, "text": "a bad film, dull and long"},
    {"prompt": "vote/2", "text": "great fun"},
    {"prompt": "sentiment", "text": "no fun, bad acting and a cold ending"},
    {"prompt": "vote/0", "text": "great fun"},
    {"prompt": "rte", "a": "good", "b": "bad"},
]


@pytest.mark.slow
def test_a_mixed_stream_is_answered_in_order(mixed_files, tiny, tiny_folder, capsys, monkeypatch):
    """Each answer is the one that the line's prompt gives alone, whatever the batches."""
    base = ("--model", tiny_folder)
    for number in (0, 2):
        assert run(capsys, "export", "vote.npz", f"vote-{number}.npz", "--member", number)[0] == 0
    expected = []
    for line in STREAM:
        if line["prompt"] is None:
            inputs, _ = answers.tokenize(tiny, [line["text"]], 512)
            given = answers.generate_answers(Rows(tiny, None, inputs), 16)
            expected.append({"prompt": None, "input": line["text"], "prediction": given.texts[0], "label_scores": None})
            continue
        name = line["prompt"].replace("/", "-")
        text = json.dumps(line) if line["prompt"] == "rte" else line["text"]
        status, out, err = run(capsys, "predict", f"{name}.npz", text, *base, "--json")
        assert status == 0, err
        expected.append({"prompt": line["prompt"], **json.loads(out)})
    assert [row["label_scores"] is None for row in expected] == [False, False, True, True, False, True, False]

    argv = ("predict", "--prompts", "sentiment.npz,rte.npz,vote.npz", *base)
    text = "".join(json.dumps(line) + "\n" for line in STREAM)
    Path("lines.jsonl").write_text(text)
    Path("lines.txt").write_text(text)
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    for more in (
        (),
        ("--input", "lines.jsonl"),
        ("--input", "lines.txt", "--batch-size", "3"),
        tuple(json.dumps(line) for line in STREAM),
    ):
        status, out, err = run(capsys, *argv[:3], *more, *argv[3:], "--json")
        assert status == 0, err
        rows = [json.loads(line) for line in out.splitlines()]
        assert [list(row) for row in rows] == [["prompt", "input", "prediction", "label_scores"]] * len(STREAM)
        for row, wanted in zip(rows, expected, strict=True):
            scores, wanted_scores = row.pop("label_scores"), {**wanted}.pop("label_scores")
            assert row == {name: value for name, value in wanted.items() if name != "label_scores"}
            assert scores == (None if wanted_scores is None else pytest.approx(wanted_scores, abs=2e-4))
        assert "1 inputs were truncated to the input length" in err
    plain = run(capsys, *argv, "--input", "lines.jsonl")[1]
    assert plain.splitlines() == [row["prediction"] for row in expected]


def test_errors_of_a_mixed_stream(mixed_files, tiny, tiny_folder, capsys):
    own, tokens = ModelId(tiny.name, None, tiny.fingerprint), np.ones((2, 64), np.float32)
    after = Prompt(VirtualTokens(tokens, placement="after"))
    save_prompt("after.npz", after, PromptMetadata(base=own))
    save_prompt("takes.npz", Prompt(VirtualTokens(tokens)), PromptMetadata(base=own, format=TaskFormat("{prompt}")))
    elsewhere = PromptMetadata(base=ModelId("elsewhere", None, "sha256:1"))
    save_prompt("elsewhere.npz", Prompt(VirtualTokens(tokens)), elsewhere)
    save_prompt("other/rte.npz", Prompt(VirtualTokens(tokens)), PromptMetadata(base=own))
    good = '{"prompt": "rte", "a": "x", "b": "y"}'
    for files, words, message in (
        (
            "sentiment.npz,rte.npz",
            [good, '{"prompt": "sentimental", "text": "x"}'],
            "input 2: there is no prompt 'senti",
        ),
        ("sentiment.npz,rte.npz", ['{"prompt": "sentimental", "text": "x"}'], "Did you mean 'sentiment'?"),
        (
            "sentiment.npz,vote.npz",
            ['{"prompt": "vote", "text": "x"}'],
            "Did you mean 'vote/2' or 'vote/1' or 'vote/0'?",
        ),
        ("sentiment.npz,rte.npz", ['{"prompt": "qqq", "text": "x"}'], "There are 'sentiment', 'rte'"),
        ("sentiment.npz,rte.npz", ['{"prompt": 3, "text": "x"}'], "input 1: there is no prompt 3"),
        ("sentiment.npz,rte.npz", ['{"text": "x"}'], "input 1: no field 'prompt'"),
        ("sentiment.npz,rte.npz", ["x"], 'input 1: expected a JSON object with "prompt" and the columns'),
        ("sentiment.npz,rte.npz", ["[" * 100_000], "input 1: expected a JSON object"),
        ("sentiment.npz,rte.npz", ["[]"], "not a JSON list"),
        ("sentiment.npz,rte.npz", ['{"prompt": "rte", "a": "x"}'], "input 1: no column 'b'"),
        ("sentiment.npz,rte.npz", ['{"prompt": null, "a": "x"}'], "input 1: no column 'text'"),
        ("rte.npz,other/rte.npz", [good], "rte.npz and other/rte.npz would both be named 'rte'"),
        ("a=rte.npz,a=sentiment.npz", [good], "rte.npz and sentiment.npz would both be named 'a'"),
        ("a=rte.npz", [good], "there is no prompt 'rte'. There are 'a'"),
        ("a=", [good], "no such file: a="),
        ("rte.npz,takes.npz", [good], "takes.npz: its template has a column 'prompt'"),
        ("rte.npz,after.npz", [good], "rte.npz has its virtual tokens before the input and after.npz after it"),
        (
            "vote.npz,after.npz",
            [good],
            "vote.npz, member 0 has its virtual tokens before the input and after.npz after",
        ),
        ("rte.npz,none.npz", [good], "no such file: none.npz"),
        (",", [good], "--prompts takes prompt files"),
        ("rte.npz", [good, "--template", "{x}"], "no --template or --labels: each prompt has its own"),
    ):
        status, _, err = run(capsys, "predict", "--prompts", files, *words, "--model", tiny_folder)
        assert status == 1 and message in err, (files, words, err)
    status, _, err = run(capsys, "predict", "--prompts", "rte.npz,elsewhere.npz", good, "--model", tiny_folder)
    assert status == 1 and "rte.npz was trained on" in err and "elsewhere.npz on elsewhere (sha256:1)" in err
    argv = ("predict", "--prompts", "rte.npz,elsewhere.npz", good, "--model", tiny_folder, "--allow-other-base")
    assert run(capsys, *argv)[0] == 0
    status, _, err = run(capsys, "predict")
    assert status == 1 and "name a prompt file" in err


def test_files_of_one_stem_are_mixed_under_other_names(mixed_files, tiny_folder, capsys):
    Path("lr=0.3").mkdir()
    prompts, metadata = zip(*read_prompts("vote.npz"), strict=True)
    save_prompt("lr=0.3/best.npz", prompts[0], metadata[0])
    save_ensemble("other/best.npz", prompts[1:], metadata[1:])
    argv = ("--model", tiny_folder)
    files = "lr=0.3/best.npz,again=lr=0.3/best.npz,rest=other/best.npz"
    lines = [json.dumps({"prompt": name, "text": "a good film"}) for name in ("best", "again", "rest/0", "rest/1")]
    status, out, err = run(capsys, "predict", "--prompts", files, *lines, *argv)
    assert status == 0, err
    names = ("vote/0", "vote/0", "vote/1", "vote/2")
    lines = [json.dumps({"prompt": name, "text": "a good film"}) for name in names]
    assert run(capsys, "predict", "--prompts", "vote.npz", *lines, *argv)[1] == out


def test_compiled_programs_do_not_depend_on_the_prompts_of_a_batch(mixed_files, tiny, monkeypatch):
    """Tasks with answers of 12, 4 and 7 tokens and labels of different lengths, and the base alone."""
    mixed = Mixed(tiny, read_named(["sentiment.npz", "rte.npz", "vote.npz"]))
    shapes: dict[str, list] = {"generate_scored": [], "score": []}

    def spy(name):
        real = getattr(answers, name)

        def called(params, config, batch, prompt, *targets, **options):
            static = targets[0].shape if targets else options["max_new_tokens"]
            shapes[name].append((batch["inputs"].shape, static))
            return real(params, config, batch, prompt, *targets, **options)

        monkeypatch.setattr(answers, name, called)

    for name in shapes:
        spy(name)
    compiled = _generate, _score
    jax.clear_caches()  # other tests may have compiled these programs
    before = [each._cache_size() for each in compiled]
    for prompts in (("sentiment", "rte"), ("rte", "rte"), (None, "vote/1"), ("vote/0", "rte"), ("rte", "sentiment")):
        answered = mixed([Line(name, "a good film") for name in prompts], 2, rank=True)
        labels = [{"rte": {"good", "bad"}, "sentiment": {"negative", "positive"}}.get(name) for name in prompts]
        assert [row.label_scores and set(row.label_scores) for row in answered] == labels
    assert len(shapes["generate_scored"]) == 5 and len(set(shapes["generate_scored"])) == 1
    # Rows of both tasks are one batch; the fourth has one row with labels.
    assert [rows for (rows, _), _ in shapes["score"]] == [2, 2, 1, 2]
    assert len({(length, labels) for (_, length), labels in shapes["score"]}) == 2, "2 rows, or 1"
    assert [each._cache_size() - old for each, old in zip(compiled, before, strict=True)] == [1, 2]


@pytest.mark.slow
def test_an_ensemble_answers_with_its_vote(mixed_files, tiny, tiny_folder, capsys):
    texts = ["a good film", "great fun", "the plot is bad", "a cold ending"]
    status, out, err = run(capsys, "predict", "vote.npz", *texts, "--model", tiny_folder, "--batch-size", "3")
    assert status == 0, err
    inputs, _ = answers.tokenize(tiny, [f"film: {text}" for text in texts], 512)
    members = [answers.generate_answers(Rows(tiny, prompt, inputs), 7) for prompt, _ in read_prompts("vote.npz")]
    given, sums = [member.texts for member in members], np.stack([member.log_probabilities for member in members])
    speakers = vote_answers(given, sums, comparison(()))
    assert out.splitlines() == [given[member][i] for i, member in enumerate(speakers)]

    labels = ("--labels", "negative", "positive", "--json")
    status, out, err = run(capsys, "predict", "vote.npz", *texts, "--model", tiny_folder, *labels)
    assert status == 0, err
    for line in map(json.loads, out.splitlines()):
        assert sum(np.exp(list(line["label_scores"].values()))) == pytest.approx(1, abs=1e-4)

    prompts, metadata = zip(*read_prompts("vote.npz"), strict=True)
    own, rest = metadata[0], ("--model", tiny_folder)
    for others, numbers in (
        ([own, dataclasses.replace(own, format=TaskFormat("{review}"))], (0, 2)),
        ([dataclasses.replace(own, task="a"), dataclasses.replace(own, task="b")], (1, 2)),  # of one format
    ):
        save_ensemble("bank.npz", prompts, [dataclasses.replace(own, task=None), *others])
        status, _, err = run(capsys, "predict", "bank.npz", *texts, *rest)
        assert status == 1 and "members {} and {} of bank.npz are for different tasks and".format(*numbers) in err
    status, out, err = run(capsys, "predict", "--prompts", "x=bank.npz", '{"prompt": "x/1", "text": "fun"}', *rest)
    assert status == 0 and out, err


def test_a_member_is_exported(mixed_files, capsys):
    assert run(capsys, "export", "vote.npz", "one.npz", "--member", 1)[0] == 0
    own, metadata = read_prompts("vote.npz")[1]
    (again,) = read_prompts("one.npz")
    np.testing.assert_array_equal(again[0].encoder_tokens.embeddings, own.encoder_tokens.embeddings)
    assert again[1] == metadata and load_prompt("one.npz").encoder_tokens.embeddings.shape == (4, 64)
    assert run(capsys, "export", "vote.npz", "one.npy", "--member", 1)[0] == 0
    np.testing.assert_array_equal(np.load("one.npy"), own.encoder_tokens.embeddings)
    assert run(capsys, "export", "vote.npz", "all.npz")[0] == 0
    assert Path("all.npz").read_bytes() == Path("vote.npz").read_bytes()
    for name in ("all", "all.npy", "all.bin"):
        assert run(capsys, "export", "vote.npz", name, "--format", "npz")[0] == 0
        assert Path(name).read_bytes() == Path("vote.npz").read_bytes()
    assert run(capsys, "export", "one.npz", "again.npz", "--member", 0)[0] == 0
    for argv, message in (
        (("vote.npz", "x.npz", "--member", "3"), "--member 3: vote.npz has 3 prompts: 0"),
        (("vote.npz", "x.npz", "--member", "-1"), "--member -1"),
        (("rte.npz", "x.npz", "--member", "1"), "--member 1: rte.npz has a single prompt, number 0"),
        (("vote.npz", "x.npy"), "an ensemble of 3 prompts and a .npy holds one: say which with --member, from 0 to 2"),
        (("vote.npz", "x", "--format", "npy"), "say which with --member"),
        (("vote.npz", "x.bin"), "an ensemble is a .npz"),
        (("vote.npz", "x.npz", "--format", "npy"), "say which with --member"),
    ):
        status, _, err = run(capsys, "export", *argv)
        assert status == 1 and message in err, err
    assert not list(Path().glob("x*"))
