"""The case `vote`, described in __main__.py."""

from pathlib import Path

import jax
import numpy as np

from prompt_jax import metrics
from prompt_jax.checkpoints.load import Model, load_model
from prompt_jax.data.examples import Examples
from prompt_jax.ensembles.early_stop import evaluate_early
from prompt_jax.inference.answers import generate_answers, tokenize
from prompt_jax.inference.batching import Rows
from prompt_jax.inference.evaluation import EvaluationOptions
from prompt_jax.methods.soft_prompt import PromptTuning
from prompt_jax.models.prompt import Prompt, stack_prompts, unstack_prompts
from prompt_jax.prompt_files.io import load_prompt
from prompt_jax.task_format import TaskFormat
from tools.bench.cases import MEMBERS, SHAPES, VOTE_BATCH, VOTE_ROUNDS, VOTE_TOKENS, VOTED, Row, alternately, reviews


def vote(prompts_file: Path | None) -> dict[str, Row]:
    """Time the answers of all members to the same reviews: in one flat pass, and in one pass per member.

    With trained prompts, also measures the share of passes that early stopping of a majority vote saves, for generated
    answers and for most probable labels.
    """
    model = load_model("demo")
    examples = review_examples(model, VOTED)
    prompts = vocabulary_prompts(model) if prompts_file is None else unstack_prompts(load_prompt(prompts_file, model))
    together, count = stack_prompts(prompts), len(prompts)
    prompt_ids = np.repeat(np.arange(count, dtype=np.int32), len(examples))

    def flat() -> None:
        rows = Rows(model, together, list(examples.inputs) * count, prompt_ids, batch_size=VOTE_BATCH)
        generate_answers(rows, VOTE_TOKENS)

    def singly() -> None:
        for prompt in prompts:
            generate_answers(Rows(model, prompt, examples.inputs, batch_size=VOTE_BATCH), VOTE_TOKENS)

    rows = alternately({"one flat pass": flat, "single passes": singly}, VOTE_ROUNDS)
    rows = {side: row | {"members": count} for side, row in rows.items()}
    if prompts_file is not None:
        saved = evaluate_early(model, prompts, examples, EvaluationOptions(VOTE_TOKENS, VOTE_BATCH)).saved
        rows["one flat pass"]["saved"] = saved
    return rows


def vocabulary_prompts(model: Model) -> list[Prompt]:
    """Return untrained prompts of the demo's length."""
    config = PromptTuning(length=SHAPES["reviews"].length, init="vocab")
    trainable = [config.initialize(jax.random.key(seed), model) for seed in range(MEMBERS)]
    return [config.apply(variables) for variables in trainable]


def review_examples(model: Model, count: int) -> Examples:
    """Return `count` random movie reviews of the demo's test split, which is sorted by rating."""
    split = reviews(0.9, 1.0)
    drawn = np.random.default_rng(0).permutation(len(split[0]))[:count]
    texts, labels = ([column[i] for i in drawn] for column in split)
    task_format = TaskFormat("{text}", ("negative", "positive"), input_length=128)
    inputs, cut = tokenize(model, texts, task_format.input_length)
    targets, _ = tokenize(model, labels, VOTE_TOKENS)
    truncated = {"inputs": cut, "targets": 0}
    return Examples(
        "reviews", "test", inputs, targets, texts, labels, truncated, task_format, metric_fns=(metrics.accuracy,)
    )
