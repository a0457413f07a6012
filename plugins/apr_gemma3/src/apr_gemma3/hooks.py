"""Declarations of this distribution. Imports nothing but apr_core's declarations."""

from __future__ import annotations

from apr_core.plugin import Family, Mlp, hookimpl


@hookimpl
def apr_families() -> list[Family]:
    """Declare the family of Gemma 3, all sizes, without the vision tower."""
    return [
        Family(
            "gemma3",
            "apr_gemma3.family:Gemma3",
            summary="Gemma 3, text only",
            architectures=("Gemma3ForConditionalGeneration", "Gemma3ForCausalLM"),
            model_types=("gemma3", "gemma3_text"),
        )
    ]


@hookimpl
def apr_mlps() -> list[Mlp]:
    """Declare the feed-forward, and the op it brings."""
    return [
        Mlp(
            "geglu",
            "apr_gemma3.mlp:GeGLU",
            summary="gated by gelu, in its tanh form",
            brings=(("geglu", "apr_gemma3.ops:geglu"),),
            cases="apr_gemma3.cases:cases",
        )
    ]
