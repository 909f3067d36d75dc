"""Zero-shot transfer as in Lester et al. 2021, section 5 (table 2): a prompt tuned on MRPC, tested on QQP.

    prompt-jax train configs/mrpc.py
    prompt-jax evaluate runs/mrpc/best.npz --task glue_qqp_from_mrpc_v200

The second scores QQP's validation split with the labels' names of MRPC (tasks/glue.py), where table 2 has accuracy
75.4 and F1 69.7. Three runs, as in the paper, are `--ensemble.size 3`. Settings that are not written here are the
paper's. The MRPC prompt that the authors published was trained with T5X's step offset (configs/sst2.py).
"""

from prompt_jax import DataConfig, Experiment, ModelConfig, TrainConfig

experiment = Experiment(
    name="mrpc",
    model=ModelConfig(name="google/t5-large-lm-adapt", dtype="bfloat16"),
    data=DataConfig(task="glue_mrpc_v200"),
    train=TrainConfig(dropout_rate=0.1, best_by="mean"),
)
