"""Domain shift (Lester et al. 2021, section 5) with the data in this repository: train on one domain, test on others.

    prompt-jax train configs/domain_shift.py

The paper trains on SQuAD and tests on question answering in other domains (configs/squad.py). Here five prompts are
trained on movie reviews. Each prompt and their vote are tested on product reviews, editorials and tweets with the same
two labels. The report has the table.
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
