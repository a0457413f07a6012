"""Running programs of kernels on threads."""
