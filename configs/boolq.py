"""Prompt tuning on BoolQ with T5 large (Lester et al. 2021, section 3.1).

    prompt-jax train configs/boolq.py

Settings that are not written here are defaults, which are the paper's: 100 virtual tokens initialized with class
labels, Adafactor with a constant learning rate of 0.3, batches of 32, 30,000 steps. The authors' published prompts were
trained with T5X's step offset, which the paper does not mention; configs/sst2.py reproduces it.
"""

from prompt_jax import DataConfig, Experiment, ModelConfig, TrainConfig

experiment = Experiment(
    name="boolq",
    model=ModelConfig(name="google/t5-large-lm-adapt", dtype="bfloat16"),  # T5 1.1 after 100,000 steps of LM adaptation
    data=DataConfig(task="super_glue_boolq_v102", target_length=8),
    train=TrainConfig(
        dropout_rate=0.1,  # not in the paper; set in its code
        best_by="mean",  # of a task's metrics; BoolQ only has accuracy
    ),
)
