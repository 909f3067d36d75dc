"""Prefix tuning on 100 examples of E2E (Li and Liang 2021, section 6.3), initialized with the activations of words.

    PROMPT_JAX_DATA=data prompt-jax train configs/prefix_tuning/e2e_low_data.py

The paper's runs have `--data.train-examples` 50, 100, 200 and 500 with `--train.steps` 200, 200, 200 and 400,
`--data.subset-seed` 0 to 4, and `--train.seed` 0 and 1. As in the authors' code, the best checkpoint has the lowest
validation loss: the first metric is the log-likelihood.
"""

from prompt_jax import DataConfig, Decoding, Experiment, ModelConfig, OptimizerConfig, PrefixTuning, TrainConfig

experiment = Experiment(
    name="e2e_low_data",
    model=ModelConfig(name="openai-community/gpt2-medium"),
    data=DataConfig(
        task="e2e", train_examples=100, metrics=("log_likelihood", "bleu", "nist", "coco_rouge_l", "cider")
    ),
    prompt=PrefixTuning(length=6, init="text", init_text="table-to-text:", mlp_width=512),
    optimizer=OptimizerConfig(
        name="adamw", learning_rate=5e-5, schedule="linear", warmup_steps=100, weight_decay=0.0, clip_norm=1.0
    ),
    train=TrainConfig(steps=200, batch_size=10, loss="sentence", z_loss=0.0, eval_every=50, eval_examples=30),
    # The authors' code bans GPT-2's two newline tokens.
    decoding=Decoding(beams=5, banned_tokens=(198, 628)),
)
