"""A sweep of learning rate by initialisation in one run: nine prompts for the demo T5, trained at once.

The members differ in nothing else: they share seed, data and order, so their batches are made once.
"""

import itertools

from prompt_jax.config import DataConfig, EnsembleConfig, Experiment, ModelConfig, PromptConfig, TrainConfig

rates, inits = zip(*itertools.product((0.03, 0.1, 0.3), ("uniform", "vocab", "labels")), strict=True)

experiment = Experiment(
    name="sweep",
    model=ModelConfig(name="demo"),
    data=DataConfig(task="sentiment_movie", target_length=4),
    prompt=PromptConfig(length=20),
    train=TrainConfig(steps=120, eval_every=40, eval_examples=400, checkpoint_every=40),
    ensemble=EnsembleConfig(seed=(0,), learning_rate=rates, init=inits, group=1),
)
