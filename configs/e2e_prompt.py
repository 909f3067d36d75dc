"""A soft prompt for E2E with the demo's model: minutes on two cores, where `prefix_tuning/e2e.py` wants GPT-2 medium.

`PROMPT_JAX_DATA` names the folder with the data (tasks/e2e.py).
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
