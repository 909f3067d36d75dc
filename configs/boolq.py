"""Prompt tuning on BoolQ as in Lester et al. 2021 (section 3.1 and Table 3's tasks), here for T5 large.

The settings that are not written here are the defaults, which are the paper's: 100 virtual tokens, class-label
initialization, Adafactor with a constant rate of 0.3, batches of 32, 30,000 steps. The prompts that the authors
published were trained with T5X's step offset, which the paper does not mention; configs/sst2.py reproduces it.
"""

from prompt_jax import DataConfig, Experiment, ModelConfig, TrainConfig

experiment = Experiment(
    name="boolq",
    model=ModelConfig(name="google/t5-large-lm-adapt", dtype="bfloat16"),  # T5 1.1 after 100k steps of LM adaptation
    data=DataConfig(task="super_glue_boolq_v102", target_length=8),
    train=TrainConfig(
        dropout_rate=0.1,  # not in the paper; in effect in its code
        best_by="mean",  # of those of SuperGLUE's tasks that have several metrics
    ),
)
