"""Declarations of this distribution. Imports nothing but apr_core's declarations."""

from __future__ import annotations

from apr_core.plugin import Family, Mlp, hookimpl

OPS = ("route", "expert_linear", "mix_experts")


@hookimpl
def apr_families() -> list[Family]:
    """Declare the family of Qwen3.5 with experts."""
    return [
        Family(
            "qwen3_5_moe",
            "apr_qwen3_5_moe.family:Qwen35Moe",
            summary="Qwen3.5 with a mixture of experts, text only",
            architectures=("Qwen3_5MoeForConditionalGeneration", "Qwen3_5MoeForCausalLM"),
            model_types=("qwen3_5_moe", "qwen3_5_moe_text"),
        )
    ]


@hookimpl
def apr_mlps() -> list[Mlp]:
    """Declare the feed-forward, and the ops it brings along."""
    return [
        Mlp(
            "shared_and_routed_experts",
            "apr_qwen3_5_moe.mlp:Experts",
            summary="the likeliest of many gated feed-forwards, and one that all tokens share",
            brings=tuple((name, f"apr_qwen3_5_moe.ops:{name}") for name in OPS),
            cases="apr_qwen3_5_moe.cases:cases",
        )
    ]
