"""The CPU backend passes what every backend passes."""

from __future__ import annotations

from apr_devkit.kits import BackendConformance


class TestCpu(BackendConformance):
    backend = "cpu"
