"""Prefix tuning on XSum with BART-large (Li and Liang 2021, summarization), a prefix of 0.1 % of its parameters.

    PROMPT_JAX_DATA=data prompt-jax train configs/prefix_tuning/xsum_small.py

Expected test ROUGE-1/2/L: 42.92/20.03/35.05. The prefix has a length of 5. All other settings are those of xsum.py.
"""

from prompt_jax import DataConfig, Decoding, Experiment, ModelConfig, OptimizerConfig, PrefixTuning, TrainConfig

experiment = Experiment(
    name="xsum_small",
    model=ModelConfig(name="facebook/bart-large"),
    data=DataConfig(task="xsum", input_length=512, target_length=61),
    prompt=PrefixTuning(length=5, init="normal", mlp_width=800, shift_positions=False),
    optimizer=OptimizerConfig(name="adamw", learning_rate=5e-5, schedule="linear", weight_decay=0.0, clip_norm=1.0),
    train=TrainConfig(
        epochs=30,
        batch_size=14,
        dropout_rate=0.1,  # the authors' code keeps dropout active in the frozen BART
        loss="token",
        z_loss=0.0,
        eval_every=2000,
        eval_examples=300,
    ),
    # early_stopping and no_repeat_ngram come from facebook/bart-large's generation config (xsum.py).
    decoding=Decoding(beams=6, early_stopping="true", length_penalty=0.8, min_new_tokens=10, no_repeat_ngram=3),
)
