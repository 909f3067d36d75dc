"""A prefix for E2E with the demo's model: minutes on two cores, where `prefix_tuning/e2e.py` wants GPT-2 medium.

`PROMPT_JAX_DATA` names the folder with the data (tasks/e2e.py). The learning rate is far above the paper's, for a few
hundred steps.
"""

from prompt_jax import DataConfig, Decoding, Experiment, ModelConfig, OptimizerConfig, PrefixTuning, TrainConfig

experiment = Experiment(
    name="e2e_prefix",
    model=ModelConfig("demo"),
    data=DataConfig(task="e2e", input_length=96, target_length=80, buckets=3),
    prompt=PrefixTuning(length=10, init="normal", mlp_width=512),
    optimizer=OptimizerConfig(name="adamw", learning_rate=1e-3, schedule="linear", warmup_steps=20, weight_decay=0.0),
    train=TrainConfig(steps=300, batch_size=16, z_loss=0.0, eval_every=100, eval_examples=32, checkpoint_every=100),
    decoding=Decoding(beams=5),
)
