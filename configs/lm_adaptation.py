"""LM adaptation of T5 1.1 (Lester et al. 2021, section 2.2).

T5 1.1 is pretrained on span corruption alone. The whole model is trained for 100,000 more steps on prefix language
modeling, after which it continues text and responds better to prompt tuning. Put your own text in
`$PROMPT_JAX_DATA/text` (tasks/text.py). The adapted model is exported as a Hugging Face checkpoint:

    prompt-jax train configs/lm_adaptation.py                     # --model.name google/t5-v1_1-base for a larger T5
    prompt-jax export runs/lm_adaptation/best.npz adapted --format model
    prompt-jax train configs/boolq.py --model.name adapted

Steps and objective are the paper's. It does not state the other settings. Batches of 128 texts of 512 tokens are T5's
(Raffel et al. 2020, section 3.1.2: 2^16 tokens). Adafactor with a constant learning rate of 1e-3 is the paper's setting
for model tuning. T5 1.1 was pretrained without dropout.
"""

from prompt_jax import DataConfig, Experiment, FullTuning, ModelConfig, OptimizerConfig, TrainConfig

experiment = Experiment(
    name="lm_adaptation",
    model=ModelConfig(name="google/t5-v1_1-small", dtype="bfloat16"),  # trained parameters are float32
    data=DataConfig(task="prefix_lm"),
    prompt=FullTuning(),
    # T5's Adafactor with a constant learning rate; not stated in the paper
    optimizer=OptimizerConfig(learning_rate=1e-3, parameter_scale=True, weight_decay=0.0),
    train=TrainConfig(
        steps=100_000,
        batch_size=128,
        accumulate=8,  # the logits of an example, 512 tokens by 32,128 words, take 66 MB
        eval_every=5000,
        eval_examples=1000,
        eval_batch_size=16,
        checkpoint_every=5000,
    ),
)
