"""The kit that every exporter passes, for each family this one knows."""

from __future__ import annotations

from apr_core.testing import ExporterConformance


class TestGGUF(ExporterConformance):
    exporter = "gguf"
    family = "qwen3_5"


class TestGGUFOfQwen2(ExporterConformance):
    exporter = "gguf"
    family = "qwen2"
