"""What an installation consists of, and what is wrong with it: for `prompt-jax doctor`."""
