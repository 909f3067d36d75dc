"""Prompt tuning on SST-2 with the settings of the authors' code (`sst2-demo.sh`) and T5 1.1 base.

    prompt-jax train configs/sst2.py

The authors published a prompt that was trained with these settings. Its validation accuracy is 95.07. Their code
differs from the paper in batch size, number of steps, and Adafactor's step count. The count continues from the base's
1,100,000 steps while the second moments start at zero. With so high a count they grow slowly, so updates stay clipped.
"""

from prompt_jax import DataConfig, Experiment, ModelConfig, OptimizerConfig, PromptTuning, TrainConfig

experiment = Experiment(
    name="sst2",
    model=ModelConfig(name="google/t5-base-lm-adapt", dtype="bfloat16"),
    data=DataConfig(task="glue_sst2_v200", input_length=512, target_length=8),
    prompt=PromptTuning(init_labels=("positive", "negative")),  # in the code's order
    optimizer=OptimizerConfig(learning_rate=0.3, decay_offset=-1_100_000),
    train=TrainConfig(steps=50_000, batch_size=128, dropout_rate=0.1, eval_every=1000, checkpoint_every=1000),
)
