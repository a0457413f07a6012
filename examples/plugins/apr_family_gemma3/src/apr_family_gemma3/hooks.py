"""Declarations of this distribution."""

from apr_core.plugin import Attention, Family, Mlp, hookimpl

HERE = "apr_family_gemma3"


@hookimpl
def apr_families() -> list[Family]:
    """Declare the family of Gemma 3, all sizes, without the vision tower."""
    return [
        Family(
            "gemma3",
            f"{HERE}.family:Gemma3",
            summary="Gemma 3, text only",
            architectures=("Gemma3ForConditionalGeneration", "Gemma3ForCausalLM"),
            model_types=("gemma3", "gemma3_text"),
        )
    ]


@hookimpl
def apr_attention() -> list[Attention]:
    """Declare attention over everything, and over a window."""
    return [
        Attention(
            "gemma3_attention",
            f"{HERE}.mixer:GlobalAttention",
            summary="grouped-query attention with zero-centred q/k norms",
            state="kv",
        ),
        Attention(
            "gemma3_local_attention",
            f"{HERE}.mixer:LocalAttention",
            summary="the same over a window of positions",
            state="window",
            brings=(("local_attention", f"{HERE}.ops:local_attention"),),
            cases=f"{HERE}.cases:local_attention_cases",
        ),
    ]


@hookimpl
def apr_mlps() -> list[Mlp]:
    """Declare the feed-forward, and the op it brings."""
    return [
        Mlp(
            "geglu",
            f"{HERE}.mlp:GeGLU",
            summary="gated by gelu, in its tanh form",
            brings=(("geglu", f"{HERE}.ops:geglu"),),
            cases=f"{HERE}.cases:geglu_cases",
        )
    ]
