"""The kits that every plugin passes."""

from __future__ import annotations

from apr_devkit.kits import CommandConformance, SourceConformance


class TestPull(CommandConformance):
    command = "pull"


class TestHub(SourceConformance):
    source = "hf"
