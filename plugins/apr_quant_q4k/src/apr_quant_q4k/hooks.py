"""What this distribution provides. Imports only apr_core's declarations."""

from __future__ import annotations

from apr_core.plugin import Quantizer, Recipe, hookimpl

HERE = "apr_quant_q4k"


@hookimpl
def apr_quantizers() -> list[Quantizer]:
    """Declare four of GGML's block formats. Only two of them have their own id in APR v2."""
    return [
        Quantizer(
            "q4_k", f"{HERE}.codecs:Q4K", summary="4.5 bits: 8 groups of 32 with scale and minimum",
            block=256, bytes_per_block=144, dtype_id=12,
        ),
        Quantizer(
            "q5_k", f"{HERE}.codecs:Q5K", summary="5.5 bits: as q4_k with a fifth bit",
            block=256, bytes_per_block=176,
        ),
        Quantizer(
            "q6_k", f"{HERE}.codecs:Q6K", summary="6.6 bits: 16 groups of 16 with a signed scale",
            block=256, bytes_per_block=210, dtype_id=14,
        ),
        Quantizer(
            "q8_0", f"{HERE}.codecs:Q8_0", summary="8.5 bits: groups of 32 with a scale",
            block=32, bytes_per_block=34,
        ),
    ]  # fmt: skip


@hookimpl
def apr_recipes() -> list[Recipe]:
    """Declare the recipes: which format each class of tensor gets."""
    rows = (
        ("q4k", "q4_k, and q6_k where it matters most", ("q4_k", "q6_k")),
        ("q4_k_m", "llama.cpp's mix of that name", ("q4_k", "q5_k", "q6_k")),
        ("q6k", "q6_k, and q8_0 where it matters most", ("q6_k", "q8_0")),
        ("q8_0", "q8_0 for all matrices", ("q8_0",)),
        ("f16", "matrices in half precision", ()),
        ("bf16", "matrices in bfloat16", ()),
        ("f32", "matrices in single precision", ()),
    )
    return [
        Recipe(
            name,
            f"{HERE}.recipes:{name}",
            summary=summary,
            formats=formats,
            recommended=name == "q4k",
        )
        for name, summary, formats in rows
    ]
