"""First values of a soft prompt: those of Lester et al. 2021, section 3.2, and of the paper's code.

All but the last return float32 [P, D]. `embedding` is the base's table [V, D], `pieces` the token ids of a text.
"""

import warnings
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from prompt_jax.checkpoints.load import Model
from prompt_jax.config.prompt import PromptConfig
from prompt_jax.distributed.sharding import to_host
from prompt_jax.errors import ConfigError
from prompt_jax.models.prompt import Prompt
from prompt_jax.prompt_files import io

Fill = Callable[[PRNGKeyArray, int], Float[Array, "P D"]]


def uniform(key: PRNGKeyArray, length: int, width: int, low: float, high: float) -> Float[Array, "P D"]:
    """Uniform between `low` and `high`: -0.5 and 0.5 in the paper, 0 and 0.5 in its code."""
    return jax.random.uniform(key, (length, width), jnp.float32, low, high)


def normal(key: PRNGKeyArray, length: int, shape: tuple[int, ...]) -> Float[Array, "P *shape"]:
    """Normal with variance 1: a PyTorch embedding's, and so the prefix paper's code and PEFT's."""
    return jax.random.normal(key, (length, *shape), jnp.float32)


def sampled_vocabulary(
    key: PRNGKeyArray, length: int, embedding: Float[Array, "V D"], population: int
) -> Float[Array, "P D"]:
    """Embeddings of pieces drawn from the `population` most common, without replacement as long as they last.

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
    rest: Fill,
) -> Float[Array, "P D"]:
    """Row i is the mean embedding of the pieces of label i; `rest` makes the rows after the labels."""
    if len(labels) > length:
        warnings.warn(
            f"{len(labels)} labels for a prompt of {length}: the last {len(labels) - length} have no row",
            stacklevel=2,
        )
    rows = [_rows(embedding, label).mean(axis=0) for label in labels[:length]]
    return _filled(key, length, rows, rest)


def text(
    key: PRNGKeyArray, length: int, embedding: Float[Array, "V D"], pieces: Sequence[int], rest: Fill
) -> Float[Array, "P D"]:
    """Row i is the embedding of the text's piece i, as far as the prompt reaches; `rest` makes the others."""
    return _filled(key, length, list(_rows(embedding, pieces[:length])), rest)


def word_ids(model: Model, text: str) -> list[int]:
    """Return the `token_ids` of words as they occur in the middle of a text: with a space before the first.

    The prefix paper's code does the same (`add_prefix_space=True`). SentencePiece does it for every text.
    """
    return token_ids(model, text if text[:1].isspace() else f" {text}")


def token_ids(model: Model, text: str) -> list[int]:
    """Return the token ids of a text to start a prompt from.

    Raises:
      ConfigError: the model has no tokenizer, or the text has no tokens.
    """
    if model.tokenizer is None:
        raise ConfigError(f"the model {model.name} has no tokenizer, which this prompt.init needs")
    ids = model.tokenizer.encode(model.tokenizer.marked(text))
    if not ids:
        raise ConfigError(f"the text {text!r} has no tokens to initialize a prompt from")
    return ids


def prompt_of_file(config: PromptConfig, model: Model) -> Prompt:
    """The prompt that `config.init_file` has, or `config.init_member` of its ensemble (SPoT, Vu et al. 2022).

    Raises:
      ConfigError: no such member, or a prompt of another base.
      PromptFormatError: not a prompt file, or a prompt of other sizes than the model's.
    """
    path, number = config.init_file, config.init_member
    assert path is not None  # config_checks.check
    members = io.read_prompts(path)
    if number is None and len(members) > 1:
        raise ConfigError(
            f"prompt.init_file {path} has {len(members)} prompts: say which with prompt.init_member, or of an ensemble "
            f"with ensemble.init_member, from 0 to {len(members) - 1}"
        )
    if (number or 0) >= len(members):
        raise ConfigError(f"prompt.init_member is {number}, and {path} has {len(members)} prompts, numbered from 0")
    prompt, metadata = members[number or 0]
    if metadata.base is not None and metadata.base.fingerprint != model.fingerprint:
        raise ConfigError(
            f"prompt.init_file {path} was trained on {metadata.base.name} ({metadata.base.fingerprint[:19]}), and the "
            f"base is {model.name} ({model.fingerprint[:19]}); a prompt starts from one of its own base"
        )
    io.check_base(path, prompt, metadata, model)
    if prompt.base:
        raise ConfigError(f"prompt.init_file {path} changes the base itself, and has no prompt to start from")
    return prompt


def _rows(embedding: Float[Array, "V D"], rows: Sequence[int] | Array) -> Float[Array, "N D"]:
    """Rows of a table that may be divided over devices, on the default one."""
    return jnp.asarray(to_host(embedding[jnp.asarray(rows)])).astype(jnp.float32)


def _filled(key: PRNGKeyArray, length: int, rows: list[Array], rest: Fill) -> Float[Array, "P D"]:
    if len(rows) == length:
        return jnp.stack(rows)
    return jnp.concatenate([jnp.stack(rows), rest(key, length - len(rows))])
