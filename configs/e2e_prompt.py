"""Prompt tuning on E2E with the demo's T5: ten minutes on two CPU cores.

    PROMPT_JAX_DATA=data prompt-jax train configs/e2e_prompt.py

tasks/e2e.py documents the data. Expected test BLEU: about 66.1.
"""

from prompt_jax import DataConfig, Decoding, Experiment, ModelConfig, OptimizerConfig, PromptTuning, TrainConfig

experiment = Experiment(
    name="e2e_prompt",
    model=ModelConfig("demo"),
    data=DataConfig(task="e2e", input_length=96, target_length=80, buckets=3),
    prompt=PromptTuning(length=50, init="vocab"),
    optimizer=OptimizerConfig(learning_rate=0.3),
    train=TrainConfig(steps=300, batch_size=16, z_loss=0.0, eval_every=100, eval_examples=32, checkpoint_every=100),
    decoding=Decoding(beams=5),
)
