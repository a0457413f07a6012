"""Launch parameters of kernels, and how they are chosen."""
