"""Declarations of this distribution. Imports nothing but apr_core's declarations."""

from __future__ import annotations

from apr_core.plugin import Family, hookimpl


@hookimpl
def apr_families() -> list[Family]:
    """Declare the family of Qwen3, all dense sizes."""
    return [
        Family(
            "qwen3",
            "apr_qwen3.family:Qwen3",
            summary="Qwen3, dense",
            architectures=("Qwen3ForCausalLM",),
            model_types=("qwen3",),
        )
    ]
