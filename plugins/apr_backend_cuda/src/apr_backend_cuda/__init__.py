"""An NVIDIA GPU as a backend of apr: torch tensors, Triton kernels."""
