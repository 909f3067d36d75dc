"""XSum, Li and Liang 2021, summaries: BART-large with a prefix of 2 % of its parameters, test ROUGE-1/2/L
43.80/20.93/36.05.

Hyperparameters of the paper's table 6, where the prefix is 100 long (1.8 %); the figure of 200 is in the authors'
README. `PROMPT_JAX_DATA` names the folder with the data (tasks/xsum.py).

Decoding follows the authors' code. It sets 6 beams, a length penalty of 0.8, and answers of 11 to 62 tokens, which
include the start token. It keeps the rest of facebook/bart-large's generation config: early_stopping true and
no_repeat_ngram_size 3. ROUGE is the mean over the test set; the authors' code averages its batches' scores.
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
        dropout_rate=0.1,  # the authors' code leaves dropout on in the frozen BART
        loss="token",
        z_loss=0.0,
        eval_every=2000,
        eval_examples=300,
    ),
    # early_stopping and no_repeat_ngram are from facebook/bart-large's generation config.
    decoding=Decoding(beams=6, early_stopping="true", length_penalty=0.8, min_new_tokens=10, no_repeat_ngram=3),
)
