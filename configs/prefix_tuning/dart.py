"""Prefix tuning on DART with GPT-2 medium (Li and Liang 2021, main results): test BLEU 46.4.

    PROMPT_JAX_DATA=data prompt-jax train configs/prefix_tuning/dart.py

The hyperparameters are those of the paper's table 6. tasks/dart.py documents the data. With `--data.task dart_tfds`,
TFDS downloads it.
"""

from prompt_jax import DataConfig, Decoding, Experiment, ModelConfig, OptimizerConfig, PrefixTuning, TrainConfig

experiment = Experiment(
    name="dart",
    model=ModelConfig(name="openai-community/gpt2-medium"),
    data=DataConfig(task="dart"),
    prompt=PrefixTuning(length=10, init="normal", mlp_width=512),
    optimizer=OptimizerConfig(name="adamw", learning_rate=5e-5, schedule="linear", weight_decay=0.0, clip_norm=1.0),
    train=TrainConfig(epochs=10, batch_size=5, loss="sentence", z_loss=0.0, eval_every=2000, eval_examples=300),
    # The authors' code bans GPT-2's two newline tokens.
    decoding=Decoding(beams=5, banned_tokens=(198, 628)),
)
