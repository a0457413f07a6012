"""Llama 2 and 3, and models like them, for apr."""
