"""Zero-shot transfer from MRPC to QQP (Lester et al. 2021, section 5, table 2).

    prompt-jax train configs/mrpc.py
    prompt-jax evaluate runs/mrpc/best.npz --task glue_qqp_from_mrpc_v200

The second command scores QQP's validation split with MRPC's label names (tasks/glue.py). Table 2 has an accuracy of
75.4 and an F1 of 69.7, for three runs (`--ensemble.size 3`). Settings that are not written here are the paper's. The
authors' published MRPC prompt was trained with T5X's step offset (configs/sst2.py).
"""

from prompt_jax import DataConfig, Experiment, ModelConfig, TrainConfig

experiment = Experiment(
    name="mrpc",
    model=ModelConfig(name="google/t5-large-lm-adapt", dtype="bfloat16"),
    data=DataConfig(task="glue_mrpc_v200"),
    train=TrainConfig(dropout_rate=0.1, best_by="mean"),
)
