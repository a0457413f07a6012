"""An example backend of apr: torch arrays on the CPU, no kernels."""
