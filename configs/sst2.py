"""SST-2 as in the prompt-tuning authors' code (`sst2-demo.sh`), whose prompt for T5 1.1 base they published with a
validation accuracy of 95.07.

The code differs from the paper in the batch size, the number of steps and Adafactor's step count. The count continues
from the base's 1,100,000 steps while the second moments start at zero. With so high a count they grow slowly, so that
updates stay clipped.
"""

from prompt_jax import DataConfig, Experiment, ModelConfig, OptimizerConfig, PromptTuning, TrainConfig

experiment = Experiment(
    name="sst2",
    model=ModelConfig(name="google/t5-base-lm-adapt", dtype="bfloat16"),
    data=DataConfig(task="glue_sst2_v200", input_length=512, target_length=8),
    prompt=PromptTuning(init_labels=("positive", "negative")),  # the code's order
    optimizer=OptimizerConfig(decay_offset=-1_100_000),
    train=TrainConfig(steps=50_000, batch_size=128, dropout_rate=0.1, eval_every=1000, checkpoint_every=1000),
)
