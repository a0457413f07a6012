"""What `benchmarks/matrix.py` is made of."""
