"""The CPU backend passes what every backend passes."""

from __future__ import annotations

from apr_core.testing import BackendConformance


class TestCpu(BackendConformance):
    backend = "cpu"
