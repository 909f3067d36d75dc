"""Extrapolation from news to sports with BART-large on XSum (Li and Liang 2021, extrapolation).

    PROMPT_JAX_DATA=data prompt-jax train configs/prefix_tuning/news_to_sports.py

Expected test ROUGE-1/2/L: 39.23/16.74/31.51. The hyperparameters are those of the paper's table 6. The data is that of
xsum.py: the prefix is trained on news articles and tested on sports articles.
"""

from prompt_jax import DataConfig, Decoding, Experiment, ModelConfig, OptimizerConfig, PrefixTuning, TrainConfig

experiment = Experiment(
    name="news_to_sports",
    model=ModelConfig(name="facebook/bart-large"),
    data=DataConfig(task="xsum_news_to_sports", input_length=512, target_length=61),
    prompt=PrefixTuning(length=40, init="normal", mlp_width=800, shift_positions=False),
    optimizer=OptimizerConfig(name="adamw", learning_rate=5e-5, schedule="linear", weight_decay=0.0, clip_norm=1.0),
    train=TrainConfig(
        epochs=15,
        batch_size=36,
        dropout_rate=0.1,  # the authors' code keeps dropout active in the frozen BART
        loss="token",
        z_loss=0.0,
        eval_every=2000,
        eval_examples=300,
    ),
    # early_stopping and no_repeat_ngram come from facebook/bart-large's generation config (xsum.py).
    decoding=Decoding(beams=6, early_stopping="true", length_penalty=0.8, min_new_tokens=10, no_repeat_ngram=3),
)
