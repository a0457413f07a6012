"""GGUF export for apr."""
