"""The CPU backend of apr: NumPy arrays, Numba kernels."""
