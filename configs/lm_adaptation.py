"""LM adaptation (Lester et al. 2021, section 2.2): T5 1.1, pretrained on span corruption alone, is trained for 100,000
more steps on prefix language modeling, all of it, so that prompts find in it a model that goes on with a text.

The text is the user's own: `$PROMPT_JAX_DATA/text/train*` and `validation*` (tasks/text.py). Other sizes are
`--model.name google/t5-v1_1-base` and so on. The adapted model is a folder in Hugging Face's layout, and a base as any
other:

    prompt-jax train configs/lm_adaptation.py
    prompt-jax export runs/lm_adaptation/best.npz adapted --format model
    prompt-jax train configs/boolq.py --model.name adapted

Steps and objective are the paper's. Batch, lengths and optimizer are not stated in the paper: batches of 128 pieces of
512 tokens are T5's (Raffel et al. 2020, section 3.1.2: 2^16 tokens), a constant rate of 1e-3 of Adafactor is what the
paper tunes models with, and T5 1.1 was pretrained without dropout.
"""

from prompt_jax import DataConfig, Experiment, FullTuning, ModelConfig, OptimizerConfig, TrainConfig

experiment = Experiment(
    name="lm_adaptation",
    model=ModelConfig(name="google/t5-v1_1-small", dtype="bfloat16"),  # what is trained is float32
    data=DataConfig(task="prefix_lm"),
    prompt=FullTuning(),
    # T5's Adafactor, constant; not stated in the paper
    optimizer=OptimizerConfig(learning_rate=1e-3, parameter_scale=True, weight_decay=0.0),
    train=TrainConfig(
        steps=100_000,
        batch_size=128,
        accumulate=8,  # the logits of an example, of 32,128 words for each of 512 tokens, take 66 MB
        eval_every=5000,
        eval_examples=1000,
        eval_batch_size=16,
        checkpoint_every=5000,
    ),
)
