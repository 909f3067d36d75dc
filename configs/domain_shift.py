"""Domain shift as in Lester et al. 2021, section 5, on the data in `tasks/`: tuned on one domain, tested on others.

The paper tunes on SQuAD and tests on question answering in other domains. Here five prompts are tuned on movie reviews
and tested, each alone and voting, on product reviews, editorials and tweets, which have the same two labels.
"""

from prompt_jax import DataConfig, EnsembleConfig, Experiment, ModelConfig, PromptTuning, TrainConfig

experiment = Experiment(
    name="domain_shift",
    model=ModelConfig(name="demo"),
    data=DataConfig(
        task="sentiment_movie",
        target_length=4,
        test_tasks=("sentiment_amazon", "sentiment_nyt", "sentiment_tweets"),
    ),
    prompt=PromptTuning(length=20, init="vocab"),
    train=TrainConfig(steps=150, eval_every=50, eval_examples=300, checkpoint_every=50),
    ensemble=EnsembleConfig(size=5, group=1),
)
