"""A sweep of learning rate by initialization in one run: nine prompts for the demo T5, trained at once.

The members differ in nothing else: they share seed, data and order, so their batches are made once.
"""

import itertools

from prompt_jax import DataConfig, EnsembleConfig, Experiment, ModelConfig, PromptTuning, TrainConfig

rates, inits = zip(*itertools.product((0.03, 0.1, 0.3), ("uniform", "vocab", "labels")), strict=True)

experiment = Experiment(
    name="sweep",
    model=ModelConfig(name="demo"),
    data=DataConfig(task="sentiment_movie", target_length=4),
    prompt=PromptTuning(length=20),
    train=TrainConfig(steps=150, eval_every=50, eval_examples=300, checkpoint_every=50),
    ensemble=EnsembleConfig(seed=(0,), learning_rate=rates, init=inits, group=1),
)
