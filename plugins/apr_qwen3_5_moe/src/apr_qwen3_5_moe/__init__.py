"""Qwen3.5 with a mixture of experts, for apr."""
