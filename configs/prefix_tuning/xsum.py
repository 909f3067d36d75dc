"""Prefix tuning on XSum with BART-large (Li and Liang 2021, summarization), a prefix of 2 % of its parameters.

    PROMPT_JAX_DATA=data prompt-jax train configs/prefix_tuning/xsum.py

Expected test ROUGE-1/2/L: 43.80/20.93/36.05. The hyperparameters are those of the paper's table 6, which has a length
of 100 (1.8 %). The authors' README has 200. tasks/xsum.py documents the data.

Decoding follows the authors' code. It sets 6 beams, a length penalty of 0.8, and answers of 11 to 62 tokens, start
token included. It keeps the rest of facebook/bart-large's generation config: early_stopping true and
no_repeat_ngram_size 3. ROUGE is the mean over the test set. The authors' code averages the scores of batches.
"""

from prompt_jax import DataConfig, Decoding, Experiment, ModelConfig, OptimizerConfig, PrefixTuning, TrainConfig

experiment = Experiment(
    name="xsum",
    model=ModelConfig(name="facebook/bart-large"),
    data=DataConfig(task="xsum", input_length=512, target_length=61),
    prompt=PrefixTuning(length=100, init="normal", mlp_width=800, shift_positions=False),
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
    # early_stopping and no_repeat_ngram come from facebook/bart-large's generation config.
    decoding=Decoding(beams=6, early_stopping="true", length_penalty=0.8, min_new_tokens=10, no_repeat_ngram=3),
)
