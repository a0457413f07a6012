"""Building blocks for kernels in vector IR."""
