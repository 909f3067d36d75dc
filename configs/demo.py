"""The demo: three soft prompts of 20 tokens for the demo T5, on movie reviews, trained at once. On two CPU cores."""

from prompt_jax import DataConfig, EnsembleConfig, Experiment, ModelConfig, PromptTuning, TrainConfig

experiment = Experiment(
    name="demo",
    model=ModelConfig(name="demo"),
    data=DataConfig(task="sentiment_movie", target_length=4),
    prompt=PromptTuning(length=20, init="vocab"),
    # The optimizer is the paper's: Adafactor, constant rate 0.3.
    # The budget of steps is what three members can be trained for, evaluated and scored in within 15 minutes.
    train=TrainConfig(steps=150, eval_every=50, eval_examples=300, checkpoint_every=50),
    ensemble=EnsembleConfig(size=3, group=1),  # in groups of one, which a CPU is fastest at
)
