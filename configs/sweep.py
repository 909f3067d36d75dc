"""A sweep of learning rate and initialization in one run: eight soft prompts for the demo's T5, trained at once.

    prompt-jax train configs/sweep.py
    prompt-jax train configs/sweep.py --name smollm2_sweep --model.name smollm2 --data.task sentiment_movie_causal

Rates are multiples of the root mean square of the model's embeddings, so the same rates suit every model. On the
demo's T5 they are 0.03, 0.1, 0.3 and 1. All members share seed, data and order, so each batch is built once.
"""

import itertools

from prompt_jax import DataConfig, EnsembleConfig, Experiment, ModelConfig, OptimizerConfig, PromptTuning, TrainConfig

rates, inits = zip(*itertools.product((0.0022, 0.0074, 0.022, 0.074), ("vocab", "labels")), strict=True)

experiment = Experiment(
    name="sweep",
    model=ModelConfig(name="demo"),
    data=DataConfig(task="sentiment_movie", target_length=4),
    prompt=PromptTuning(length=20),
    optimizer=OptimizerConfig(rate_unit="embedding_rms"),
    train=TrainConfig(steps=150, eval_every=50, eval_examples=300, checkpoint_every=50),
    ensemble=EnsembleConfig(seed=(0,), learning_rate=rates, init=inits, group=1),
)
