"""The kits that every plugin passes."""

from __future__ import annotations

from apr_devkit.kits import CommandConformance, SourceConformance


class TestDemo(SourceConformance):
    source = "demo"


class TestDemoCommand(CommandConformance):
    command = "demo"
