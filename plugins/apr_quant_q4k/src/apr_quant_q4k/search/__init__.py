"""Searches for the best scales of a group, as vector IR."""
