"""A sweep of learning rate and initialization in one run: nine soft prompts for the demo's T5, trained at once.

    prompt-jax train configs/sweep.py

All members share seed, data and order, so each batch is built once.
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
