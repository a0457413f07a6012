"""Grammars that constrain answers to JSON, a schema or tool calls."""
