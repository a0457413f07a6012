"""Llama 2 and 3, Mistral, and models like them, for apr."""
