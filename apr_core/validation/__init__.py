"""Checks of .apr files: structure, contract, values, tokenizer, quantization error."""
