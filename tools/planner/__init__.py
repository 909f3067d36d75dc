"""What a run needs of each chip of a TPU slice, computed without a TPU: `python -m tools.planner`."""
