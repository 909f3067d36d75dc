"""Prefix tuning on E2E with the demo's T5: ten minutes on two CPU cores.

    PROMPT_JAX_DATA=data prompt-jax train configs/e2e_prefix.py

tasks/e2e.py documents the data. Expected test BLEU: about 68.5. The learning rate is far above the paper's, for a run
of a few hundred steps. prefix_tuning/e2e.py is the paper's experiment with GPT-2 medium.
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
