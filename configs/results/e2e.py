"""The experiment behind RESULTS.md's tables on E2E: three prompts for the demo's T5, on two CPU cores.

    PROMPT_JAX_DATA=data prompt-jax train configs/results/e2e.py

RESULTS.md lists the options of each row. tasks/e2e.py documents the data.
"""

from prompt_jax import DataConfig, EnsembleConfig, Experiment, ModelConfig, PromptTuning, TrainConfig

experiment = Experiment(
    name="e2e",
    model=ModelConfig("demo"),
    data=DataConfig(task="e2e", input_length=96, target_length=64, buckets=2),
    prompt=PromptTuning(length=20, init="vocab"),
    train=TrainConfig(
        steps=60,
        batch_size=8,
        eval_every=30,
        eval_examples=24,
        test_examples=64,
        checkpoint_every=60,
        keep_checkpoints=1,
        z_loss=0.0,
    ),
    ensemble=EnsembleConfig(seed=(0, 1, 2), group=1),
)
