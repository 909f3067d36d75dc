"""Prefix tuning on E2E with GPT-2 large (Li and Liang 2021, main results): test BLEU 70.3.

    PROMPT_JAX_DATA=data prompt-jax train configs/prefix_tuning/e2e_large.py

All other settings are those of e2e.py.
"""

from prompt_jax import DataConfig, Decoding, Experiment, ModelConfig, OptimizerConfig, PrefixTuning, TrainConfig

experiment = Experiment(
    name="e2e_large",
    model=ModelConfig(name="openai-community/gpt2-large"),
    data=DataConfig(task="e2e"),
    prompt=PrefixTuning(length=5, init="normal", mlp_width=512),
    optimizer=OptimizerConfig(name="adamw", learning_rate=8e-5, schedule="linear", weight_decay=0.0, clip_norm=1.0),
    train=TrainConfig(epochs=5, batch_size=10, loss="sentence", z_loss=0.0, eval_every=2000, eval_examples=300),
    # The authors' code bans GPT-2's two newline tokens.
    decoding=Decoding(beams=5, banned_tokens=(198, 628)),
)
