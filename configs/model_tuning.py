"""Model tuning on BoolQ, what Lester et al. 2021 compare prompts with: all of the model is trained, for one task.

From the paper (section 3.1): the public T5 1.1, T5's own Adafactor, whose updates are relative to the parameters, at a
rate of 1e-3, and batches of 2^16 tokens, here 128 examples of up to 512 tokens. There it goes on from the optimizer's
state of pretraining, which Hugging Face's checkpoints do not have. Not stated in the paper: the steps, which are the
prompts' here, and dropout (0.1 is in effect in its code for prompts). `best.npz` is as large as the model.
"""

from prompt_jax import DataConfig, Experiment, FullTuning, ModelConfig, OptimizerConfig, TrainConfig

experiment = Experiment(
    name="model_tuning",
    model=ModelConfig(name="google/t5-v1_1-large", dtype="bfloat16"),
    data=DataConfig(task="super_glue_boolq_v102", input_length=512, target_length=8),
    prompt=FullTuning(),
    optimizer=OptimizerConfig(learning_rate=1e-3, parameter_scale=True, weight_decay=0.0),
    train=TrainConfig(batch_size=2**16 // 512, accumulate=4, dropout_rate=0.1, best_by="mean"),
)
