"""Zero-shot transfer as in Lester et al. 2021, section 5 (table 2): a prompt tuned on QQP, tested on MRPC.

    prompt-jax train configs/qqp.py
    prompt-jax evaluate runs/qqp/best.npz --task glue_mrpc_from_qqp_v200

The second scores MRPC's validation split with the labels' names of QQP (tasks/glue.py), where table 2 has accuracy
76.3 and F1 84.3. Three runs, as in the paper, are `--ensemble.size 3`. Settings that are not written here are the
paper's.
"""

from prompt_jax import DataConfig, Experiment, ModelConfig, TrainConfig

experiment = Experiment(
    name="qqp",
    model=ModelConfig(name="google/t5-large-lm-adapt", dtype="bfloat16"),
    data=DataConfig(task="glue_qqp_v200"),
    train=TrainConfig(dropout_rate=0.1, best_by="mean", eval_every=2500),  # validation has 40,430 pairs
)
