"""Gemma 3, text: sandwich norms, GeGLU, layers with and without a window."""
