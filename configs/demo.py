"""The demo: a soft prompt of 20 tokens for the demo T5, on movie reviews. About five minutes on two CPU cores."""

from prompt_jax.config import DataConfig, Experiment, ModelConfig, PromptConfig, TrainConfig

experiment = Experiment(
    name="demo",
    model=ModelConfig(name="demo"),
    data=DataConfig(task="sentiment_movie", input_length=64, target_length=4),
    prompt=PromptConfig(length=20, init="vocab"),
    # The optimizer is the paper's: Adafactor, constant rate 0.3.
    train=TrainConfig(steps=200, eval_every=50, eval_examples=500, checkpoint_every=50),
)
