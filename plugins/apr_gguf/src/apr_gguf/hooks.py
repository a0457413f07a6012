"""Declarations of this distribution. Imports nothing but apr_core's declarations."""

from __future__ import annotations

from apr_core.plugin import Exporter, Source, hookimpl


@hookimpl
def apr_exporters() -> list[Exporter]:
    """Declare the GGUF exporter."""
    return [Exporter("gguf", "apr_gguf.export:export", summary="one file, for llama.cpp")]


@hookimpl
def apr_sources() -> list[Source]:
    """Declare the reader of GGUF files."""
    return [
        Source(
            "gguf",
            "apr_gguf.checkpoint:open_checkpoint",
            summary="models of llama.cpp and ollama",
            suffixes=(".gguf",),
        )
    ]
