"""Compiled loops that encode and decode blocks."""
