"""Checks and times on a GPU, for `scripts/gpu_check.py`."""
