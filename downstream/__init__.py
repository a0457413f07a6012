"""Plugins' own suites, run against the current core."""
