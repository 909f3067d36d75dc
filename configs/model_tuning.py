"""Model tuning on BoolQ, the baseline of prompt tuning (Lester et al. 2021): the whole model is trained for one task.

    prompt-jax train configs/model_tuning.py

From the paper (section 3.1): the public T5 1.1; T5's Adafactor, whose updates scale with the parameters, at a learning
rate of 1e-3; batches of 2^16 tokens, here 128 examples of up to 512 tokens. The paper continues from the pretraining
optimizer state, which Hugging Face's checkpoints lack. It does not state the number of steps, here that of prompt
tuning, or dropout, here 0.1 as in its code for prompts. `best.npz` is as large as the model.
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
