"""Initial values of a soft prompt, as in Lester et al. 2021, section 3.2, and in the paper's code.

Most functions return float32 [P, D]. `embedding` is the base's table [V, D].
"""

import warnings
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from prompt_jax.checkpoints.load import Model
from prompt_jax.distributed.sharding import to_host
from prompt_jax.errors import ConfigError
from prompt_jax.models.delta import Delta
from prompt_jax.models.prompt import Prompt
from prompt_jax.prompt_files import io


def uniform(key: PRNGKeyArray, length: int, width: int, low: float, high: float) -> Float[Array, "P D"]:
    """Return uniform noise between `low` and `high`: -0.5 and 0.5 in the paper, 0 and 0.5 in its code."""
    return jax.random.uniform(key, (length, width), jnp.float32, low, high)


def normal(key: PRNGKeyArray, length: int, shape: tuple[int, ...]) -> Float[Array, "P *shape"]:
    """Return normal noise of variance 1, PyTorch's default for embeddings, as in the prefix paper's code and PEFT."""
    return jax.random.normal(key, (length, *shape), jnp.float32)


def sampled_vocabulary(
    key: PRNGKeyArray, length: int, embedding: Float[Array, "V D"], population: int
) -> Float[Array, "P D"]:
    """Return embeddings of tokens drawn from the `population` most frequent ones, without replacement if they suffice.

    SentencePiece vocabularies are ordered by frequency, so these are the first rows of the table.
    """
    if population > len(embedding):
        warnings.warn(
            f"the vocabulary has {len(embedding)} rows, fewer than {population}: drawing from all",
            stacklevel=2,
        )
        population = len(embedding)
    rows = jax.random.choice(key, population, (length,), replace=length > population)
    return _rows(embedding, rows)


def class_labels(
    key: PRNGKeyArray,
    length: int,
    embedding: Float[Array, "V D"],
    labels: Sequence[Sequence[int]],
    population: int,
) -> Float[Array, "P D"]:
    """Return the mean embedding of each label's tokens, then rows of `sampled_vocabulary`."""
    if len(labels) > length:
        warnings.warn(
            f"{len(labels)} labels for a prompt of {length}: the last {len(labels) - length} have no row",
            stacklevel=2,
        )
    rows = [_rows(embedding, label).mean(axis=0) for label in labels[:length]]
    return _filled(key, length, rows, embedding, population)


def text(
    key: PRNGKeyArray, length: int, embedding: Float[Array, "V D"], ids: Sequence[int], population: int
) -> Float[Array, "P D"]:
    """Return the embeddings of the first P tokens of a text, then rows of `sampled_vocabulary`."""
    return _filled(key, length, list(_rows(embedding, ids[:length])), embedding, population)


def word_ids(model: Model, text: str) -> list[int]:
    """Return the `token_ids` of words with a space before the first, as in the middle of a text.

    The prefix paper's code does the same (`add_prefix_space=True`).
    """
    return token_ids(model, text, words=True)


def token_ids(model: Model, text: str, *, words: bool = False) -> list[int]:
    """Return the token ids of a text to start a prompt from. With `words`, it follows a space.

    Raises:
      ConfigError: the model has no tokenizer, or the text has no tokens.
    """
    if model.tokenizer is None:
        raise ConfigError(f"the model {model.name} has no tokenizer, which this prompt.init needs")
    encode = model.tokenizer.word_ids if words else model.tokenizer.encode
    ids = encode(model.tokenizer.marked(text))
    if not ids:
        raise ConfigError(f"the text {text!r} has no tokens to initialize a prompt from")
    return ids


def prompt_of_file(path: Path, number: int | None, model: Model) -> Prompt:
    """Return the prompt in a file, or member `number` of an ensemble (SPoT, Vu et al. 2022).

    Raises:
      ConfigError: the member does not exist, or the prompt belongs to another base model.
      PromptFormatError: the file is not a prompt file, or the prompt's sizes are not the model's.
    """
    members = io.read_prompts(path)
    if number is None and len(members) > 1:
        raise ConfigError(
            f"prompt.init_file {path} has {len(members)} prompts: choose one with prompt.init_member, or for members "
            f"with ensemble.init_member, from 0 to {len(members) - 1}"
        )
    if (number or 0) >= len(members):
        raise ConfigError(f"prompt.init_member is {number}, and {path} has {len(members)} prompts, numbered from 0")
    prompt, metadata = members[number or 0]
    if metadata.base is not None and metadata.base.fingerprint != model.fingerprint:
        raise ConfigError(
            f"prompt.init_file {path} was trained on {metadata.base.name} ({metadata.base.fingerprint[:19]}), but the "
            f"base is {model.name} ({model.fingerprint[:19]}); initialization needs a prompt of the same base"
        )
    io.check_base(path, prompt, metadata, model)
    if isinstance(prompt, Delta):
        raise ConfigError(f"prompt.init_file {path} changes weights of the base; expected a prompt or prefix")
    return prompt


def _rows(embedding: Float[Array, "V D"], rows: Sequence[int] | Array) -> Float[Array, "N D"]:
    """Return rows of a table, which may be sharded, on the default device."""
    return jnp.asarray(to_host(embedding[jnp.asarray(rows)])).astype(jnp.float32)


def _filled(
    key: PRNGKeyArray, length: int, rows: list[Array], embedding: Float[Array, "V D"], population: int
) -> Float[Array, "P D"]:
    if len(rows) == length:
        return jnp.stack(rows)
    rest = sampled_vocabulary(key, length - len(rows), embedding, population)
    return jnp.concatenate([jnp.stack(rows), rest])
