"""What tools/gpu.sh measures: `prompt_jax` on one GPU, against its CPU and against PEFT on PyTorch."""
