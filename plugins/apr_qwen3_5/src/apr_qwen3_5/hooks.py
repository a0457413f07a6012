"""Declarations of this distribution. Imports nothing but apr_core's declarations."""

from __future__ import annotations

from apr_core.plugin import Attention, Family, hookimpl

OPS = ("causal_conv1d", "delta_gates", "gated_delta", "gated_rms_norm")


@hookimpl
def apr_families() -> list[Family]:
    """Declare the family of Qwen3.5, all dense sizes."""
    return [
        Family(
            "qwen3_5",
            "apr_qwen3_5.family:Qwen35",
            summary="Qwen3.5, dense: gated delta net and gated attention, text only",
            architectures=("Qwen3_5ForConditionalGeneration", "Qwen3_5ForCausalLM"),
            model_types=("qwen3_5", "qwen3_5_text"),
        )
    ]


@hookimpl
def apr_attention() -> list[Attention]:
    """Declare the two mixers, and the ops the delta net brings along."""
    return [
        Attention(
            "gated_attention",
            "apr_qwen3_5.mixers:GatedAttention",
            summary="grouped-query attention with q/k norms and an output gate",
            state="kv",
        ),
        Attention(
            "gated_delta_net",
            "apr_qwen3_5.mixers:GatedDeltaNet",
            summary="linear attention by the gated delta rule",
            state="recurrent",
            brings=tuple((name, f"apr_qwen3_5.ops:{name}") for name in OPS),
            cases="apr_qwen3_5.cases:cases",
        ),
    ]
