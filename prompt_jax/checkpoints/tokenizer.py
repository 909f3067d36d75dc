"""A checkpoint's tokenizer: Transformers' `AutoTokenizer`, with control tokens and a check of ids added.

Ids and decoded text are those of `AutoTokenizer`. Control tokens ("special tokens" in Transformers, such as `</s>`,
`<mask>` or `<|user|>`) are read as tokens where a template marks them (`prompt_jax.control_tokens`) and as plain text
everywhere else. An id that the model's embedding table does not have is an error.
"""

import contextlib
import functools
import json
import logging
import re
import reprlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, SupportsInt

from prompt_jax.checkpoints.files import check_text_file, one_line, read_json
from prompt_jax.control_tokens import CLOSE, OPEN, keep_marks, mark
from prompt_jax.errors import CheckpointError

# The files of tokenizers; a model on the Hub has some of them.
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("spiece.model", "tokenizer.model", "vocab.json", "merges.txt", "vocab.txt", "chat_template.jinja"),
)
# A folder without any of these has no tokenizer.
_VOCABULARIES = {
    *("tokenizer.json", "tokenizer_config.json", "spiece.model", "tokenizer.model", "vocab.json", "vocab.txt"),
}


class Tokenizer:
    """Text to ids and back.

    Attributes:
      transformers: the tokenizer from `AutoTokenizer`.
      eos_id: the id that ends a target.
      end_ids: the ids that end a generated answer, `eos_id` among them.
      pad_id: padding. GPT-2 has none and uses its end token.
      rows: number of rows of the model's embedding table; every id is smaller.
      causal: whether source and target are one text. If so, the source has no end token, since the start token of the
        target follows it.
      leading_space: whether source and target of a causal model begin with a space and without other tokens, as in Li
        and Liang (2021), because GPT-2 tokenizes a word differently after a space.
    """

    def __init__(
        self,
        transformers: Any,
        *,
        eos_id: int,
        end_ids: Sequence[int],
        pad_id: int,
        rows: int,
        causal: bool = False,
        leading_space: bool = False,
    ):
        self.transformers, self.eos_id, self.pad_id, self.rows, self.causal = transformers, eos_id, pad_id, rows, causal
        self.leading_space = leading_space
        self.end_ids = frozenset(end_ids) | {eos_id}
        self._fast: Any = getattr(transformers, "backend_tokenizer", None)

    def encode(self, text: str) -> list[int]:
        """Return a text's ids, without the special tokens around it.

        Raises:
          CheckpointError: an id that the model's embedding table does not have.
        """
        marked = keep_marks(self._control, text)
        ids = self._read(marked) if self._fast else self._slow(marked)
        if (highest := max(ids, default=0)) >= self.rows:
            raise CheckpointError(
                f"the tokenizer has the token {self.piece(highest)!r} with the id {highest}, and the model's embedding "
                f"table has {self.rows} rows (ids 0 to {self.rows - 1}): use the tokenizer of this checkpoint, or a "
                "checkpoint whose embeddings were resized for the token"
            )
        return ids

    def input_ids(self, text: str) -> list[int]:
        """Return a source's ids, as the model reads them, without the separator."""
        ids = [*self.start, *self.encode(f" {text}" if self.leading_space else text)]
        return ids if self.causal else [*ids, *self._around[1]]

    def word_ids(self, text: str) -> list[int]:
        """Return a text's ids after a space, as in the middle of a line. Some tokenizers always put a space first."""
        return self.encode(text if self._adds_space or text[:1].isspace() else f" {text}")

    def target_ids(self, text: str) -> list[int]:
        """Return a target's ids with the end token, as the model generates them."""
        if self.causal:
            return [*self.input_ids(text)[len(self.start) :], self.eos_id]
        ids = self.input_ids(text)
        return ids if ids[-1:] == [self.eos_id] else [*ids, self.eos_id]

    def marked(self, template: str) -> str:
        """Mark the control tokens of a template or label, so that `encode` reads them as tokens."""
        if not self._control:
            return template
        longest_first = sorted(self._control, key=len, reverse=True)
        return re.sub("|".join(map(re.escape, longest_first)), lambda match: mark(match[0]), template)

    def decode(self, ids: Iterable[SupportsInt]) -> str:
        """Return the text of ids up to the first end token, without padding and start tokens."""
        kept: list[int] = []
        for index in map(int, ids):
            if index in self.end_ids:
                break
            kept.append(index)
        dropped = {*self.start, *([self.pad_id] if self.piece(self.pad_id) in self._control else [])}
        text = self.transformers.decode([index for index in kept if index not in dropped], skip_special_tokens=False)
        return text.removeprefix(" ") if self.causal else text

    def piece(self, index: int) -> str:
        """Return the token with that id. Rows of the embedding table without a token are `<unused_32105>`."""
        token = self._tokens.get(int(index))
        return f"<unused_{index}>" if token is None else token

    @property
    def start(self) -> tuple[int, ...]:
        """The tokens before a text, such as BART's `<s>` and Llama's `<|begin_of_text|>`."""
        return () if self.leading_space else self._around[0]

    @functools.cached_property
    def separator(self) -> tuple[int, ...]:
        """The token between source and target of a task, for a causal model.

        It is a line break: after their end token, current models do not use the source. With `leading_space` it is the
        end token, as in Li and Liang, and also if the tokenizer drops line breaks.
        """
        if not self.causal:
            return ()
        return (() if self.leading_space else self.line_break) or (self.eos_id,)

    @functools.cached_property
    def line_break(self) -> tuple[int, ...]:
        """The token of a line break; empty if the tokenizer drops line breaks."""
        word = self.encode("a")  # before a line break alone, some tokenizers put a space
        return tuple(self.encode("a\n")[len(word) :][:1])

    @functools.cached_property
    def vocab_size(self) -> int:
        """One more than the highest id of a token; the model's embedding table may have more rows."""
        return max(self._tokens, default=-1) + 1

    @property
    def unk_id(self) -> int | None:
        """The id of the unknown token, or None."""
        return self.transformers.unk_token_id

    @functools.cached_property
    def sentinels(self) -> int:
        """The number of T5's sentinels, `<extra_id_0>` and on."""
        return sum(re.fullmatch(r"▁?<extra_id_\d+>", token) is not None for token in self._tokens.values())

    @functools.cached_property
    def unigram(self) -> list[tuple[str, float]] | None:
        """The pieces and scores of a SentencePiece Unigram model, sentinels included; None for another model."""
        model = json.loads(self._fast.to_str())["model"] if self._fast else {}
        return [(piece, score) for piece, score in model["vocab"]] if model.get("type") == "Unigram" else None

    @functools.cached_property
    def _adds_space(self) -> bool:
        """Whether the tokenizer puts a space before every text, as many SentencePiece models do."""
        return self.piece(self.encode("a")[0]).startswith("▁")

    @functools.cached_property
    def _tokens(self) -> dict[int, str]:
        return {index: token for token, index in self.transformers.get_vocab().items()}

    @functools.cached_property
    def _control(self) -> frozenset[str]:
        """The control tokens, which Transformers calls special tokens."""
        added = self.transformers.added_tokens_decoder.values()
        return frozenset([*self.transformers.all_special_tokens, *(str(token) for token in added if token.special)])

    @functools.cached_property
    def _around(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The tokens that the model expects before and after a text."""
        whole, text = (self.transformers("a", add_special_tokens=added)["input_ids"] for added in (True, False))
        start = next(i for i in range(len(whole) + 1) if whole[i : i + len(text)] == text)
        return tuple(whole[:start]), tuple(whole[start + len(text) :])

    def _read(self, marked: str) -> list[int]:
        """Encode with a tokenizer of the tokenizers library."""
        reader, moved = self._reader
        return [moved.get(index, index) for index in reader.encode(marked, add_special_tokens=False).ids]

    @functools.cached_property
    def _reader(self) -> tuple[Any, dict[int, int]]:
        """The tokenizer with marked control tokens in place of plain ones, which are text to it.

        Also returns a map from changed ids to the original ids. A control token may also be an ordinary token, which
        keeps its id. Then the marked token gets a new id, and the ids of later tokens may move.
        """
        from tokenizers import Tokenizer as Fast

        content = json.loads(self._fast.to_str())
        model = content["model"]
        renamed = {token: mark(token) for token in self._control - _ordinary(self._control, model)}
        if isinstance(model["vocab"], dict):
            model["vocab"] = {renamed.get(token, token): index for token, index in model["vocab"].items()}
        else:
            model["vocab"] = [[renamed.get(piece, piece), score] for piece, score in model["vocab"]]
        if model.get("unk_token") in renamed:
            model["unk_token"] = renamed[model["unk_token"]]
        ids = {token["content"]: token["id"] for token in content["added_tokens"]}
        for token in content["added_tokens"]:
            if token["content"] in self._control:
                token |= {"content": mark(token["content"]), "normalized": False}
        # Ignore the truncation and padding in the file; the task sets lengths.
        content["truncation"] = content["padding"] = None
        reader = Fast.from_str(json.dumps(content))
        moved: dict[int, int] = {}
        for token, index in ids.items():
            new = reader.token_to_id(mark(token) if token in self._control else token)
            if new is not None and new != index:
                moved[new] = index
        return reader, moved

    def _slow(self, marked: str) -> list[int]:
        """Encode with a tokenizer that is written in Python, such as ByT5's."""
        ids: list[int] = []
        for place, part in enumerate(re.split(f"[{OPEN}{CLOSE}]", marked)):  # plain, control, plain, ...
            if place % 2:
                ids.append(self.transformers.convert_tokens_to_ids(part))
            elif part:
                ids += self.transformers(part, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return ids


def _ordinary(control: frozenset[str], model: dict[str, Any]) -> set[str]:
    """Return the control tokens that are also tokens of plain text.

    In a Unigram model such a token has a log-probability; control tokens have 0. In byte-pair encoding it is a single
    character, or merges make it.
    """
    vocabulary = model["vocab"]
    if isinstance(vocabulary, list):
        return {piece for piece, score in vocabulary if piece in control and score != 0}
    present = {token for token in control if token in vocabulary}
    if model["type"] != "BPE":
        return present
    merged = {pair.replace(" ", "", 1) if isinstance(pair, str) else "".join(pair) for pair in model["merges"]}
    return {token for token in present if len(token) == 1 or token in merged}


def load_tokenizer(
    folder: Path,
    transformers_config: Any,
    *,
    eos_id: int,
    end_ids: Sequence[int] = (),
    pad_id: int,
    rows: int,
    causal: bool = False,
    leading_space: bool = False,
) -> Tokenizer | None:
    """Load the tokenizer of a model folder.

    Args:
      folder: the model's folder.
      transformers_config: the model's configuration from `AutoConfig`. It determines the tokenizer's class if the
        folder does not.
      eos_id, end_ids, pad_id, rows, causal, leading_space: as `Tokenizer`.

    Returns:
      the tokenizer, or None if the folder has none.

    Raises:
      CheckpointError: the tokenizer cannot be used.
    """
    present = [name for name in TOKENIZER_FILES if (folder / name).exists() or (folder / name).is_symlink()]
    for name in present:
        check_text_file(folder / name)
    if not _VOCABULARIES & set(present):
        return None
    if "tokenizer_config.json" in present:
        _check_extra_ids(folder / "tokenizer_config.json", rows)
    with transformers_errors(f"the tokenizer in {folder} ({', '.join(present)}) cannot be read"):
        from transformers import AutoTokenizer

        loaded = AutoTokenizer.from_pretrained(
            str(folder), config=transformers_config, local_files_only=True, trust_remote_code=False
        )
        needed = {kind: name for kind, name in loaded.vocab_files_names.items() if kind != "tokenizer_file"}
        # Without its files, a tokenizer class of Transformers invents a vocabulary.
        if "tokenizer.json" not in present and (
            absent := {name for name in needed.values() if not (folder / name).exists()}
        ):
            raise CheckpointError(
                f"{folder} has neither tokenizer.json nor {' and '.join(sorted(absent))}; expected one of them for a "
                f"{type(loaded).__name__}"
            )
        ids: Any = {"eos_id": eos_id, "end_ids": end_ids, "pad_id": pad_id, "rows": rows}
        tokenizer = Tokenizer(loaded, **ids, causal=causal, leading_space=leading_space)
        tokenizer.target_ids("a")  # so that a damaged tokenizer fails here, not during a run
        known = tokenizer.piece(eos_id)
    if known.startswith("<unused_"):
        raise CheckpointError(
            f"{folder}: the tokenizer has no token {eos_id}, which the model's configuration names as the end"
        )
    return tokenizer


def _check_extra_ids(file: Path, rows: int) -> None:
    """Raise CheckpointError if a tokenizer_config.json asks for more sentinels than the model has rows for."""
    values = read_json(file)
    extra_ids = values.get("extra_ids", 0) if isinstance(values, dict) else 0
    if type(extra_ids) is not int or not 0 <= extra_ids <= rows:
        raise CheckpointError(f"{file}: extra_ids is {reprlib.repr(extra_ids)}; expected a number from 0 to {rows}")


def t5_configuration() -> Any:
    """Return Transformers' configuration of a T5, for a tokenizer whose folder has no config.json."""
    with _quiet():
        from transformers import T5Config

    return T5Config()


@contextlib.contextmanager
def transformers_errors(failure: str) -> Iterator[None]:
    """Run a reader of Transformers without its log, and turn every error that it raises into a CheckpointError."""
    with _quiet():
        import transformers  # noqa: F401  # a failed import is not the files' fault

        try:
            yield
        except CheckpointError:
            raise
        # Panics of the tokenizers' Rust code are not subclasses of Exception.
        except BaseException as error:
            if isinstance(error, (KeyboardInterrupt, SystemExit, GeneratorExit)):
                raise
            raise CheckpointError(f"{failure}: {one_line(error)}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence Transformers, which logs advice, also at import, and attempts to read a damaged file."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
