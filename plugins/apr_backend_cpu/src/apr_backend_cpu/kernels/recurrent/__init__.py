"""Kernels of recurrent ops."""
