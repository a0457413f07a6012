"""Weights on the device."""
