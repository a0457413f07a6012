"""The kit that every source passes."""

from __future__ import annotations

from apr_core.testing import SourceConformance


class TestDemo(SourceConformance):
    source = "demo"
