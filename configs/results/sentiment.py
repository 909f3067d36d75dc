"""The experiment behind RESULTS.md's tables on movie reviews: three prompts for the demo's T5, on two CPU cores.

    prompt-jax train configs/results/sentiment.py

RESULTS.md lists the options of each row. Every method has the same budget: 120 steps of 16 examples.
"""

from prompt_jax import DataConfig, EnsembleConfig, Experiment, ModelConfig, PromptTuning, TrainConfig

experiment = Experiment(
    name="sentiment",
    model=ModelConfig("demo"),
    data=DataConfig(task="sentiment_movie", target_length=4, buckets=3),
    prompt=PromptTuning(length=20, init="vocab"),
    train=TrainConfig(
        steps=120, batch_size=16, eval_every=40, eval_examples=300, checkpoint_every=120, keep_checkpoints=1
    ),
    ensemble=EnsembleConfig(seed=(0, 1, 2), group=1),
)
