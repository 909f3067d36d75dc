"""Checks of an installation, for `prompt-jax doctor`."""
