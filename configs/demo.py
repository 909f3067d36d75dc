"""The demo: an ensemble of three soft prompts of 20 tokens for a small T5, trained at once on movie reviews.

    prompt-jax train configs/demo.py

Takes about 5 minutes on two CPU cores. Expected test accuracy: 0.866 on average over members, 0.875 by majority vote.
"""

from prompt_jax import DataConfig, EnsembleConfig, Experiment, ModelConfig, PromptTuning, TrainConfig

experiment = Experiment(
    name="demo",
    model=ModelConfig(name="demo"),
    data=DataConfig(task="sentiment_movie", target_length=4),
    prompt=PromptTuning(length=20, init="vocab"),
    # The optimizer is the default, the paper's Adafactor with a constant learning rate of 0.3.
    train=TrainConfig(steps=150, batch_size=24, eval_every=75, eval_examples=200, checkpoint_every=75),
    ensemble=EnsembleConfig(size=3, group=1),  # members in groups of one, the fastest choice on a CPU
)
