"""The CPU backend of apr: NumPy arrays, kernels compiled ahead of time."""
