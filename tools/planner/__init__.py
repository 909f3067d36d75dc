"""Computes what a run needs per chip of a TPU slice, without a TPU: `python -m tools.planner`."""
