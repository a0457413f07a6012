"""Ops of the CPU backend."""
