"""Sliding-window attention for apr, and a family that mixes it with full attention."""
