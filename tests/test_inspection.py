import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from prompt_jax import inspection
from prompt_jax.inspection import (
    describe,
    inspect,
    inspect_tokens,
    nearest,
    norm_range,
    printable,
    prompt_similarity,
    row_norms,
)
from prompt_jax.models.hub import Model
from prompt_jax.models.prompt import Prompt, VirtualTokens
from prompt_jax.models.t5 import T5Config
from prompt_jax.models.tokenizer import Tokenizer
from prompt_jax.prompts.files import Base, PromptMetadata
from prompt_jax.task_format import TaskFormat

# Directions in the plane; the last row is beyond the vocabulary, and lies closest to the first token with [1, 1].
TABLE = np.array([[0, 0], [2, 0], [0, 3], [1, 1], [-4, 0], [5, 5]], np.float32)
PIECES = ["<pad>", "▁right", "▁up", "▁both", "<unk>"]
TOKENS = np.array([[10, 10], [0, -1], [0.3, 0.1]], np.float32)


def _tokenizer() -> Tokenizer:
    kinds, proto = ModelProto.SentencePiece, ModelProto()
    for piece in PIECES:
        kind = {"<pad>": kinds.CONTROL, "<unk>": kinds.UNKNOWN}.get(piece, kinds.NORMAL)
        proto.pieces.add(piece=piece, score=0.0, type=kind)
    return Tokenizer(proto.SerializeToString(), extra_ids=0)


MODEL = Model(
    name="tiny",
    revision="abc",
    params={"embedding": jnp.asarray(TABLE)},
    config=T5Config(6, 2, 2, 2, 1, 1, 1),
    tokenizer=_tokenizer(),
    fingerprint="sha256:0123456789abcdef0123",
)
METADATA = PromptMetadata(
    base=Base("tiny", "abc", MODEL.fingerprint),
    method="soft_prompt",
    initialization="labels",
    task="directions",
    format=TaskFormat("where: {text}", labels=("up", "down")),
    step=30,
    scores={"accuracy": 0.5, "invalid": 0.25},
)


@pytest.mark.parametrize("block", [1, 2, 100])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_nearest_by_hand(monkeypatch, block, dtype):
    monkeypatch.setattr(inspection, "_BLOCK", block)
    indices, cosines = nearest(TOKENS, jnp.asarray(TABLE, dtype), 5, 3)
    # the third token has the cosines 0, 3, 1, 4 / sqrt(2), -3 over sqrt(10); ties go to the lower row
    half, tenth = 0.5**0.5, 0.1**0.5
    assert indices.tolist() == [[3, 1, 2], [0, 1, 4], [1, 3, 2]]
    expected = [[1, half, half], [0, 0, 0], [3 * tenth, 4 * tenth * half, tenth]]
    np.testing.assert_allclose(cosines, expected, atol=1e-6)


def test_nearest_finds_at_most_the_vocabulary():
    assert nearest(TOKENS, TABLE, 2, 5)[0].shape == (3, 2)


def test_nearest_of_values_near_overflow():
    indices, cosines = nearest(np.float32([[3e38, 3e38]]), TABLE, 5, 1)
    assert indices.tolist() == [[3]] and cosines[0, 0] == pytest.approx(1)


def test_widths_that_differ():
    with pytest.raises(ValueError, match="have width 3; tiny has 2"):
        inspect(Prompt(VirtualTokens(np.zeros((1, 3), np.float32))), MODEL)


def test_norms():
    assert row_norms(TABLE, 5).tolist() == pytest.approx([0, 2, 3, 2**0.5, 4])
    found = norm_range(np.arange(101.0))
    assert (found.mean, found.low, found.high) == (50, 5, 95)


def test_inspection():
    found = inspect_tokens(TOKENS, TABLE, PIECES.__getitem__, 5, 2)
    assert [[near.piece for near in token.neighbours] for token in found.tokens] == [
        ["▁both", "▁right"],
        ["<pad>", "▁right"],
        ["▁right", "▁both"],
    ]
    assert [token.norm for token in found.tokens] == pytest.approx([200**0.5, 1, 0.1**0.5])
    assert found.vocabulary.mean == pytest.approx((2 + 3 + 2**0.5 + 4) / 5)


def test_masked_slots_are_left_out():
    prompt = Prompt(VirtualTokens(TOKENS, np.array([False, True, True])))
    assert inspect(prompt, MODEL, 1).tokens == inspect_tokens(TOKENS[1:], TABLE, PIECES.__getitem__, 5, 1).tokens


def test_without_a_tokenizer_pieces_are_numbers():
    found = inspect(Prompt(VirtualTokens(TOKENS)), dataclasses.replace(MODEL, tokenizer=None), 1)
    assert found.tokens[0].neighbours[0].piece in ("#3", "#5")  # parallel, so their cosines differ by rounding


def test_a_prompt_without_virtual_tokens():
    with pytest.raises(ValueError, match="the prompt has no virtual tokens"):
        inspect(Prompt(), MODEL)


def test_describe():
    text = describe("runs/x/best.npz", Prompt(VirtualTokens(TOKENS)), METADATA, MODEL, 2)
    assert text.splitlines() == [
        "runs/x/best.npz",
        "",
        "  base            tiny",
        "  revision        abc",
        "  fingerprint     sha256:0123456789ab…",
        "  method          soft_prompt",
        "  initialisation  labels",
        "  placement       before the input",
        "  length          3 virtual tokens of width 2",
        "  task            directions",
        "  template        where: {text}",
        "  labels          up, down",
        "  step            30",
        "  scores          accuracy 0.5000, invalid 0.2500",
        "  norms           mean 5.153, from 0.3162 to 14.14",
        "                  the vocabulary's: mean 2.083, 90% of them between 0.2828 and 3.8",
        "",
        "  token       norm  nearest pieces, with cosines",
        "      0      14.14  ▁both 1.00   ▁right 0.71",
        "      1          1  <pad> 0.00   ▁right 0.00",
        "      2     0.3162  ▁right 0.95  ▁both 0.89",
    ]


def test_describe_without_the_base():
    text = describe("best.npz", Prompt(VirtualTokens(TOKENS)), METADATA, None)
    assert "norms           mean 5.153" in text
    assert "--model NAME" in text and "▁" not in text


def test_describe_with_another_base():
    text = describe(
        "best.npz",
        Prompt(VirtualTokens(TOKENS)),
        METADATA,
        dataclasses.replace(MODEL, fingerprint="sha256:other"),
    )
    assert "not the prompt's own base" in text


def test_describe_a_file_that_says_nothing():
    text = describe("prompt.npy", Prompt(VirtualTokens(TOKENS)), PromptMetadata(), None)
    assert text.count("not recorded") == 10


def test_describe_a_hostile_file():
    evil = "\x1b[2J\r\n\u202e\ud800 " + "long " * 100_000
    metadata = PromptMetadata(
        base=Base(evil, evil, evil),
        method=evil,
        initialization=evil,
        task=evil,
        format=TaskFormat("{text}" + evil, labels=(evil, *map(str, range(1000)))),
        step=10**4000,
        scores={evil: 10**400, "nan": float("nan"), **{str(i): i for i in range(1000)}},
    )
    text = describe(f"{evil[:9]}.npz", Prompt(VirtualTokens(TOKENS)), metadata, MODEL)
    assert all(character == "\n" or character.isprintable() for character in text)
    assert r"\x1b[2J\r\n\u202e\ud800" in text
    assert "and 989 more" in text
    assert len(text) < 5000
    text.encode()


def test_printable():
    assert printable("plain ▁text\t") == r"plain ▁text\t"
    assert printable("abcdef", 6) == "abcdef"
    assert printable("abcdefg", 6) == "abcde…"
    assert printable("\x1b" * 6, 6) == r"\x1b\…"


def _prompt(*rows: list[float], mask: list[bool] | None = None) -> Prompt:
    return Prompt(VirtualTokens(np.array(rows, np.float32), None if mask is None else np.array(mask)))


def test_similarity_of_one_length_is_of_whole_prompts():
    """Token by token: the same tokens in another order are another prompt."""
    found = prompt_similarity(
        [_prompt([3, 0], [0, 4]), _prompt([0, 4], [3, 0]), _prompt([6, 0], [0, 8]), _prompt([-3, 0], [0, 0])]
    )
    np.testing.assert_allclose(found[0], [1, 0, 1, -0.6], atol=1e-12)
    np.testing.assert_array_equal(found, found.T)


def test_similarity_of_different_lengths_is_of_mean_tokens():
    unused = _prompt([100, 0], [0, 2], mask=[False, True])  # its length is 1
    found = prompt_similarity([_prompt([1, 0], [0, 1]), _prompt([1, 1], [1, 1], [4, 4]), unused])
    half = 0.5**0.5
    np.testing.assert_allclose(found, [[1, 1, half], [1, 1, half], [half, half, 1]], atol=1e-12)


def test_similarity_of_extreme_values():
    """Near the largest float32, and nothing at all."""
    found = prompt_similarity([_prompt([3e38, 3e38]), _prompt([0, 0]), _prompt([1, 1])])
    np.testing.assert_allclose(found, [[1, 0, 1], [0, 0, 0], [1, 0, 1]], atol=1e-12)


def test_similarity_of_what_cannot_be_compared():
    with pytest.raises(ValueError, match=r"different widths: \[2, 3\]"):
        prompt_similarity([_prompt([1, 2]), _prompt([1, 2, 3])])
    with pytest.raises(ValueError, match="the prompt is empty"):
        prompt_similarity([Prompt()])
