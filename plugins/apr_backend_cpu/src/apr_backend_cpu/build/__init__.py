"""Compiling the kernels ahead of time."""
