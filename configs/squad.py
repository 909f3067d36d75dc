"""Domain shift from SQuAD to six other domains (Lester et al. 2021, section 5, table 1).

    PROMPT_JAX_DATA=data prompt-jax train configs/squad.py

TFDS downloads SQuAD 1.1. The other domains are MRQA's, in `$PROMPT_JAX_DATA/mrqa` (tasks/qa.py). Table 1 has an F1 of
94.8 on SQuAD's validation split. On the other domains, in the order of `test_tasks`, it has 66.8, 79.1, 60.7, 88.8,
67.7 and 67.1. It does not state the size of T5. The paper's three runs are `--ensemble.size 3`. Settings that are not
written here are the paper's.
"""

from prompt_jax import DataConfig, Experiment, ModelConfig, PromptTuning, TrainConfig

experiment = Experiment(
    name="squad",
    model=ModelConfig(name="google/t5-large-lm-adapt", dtype="bfloat16"),
    data=DataConfig(
        task="squad_v010_allanswers",
        test_tasks=(
            "mrqa_textbook_qa",
            "mrqa_bio_asq",
            "mrqa_race",
            "mrqa_relation_extraction",
            "mrqa_duo_rc",
            "mrqa_drop",
        ),
    ),
    prompt=PromptTuning(init="vocab"),  # there are no labels to initialize with
    train=TrainConfig(dropout_rate=0.1, best_by="mean", eval_every=2500),  # validation has more than 10,000 questions
)
