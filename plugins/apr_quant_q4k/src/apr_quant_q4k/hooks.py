"""What this distribution provides. Imports only apr_core's declarations."""

from __future__ import annotations

from apr_core.plugin import Layout, Numbers, Quantizer, Recipe, hookimpl

HERE = "apr_quant_q4k"
STEP, MINIMUM = (Numbers(0, "f16"),), (Numbers(2, "f16"),)
IQ4_NL = (
    -127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0,
    89.0, 113.0,
)  # fmt: skip


@hookimpl
def apr_quantizers() -> list[Quantizer]:
    """Declare GGML's block formats. Only two of them have their own id in APR v2."""
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
        Quantizer(
            "q4_0", f"{HERE}.codecs:Q4_0", summary="4.5 bits: groups of 32 with a scale",
            block=32, bytes_per_block=18, layout=Layout(32, 2, 4, STEP, order="halves", zero=8),
        ),
        Quantizer(
            "q4_1", f"{HERE}.codecs:Q4_1", summary="5 bits: groups of 32 with scale and minimum",
            block=32, bytes_per_block=20, layout=Layout(32, 4, 4, STEP, MINIMUM, order="halves"),
        ),
        Quantizer(
            "q5_0", f"{HERE}.codecs:Q5_0", summary="5.5 bits: groups of 32 with a scale",
            block=32, bytes_per_block=22,
            layout=Layout(32, 6, 4, STEP, order="halves", zero=16, high=2),
        ),
        Quantizer(
            "q5_1", f"{HERE}.codecs:Q5_1", summary="6 bits: groups of 32 with scale and minimum",
            block=32, bytes_per_block=24,
            layout=Layout(32, 8, 4, STEP, MINIMUM, order="halves", high=4),
        ),
        Quantizer(
            "iq4_nl", f"{HERE}.codecs:IQ4_NL", summary="4.5 bits: as q4_0 on uneven levels",
            block=32, bytes_per_block=18,
            layout=Layout(32, 2, 4, STEP, order="halves", codebook=IQ4_NL),
        ),
    ]  # fmt: skip


@hookimpl
def apr_recipes() -> list[Recipe]:
    """Declare the recipes: which format each class of tensor gets."""
    blocks_of_32 = ("q5_0", "q5_1", "q8_0")  # for rows that blocks of 256 do not divide
    rows = (
        ("q4k", "q4_k, and q6_k where it matters most", ("q4_k", "q6_k", "q5_0", "q8_0")),
        ("q4_k_m", "llama.cpp's mix of that name", ("q4_k", "q5_k", "q6_k", *blocks_of_32)),
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
