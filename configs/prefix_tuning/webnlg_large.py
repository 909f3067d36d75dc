"""Prefix tuning on WebNLG with GPT-2 large (Li and Liang 2021, main results).

    PROMPT_JAX_DATA=data prompt-jax train configs/prefix_tuning/webnlg_large.py

Expected test BLEU: 63.4 on seen categories, 47.7 on unseen ones, 56.3 on all. All other settings are those of
webnlg.py.
"""

from prompt_jax import DataConfig, Decoding, Experiment, ModelConfig, OptimizerConfig, PrefixTuning, TrainConfig

experiment = Experiment(
    name="webnlg_large",
    model=ModelConfig(name="openai-community/gpt2-large"),
    data=DataConfig(task="webnlg", test_tasks=("webnlg_seen", "webnlg_unseen")),
    prompt=PrefixTuning(length=5, init="normal", mlp_width=512),
    optimizer=OptimizerConfig(name="adamw", learning_rate=5e-5, schedule="linear", weight_decay=0.0, clip_norm=1.0),
    train=TrainConfig(epochs=5, batch_size=5, loss="sentence", z_loss=0.0, eval_every=2000, eval_examples=300),
    # The authors' code bans GPT-2's two newline tokens.
    decoding=Decoding(beams=5, banned_tokens=(198, 628)),
)
