"""Measures models: speed of prefill and decode, and where the time goes."""
