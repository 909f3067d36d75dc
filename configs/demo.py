"""The demo: a soft prompt of 20 tokens for the demo T5, on movie reviews. Some minutes on two CPU cores."""

from prompt_jax.config import DataConfig, Experiment, ModelConfig, PromptConfig, TrainConfig

experiment = Experiment(
    name="demo",
    model=ModelConfig(name="demo"),
    data=DataConfig(task="sentiment_movie", target_length=4),
    prompt=PromptConfig(length=20, init="vocab"),
    # The optimizer is the paper's: Adafactor, constant rate 0.3.
    train=TrainConfig(steps=160, eval_every=40, eval_examples=500, checkpoint_every=40),
)
