"""A checkpoint's generation settings: its generation_config.json, or the same fields in its config.json.

Which file counts, and how older names are read, follows Transformers' rules. Sampling settings are ignored, because
evaluation must be repeatable; `prompt_jax.config.Decoding` has them.
"""

import reprlib
from pathlib import Path
from typing import Any, NoReturn

from prompt_jax.checkpoints.files import check_text_file
from prompt_jax.checkpoints.tokenizer import transformers_errors
from prompt_jax.errors import CheckpointError
from prompt_jax.models.generation_settings import EarlyStopping, GenerationSettings

FILE = "generation_config.json"
MOST_BEAMS, MOST_TOKENS = 1000, 100_000  # limits, so that a damaged file cannot exhaust the memory

# Unsupported settings that change the next token, with the values at which they have no effect.
_NOT_APPLIED: dict[str, tuple[Any, ...]] = {
    "constraints": (),
    "diversity_penalty": (0.0,),
    "dola_layers": (),
    "encoder_repetition_penalty": (1.0,),
    "exponential_decay_length_penalty": (),
    "force_words_ids": (),
    "guidance_scale": (1,),
    "max_time": (),
    "num_beam_groups": (1,),
    "penalty_alpha": (0,),
    "sequence_bias": (),
    "stop_strings": (),
    "token_healing": (False,),
    "watermarking_config": (),
}


def read_generation(folder: Path, vocab_size: int, encoder_decoder: bool) -> tuple[GenerationSettings, dict[str, int]]:
    """Read a folder's generation settings, and the special ids with which they override config.json.

    Args:
      folder: the model's folder.
      vocab_size: the rows of its embedding table; ids must be smaller.
      encoder_decoder: whether generation starts from one token, and not from the input.

    Returns:
      the settings, and the ids among `eos_id`, `pad_id` and `start_id` that the file has. An encoder-decoder without
      `decoder_start_token_id` starts from `bos_token_id`, as in Transformers. If generation_config.json has no end
      token, the one of config.json ends an answer; Transformers' `generate` would not stop.

    Raises:
      CheckpointError: a file cannot be read, or a value is invalid.
    """
    file = folder / FILE
    legacy = not file.exists() and not file.is_symlink()
    if legacy:
        file = folder / "config.json"
    check_text_file(file)
    with transformers_errors(f"{file} cannot be read"):
        from transformers import GenerationConfig

        of_model: Any = {"config_file_name": "config.json", "_from_model_config": True} if legacy else {}
        read = GenerationConfig.from_pretrained(str(folder), local_files_only=True, **of_model)
    values = _GenerationValues(read, file, vocab_size)
    banned, unsupported = values.banned()
    unsupported += [
        f"{name}={value!r}"[:100]
        for name, no_effect in _NOT_APPLIED.items()
        if (value := getattr(read, name, None)) is not None and value not in no_effect
    ]
    forced_first = values.ids("forced_bos_token_id")
    if forced_first and not encoder_decoder:
        unsupported.append(f"forced_bos_token_id={forced_first[0]} (of a model without an encoder)")
    ends = values.ids("eos_token_id")
    settings = GenerationSettings(
        end_ids=ends if len(ends) > 1 else (),
        forced_first=forced_first[0] if forced_first and encoder_decoder else None,
        forced_last=values.ids("forced_eos_token_id"),
        banned=(*banned, *values.ids("suppress_tokens")),
        banned_first=values.ids("begin_suppress_tokens"),
        no_repeat_ngram=values.whole("no_repeat_ngram_size"),
        encoder_no_repeat_ngram=values.whole("encoder_no_repeat_ngram_size"),
        repetition_penalty=values.number("repetition_penalty", 1.0, positive=True),
        min_length=values.whole("min_length"),
        min_new_tokens=values.whole("min_new_tokens"),
        max_length=values.whole("max_length", MOST_TOKENS) or None,
        max_new_tokens=values.whole("max_new_tokens", MOST_TOKENS) or None,
        renormalize=bool(read.renormalize_logits),
        beams=values.whole("num_beams", MOST_BEAMS) or 1,
        length_penalty=values.number("length_penalty", 1.0),
        early_stopping=values.early_stopping(),
        not_applied=tuple(unsupported),
    )
    start = values.ids("decoder_start_token_id") or (values.ids("bos_token_id") if encoder_decoder else ())
    special = {} if legacy else {"eos_id": ends, "pad_id": values.ids("pad_token_id")}
    return settings, {name: ids[0] for name, ids in (special | {"start_id": start}).items() if ids}


def generation_config(settings: GenerationSettings, *, pad_id: int, eos_id: int, start_id: int) -> dict[str, Any]:
    """Return the content of a generation_config.json that `read_generation` reads as these settings."""
    ends = settings.end_ids or (eos_id,)
    stops: dict[str, Any] = {"false": False, "true": True}
    values = {
        "pad_token_id": pad_id,
        "eos_token_id": ends[0] if len(ends) == 1 else list(ends),
        "decoder_start_token_id": start_id,
        "forced_bos_token_id": settings.forced_first,
        "forced_eos_token_id": list(settings.forced_last) or None,
        "suppress_tokens": list(settings.banned) or None,
        "begin_suppress_tokens": list(settings.banned_first) or None,
        "no_repeat_ngram_size": settings.no_repeat_ngram or None,
        "encoder_no_repeat_ngram_size": settings.encoder_no_repeat_ngram or None,
        "repetition_penalty": settings.repetition_penalty,
        "min_length": settings.min_length or None,
        "min_new_tokens": settings.min_new_tokens or None,
        "max_length": settings.max_length,
        "max_new_tokens": settings.max_new_tokens,
        "renormalize_logits": settings.renormalize or None,
        "num_beams": settings.beams,
        "length_penalty": settings.length_penalty,
        "early_stopping": stops.get(settings.early_stopping, settings.early_stopping),
    }
    return {name: value for name, value in values.items() if value is not None}


class _GenerationValues:
    """Checked access to the values of a GenerationConfig. None means "not set"."""

    def __init__(self, read: Any, file: Path, vocab_size: int):
        self._read, self._file, self._vocab_size = read, file, vocab_size

    def ids(self, name: str) -> tuple[int, ...]:
        value = getattr(self._read, name, None)
        ids = [] if value is None else value if isinstance(value, list) else [value]
        for index in ids:
            if type(index) is not int or not 0 <= index < self._vocab_size:
                self._fail(name, index, f"token ids from 0 to {self._vocab_size - 1}")
        return tuple(ids)

    def whole(self, name: str, most: int = 2**31 - 1) -> int:
        value = getattr(self._read, name, None)
        if value is None:
            return 0
        if type(value) is not int or not 0 <= value <= most:
            self._fail(name, value, f"a whole number from 0 to {most}")
        return value

    def number(self, name: str, default: float, positive: bool = False) -> float:
        value = getattr(self._read, name, None)
        if value is None:
            return default
        if type(value) not in (int, float) or not abs(value) < float("inf") or (positive and value <= 0):
            self._fail(name, value, "a positive number" if positive else "a number")
        return float(value)

    def early_stopping(self) -> EarlyStopping:
        value = self._read.early_stopping
        names: dict[Any, EarlyStopping] = {None: "false", False: "false", True: "true", "never": "never"}
        if not isinstance(value, bool | str | None) or value not in names:
            self._fail("early_stopping", value, "true, false or 'never'")
        return names[value]

    def banned(self) -> tuple[list[int], list[str]]:
        """Return the tokens of `bad_words_ids`, without end tokens as in Transformers, and entries of `not_applied`."""
        words = getattr(self._read, "bad_words_ids", None) or []
        if not isinstance(words, list) or not all(isinstance(word, list) and word for word in words):
            self._fail("bad_words_ids", words, "a list of lists of ids")
        if any(len(word) > 1 for word in words):
            return [], ["bad_words_ids with words of several tokens"]
        ends = self.ids("eos_token_id")
        tokens = [word[0] for word in words]
        for token in tokens:
            if type(token) is not int or not 0 <= token < self._vocab_size:
                self._fail("bad_words_ids", token, f"token ids from 0 to {self._vocab_size - 1}")
        return [token for token in tokens if token not in ends], []

    def _fail(self, name: str, value: Any, expected: str) -> NoReturn:
        raise CheckpointError(f"{self._file}: {name} is {reprlib.repr(value)}; expected {expected}")
