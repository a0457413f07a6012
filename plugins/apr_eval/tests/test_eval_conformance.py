"""The kits that every plugin passes."""

from __future__ import annotations

from apr_devkit.kits import CommandConformance


class TestBench(CommandConformance):
    command = "bench"
