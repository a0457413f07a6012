"""Families: reading config.json, contracts of tensors, layer plans."""
