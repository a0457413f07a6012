"""Declarations of this distribution. Imports nothing but apr_core's declarations."""

from __future__ import annotations

from apr_core.plugin import Exporter, hookimpl


@hookimpl
def apr_exporters() -> list[Exporter]:
    """Declare the GGUF exporter."""
    return [Exporter("gguf", "apr_gguf.export:export", summary="one file, for llama.cpp")]
