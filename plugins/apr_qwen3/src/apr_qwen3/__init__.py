"""Qwen3, dense, for apr."""
