"""A base whose token embeddings are vectors in the plane."""

import jax.numpy as jnp
import numpy as np
import tokenizers
import transformers

from prompt_jax.checkpoints.load import Model
from prompt_jax.checkpoints.tokenizer import Tokenizer
from prompt_jax.models.t5 import T5Config

# The last row is padding beyond the vocabulary, and is closest in direction to [1, 1].
TABLE = np.array([[0, 0], [2, 0], [0, 3], [1, 1], [-4, 0], [5, 5]], np.float32)
PIECES = ["<pad>", "▁right", "▁up", "▁both", "<unk>"]
TOKENS = np.array([[10, 10], [0, -1], [0.3, 0.1]], np.float32)


def _tokenizer() -> Tokenizer:
    words = tokenizers.Tokenizer(tokenizers.models.Unigram([(piece, 0.0) for piece in PIECES], unk_id=4))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", pad_token="<pad>")
    return Tokenizer(fast, eos_id=0, end_ids=(), pad_id=0, rows=len(TABLE))


MODEL = Model(
    name="tiny",
    revision="abc",
    params={"embedding": jnp.asarray(TABLE)},
    config=T5Config(6, 2, 2, 2, 1, 1, 1),
    tokenizer=_tokenizer(),
    fingerprint="sha256:0123456789abcdef0123",
)
