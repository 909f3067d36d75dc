import dataclasses

import numpy as np

from directions import MODEL, TOKENS
from prompt_jax.checkpoints.load import Model
from prompt_jax.inspection.ablation import Ablation
from prompt_jax.inspection.findings import collect_findings
from prompt_jax.inspection.text import describe, numbers, printable
from prompt_jax.models.prompt import Prefix, Prompt, VirtualTokens
from prompt_jax.prompt_files.io import ModelId, PromptMetadata
from prompt_jax.task_format import TaskFormat

METADATA = PromptMetadata(
    base=ModelId("tiny", "abc", MODEL.fingerprint),
    method="soft_prompt",
    initialization="labels",
    task="directions",
    format=TaskFormat("where: {text}", labels=("up", "down")),
    step=30,
    scores={"accuracy": 0.5, "invalid": 0.25},
)


def text_of(prompt: Prompt, metadata: PromptMetadata, model: Model | None, **options) -> str:
    return describe(collect_findings(options.pop("name", "best.npz"), prompt, metadata, model, **options), model)


def test_describe():
    ablation = Ablation("9 examples of files, test", 18, 0.5, np.array([0.75, 0.49996, 0.25]))
    text = text_of(Prompt(VirtualTokens(TOKENS)), METADATA, MODEL, name="runs/x/best.npz", k=2, ablation=ablation)
    assert text.splitlines() == [
        "runs/x/best.npz",
        "",
        "  base            tiny",
        "  revision        abc",
        "  fingerprint     sha256:0123456789ab…",
        "  method          soft_prompt",
        "  initialization  labels",
        "  placement       before the input",
        "  length          3 virtual tokens of width 2",
        "  task            directions",
        "  template        where: {text}",
        "  labels          up, down",
        "  step            30",
        "  scores          accuracy 0.5000, invalid 0.2500",
        "  norms           mean 5.153, from 0.3162 to 14.14",
        "                  the vocabulary's: mean 2.083, 90% of them between 0.2828 and 3.8",
        "  cosines         between its tokens: mean -0.04, from -0.71 (0, 1) to 0.89 (0, 2)",
        "",
        "  loss 0.5000 nats a target token (18 of them in 9 examples of files, test)",
        "  by how much it is higher without each slot; most without 0:",
        "      0  +0.2500  -0.0000  -0.2500",
        "",
        "  token       norm  nearest pieces by cosine, and below them by Euclidean distance",
        "      0      14.14  ▁both 1.00    ▁right 0.71",
        "                    ▁up 12.21     ▁both 12.73",
        "      1          1  <pad> 0.00    ▁right 0.00",
        "                    <pad> 1       ▁right 2.236",
        "      2     0.3162  ▁right 0.95   ▁both 0.89",
        "                    <pad> 0.3162  ▁both 1.14",
        "",
        "  labels among the nearest pieces by cosine: none",
        "  labels among the nearest pieces by distance: at 1 of 3 tokens, 16.7% of the pieces",
        "    up: at 0",
        "    down: at none",
    ]


def test_describe_without_the_base():
    text = text_of(Prompt(VirtualTokens(TOKENS)), METADATA, None)
    assert "norms           mean 5.153" in text and "cosines " in text
    assert "--model NAME" in text and "▁" not in text


def test_describe_with_another_base():
    other = dataclasses.replace(MODEL, fingerprint="sha256:other")
    assert "not the prompt's base" in text_of(Prompt(VirtualTokens(TOKENS)), METADATA, other)


def test_describe_a_prefix():
    """Mean norms by hand: each head's keys are (3, 4); its values are (0, 1) in the first layer and 0 in the second."""
    keys = np.broadcast_to(np.float32([3, 4]), (2, 3, 2, 2))
    values = np.zeros((2, 3, 2, 2), np.float32)
    values[0, ..., 1] = 1
    text = text_of(Prompt(decoder_self=Prefix(keys, values, np.array([False, True, True]))), METADATA, MODEL)
    assert "2 keys and values at decoder_self in each of 2 layers, 2 heads of width 2" in text
    assert "      0          5          1\n      1          5          0" in text
    assert "between its slots at decoder_self: mean 1.00, from 1.00 (0, 1) to 1.00 (0, 1)" in text
    assert text.endswith("not embeddings, so it has no nearest pieces.")


def test_describe_a_file_without_metadata():
    text = text_of(Prompt(VirtualTokens(TOKENS)), PromptMetadata(), None)
    assert text.count("not recorded") == 10


def test_describe_a_hostile_file():
    evil = "\x1b[2J\r\n\u202e\ud800 " + "long " * 100_000
    metadata = PromptMetadata(
        base=ModelId(evil, evil, evil),
        method=evil,
        initialization=evil,
        task=evil,
        format=TaskFormat("{text}" + evil, labels=(evil, *map(str, range(1000)))),
        step=10**4000,
        scores={evil: 10**400, "nan": float("nan"), **{str(i): i for i in range(1000)}},
        settings={evil: evil},
    )
    text = text_of(Prompt(VirtualTokens(TOKENS)), metadata, MODEL, name=f"{evil[:9]}.npz")
    assert all(character == "\n" or character.isprintable() for character in text)
    assert r"\x1b[2J\r\n\u202e\ud800" in text
    assert "and 989 more" in text
    assert len(text) < 6000
    text.encode()


def test_printable():
    assert printable("plain ▁text\t") == r"plain ▁text\t"
    assert printable("abcdef", 6) == "abcdef"
    assert printable("abcdefg", 6) == "abcde…"
    assert printable("\x1b" * 6, 6) == r"\x1b\…"


def test_numbers_are_ten_a_line():
    lines = numbers(np.arange(-1.0, 11.0), ".1f")
    assert [line.split() for line in lines] == [["0", "-1.0", *map(str, np.arange(9.0))], ["10", "9.0", "10.0"]]
    assert numbers([], ".1f") == []
