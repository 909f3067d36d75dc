"""Zero-shot transfer from QQP to MRPC (Lester et al. 2021, section 5, table 2).

    prompt-jax train configs/qqp.py
    prompt-jax evaluate runs/qqp/best.npz --task glue_mrpc_from_qqp_v200

The second command scores MRPC's validation split with QQP's label names (tasks/glue.py). Table 2 has an accuracy of
76.3 and an F1 of 84.3, for three runs (`--ensemble.size 3`). Settings that are not written here are the paper's.
"""

from prompt_jax import DataConfig, Experiment, ModelConfig, TrainConfig

experiment = Experiment(
    name="qqp",
    model=ModelConfig(name="google/t5-large-lm-adapt", dtype="bfloat16"),
    data=DataConfig(task="glue_qqp_v200"),
    train=TrainConfig(dropout_rate=0.1, best_by="mean", eval_every=2500),  # validation has 40,430 pairs
)
