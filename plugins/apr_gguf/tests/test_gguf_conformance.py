"""The kit that every exporter passes, for each family this one knows."""

from __future__ import annotations

from apr_devkit.kits import ExporterConformance


class TestGGUF(ExporterConformance):
    exporter = "gguf"
    family = "qwen3_5"


class TestGGUFOfQwen2(ExporterConformance):
    exporter = "gguf"
    family = "qwen2"
