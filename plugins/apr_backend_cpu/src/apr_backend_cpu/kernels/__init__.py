"""Kernels of the CPU backend, in vector IR and in Numba's Python."""
