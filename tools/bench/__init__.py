"""Benchmarks, among them training and generation side by side with PEFT on PyTorch: `python -m tools.bench`."""
