"""A small trained Qwen3.5-architecture model for apr, as demo:// source."""
