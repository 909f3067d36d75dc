"""Byte-level BPE tokenizers of GPT-2 and BART, with Hugging Face's ids.

Written in Rust by Hugging Face's `tokenizers`, without Transformers. Special tokens that stand in a text are text.
"""

import dataclasses
import functools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, SupportsInt

from prompt_jax.models.checkpoint_files import CheckpointError

BYTE_PAIR_FILES = ("vocab.json", "merges.txt")  # what older folders have in place of tokenizer.json


@dataclasses.dataclass(frozen=True)
class BytePairTokenizer:
    """Text to ids and back. `definition` is the content of a tokenizer.json.

    Attributes:
      eos_id: the end token.
      pad_id: padding; GPT-2 has none, and its end token stands for it.
      start: what comes before every text, as BART's <s>.
      causal: whether source and target are one text. Then the source has no end token, since the start token of the
        target follows it, and both begin with a space, as in Li and Liang 2021: GPT-2 has other tokens for a word that
        follows another.
    """

    definition: str = dataclasses.field(repr=False)
    eos_id: int
    pad_id: int
    start: tuple[int, ...] = ()
    causal: bool = False

    @functools.cached_property
    def _tokenizer(self) -> Any:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_str(self.definition)
        tokenizer.encode_special_tokens = True
        tokenizer.no_truncation()  # which files may have been saved with
        tokenizer.no_padding()
        return tokenizer

    def encode(self, text: str) -> list[int]:
        """The text's ids, without any special token."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def input_ids(self, text: str) -> list[int]:
        """A source's ids, as the model is to read them."""
        return self.encode(f" {text}") if self.causal else self.target_ids(text)

    def target_ids(self, text: str) -> list[int]:
        """A target's ids, as the model is to write them, the end token included."""
        return [*self.start, *self.encode(f" {text}" if self.causal else text), self.eos_id]

    def decode(self, ids: Iterable[SupportsInt]) -> str:
        """The text of ids up to the first end token, without special tokens."""
        known = list(map(int, ids))
        if self.eos_id in known:
            known = known[: known.index(self.eos_id)]
        special = {self.pad_id, *self.start}
        text = self._tokenizer.decode([index for index in known if index not in special], skip_special_tokens=False)
        return text.removeprefix(" ") if self.causal else text

    def piece(self, index: int) -> str:
        """The piece with that id. Embedding tables may be padded beyond the pieces: `<unused_50257>`."""
        piece = self._tokenizer.id_to_token(int(index))
        return f"<unused_{index}>" if piece is None else piece

    @property
    def vocab_size(self) -> int:
        """The number of pieces; the model's embedding table may have more rows."""
        return self._tokenizer.get_vocab_size(with_added_tokens=True)


def load_byte_pair(folder: Path, model_type: str, config: Any) -> BytePairTokenizer | None:
    """The tokenizer of a GPT-2 or BART folder: `tokenizer.json`, else `vocab.json` and `merges.txt`.

    Args:
      folder: the model's.
      model_type: "gpt2" or "bart".
      config: the model's; its special ids are the tokenizer's.

    Returns:
      None if the folder has neither.

    Raises:
      CheckpointError: there is one that cannot be used.
    """
    whole, parts = folder / "tokenizer.json", [folder / name for name in BYTE_PAIR_FILES]
    if whole.is_file():
        definition, source = whole.read_bytes().decode("utf-8", errors="replace"), whole
    elif all(part.is_file() for part in parts):
        definition, source = _from_parts(*parts), parts[0]
    else:
        return None
    causal = model_type == "gpt2"
    # BART's <s>. Its decoder starts with </s>, and every target with <s>.
    start = () if causal else (config.bos_id,)
    tokenizer = BytePairTokenizer(definition, config.eos_id, config.pad_id, start, causal)
    try:
        known = tokenizer.piece(config.eos_id)
        if (kind := json.loads(definition)["model"].get("type", "BPE")) != "BPE":
            raise ValueError(f"its model is of type {kind}")
    except Exception as error:  # the Rust library raises no other class
        raise CheckpointError(f"{source} is no tokenizer of byte pairs: {error}") from error
    if known.startswith("<unused_"):
        raise CheckpointError(f"{source} has no token {config.eos_id}, which config.json names as the end token")
    return tokenizer


def _from_parts(vocab: Path, merges: Path) -> str:
    from tokenizers import ByteLevelBPETokenizer

    try:
        return ByteLevelBPETokenizer(str(vocab), str(merges)).to_str()
    except Exception as error:  # as above
        raise CheckpointError(f"{vocab} and {merges.name} are no byte pairs: {error}") from error
